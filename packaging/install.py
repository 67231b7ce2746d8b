# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python3 packaging/install.py ROOT TARGET`: puts what a package contains under ROOT.

Run in an unpacked source archive (packaging/build.py makes one), which holds the wheels that
TARGET bundles and the generated pages. Needs nothing but Python: the RPM's %install runs
it as well as the deb's build. Every mode is set here, whatever the umask.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

ROOMS = ("scoring", "broker", "agent")
PRIVATE = "usr/lib/ha-agent"
#: Isolated (-I): neither a user's PYTHONPATH nor the current folder gets into a daemon that
#: may be run by root. The place is taken from this file's own, so that a tree that lies
#: elsewhere runs too.
START = """\
#!/usr/bin/python3 -I
# SPDX-License-Identifier: LGPL-2.1-or-later
import sys
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[1] / "lib" / "ha-agent"
sys.path[:0] = [str(LIBRARY), str(LIBRARY / "bundled")]

from {room}.main import main  # noqa: E402

main()
"""
#: File in the archive -> where it goes.
FILES = {
    "packaging/systemd/ha-broker.service": "usr/lib/systemd/system/ha-broker.service",
    "packaging/systemd/ha-agent.service": "usr/lib/systemd/system/ha-agent.service",
    "packaging/systemd/ha-agent-host-shutdown.service": (
        "usr/lib/systemd/system/ha-agent-host-shutdown.service"
    ),
    "packaging/systemd/ha-agent-certificates.service": (
        "usr/lib/systemd/system/ha-agent-certificates.service"
    ),
    "packaging/systemd/ha-agent-certificates.timer": (
        "usr/lib/systemd/system/ha-agent-certificates.timer"
    ),
    "packaging/systemd/sysusers.conf": "usr/lib/sysusers.d/ha-agent.conf",
    "packaging/systemd/tmpfiles.conf": "usr/lib/tmpfiles.d/ha-agent.conf",
    "packaging/firewalld/ha-agent.xml": "usr/lib/firewalld/services/ha-agent.xml",
    "packaging/prometheus/ha-agent.rules.yml": "usr/share/ha-agent/prometheus/ha-agent.rules.yml",
    "packaging/grafana/ha-agent.json": "usr/share/ha-agent/grafana/ha-agent.json",
    # No configuration file: what `init` writes would have dpkg ask at each new default.
    "generated/ha-agent.toml": "usr/share/ha-agent/ha-agent.toml",
    "generated/ha-agent.bash": "usr/share/bash-completion/completions/ha-agent",
    "generated/ha-agent.fish": "usr/share/fish/vendor_completions.d/ha-agent.fish",
}
#: Where the pages go; the alerts lead to one of them, and they to each other.
DOCUMENTS = "usr/share/doc/ha-agent"
_LINK = re.compile(r"\[([^\]\n]*)\]\(([^)\s]+)\)")
MANUALS = ("ha-agent.8", "ha-broker.8", "ha-agent.toml.5")
#: Debian alone: elsewhere systemd's own default allows ping (docs/privileges.md), and zsh looks
#: for completions in another folder.
DEBIAN_FILES = {
    "packaging/systemd/sysctl.conf": "usr/lib/sysctl.d/60-ha-agent.conf",
    "generated/ha-agent.zsh": "usr/share/zsh/vendor-completions/_ha-agent",
}
OTHER_FILES = {
    "generated/ha-agent.zsh": "usr/share/zsh/site-functions/_ha-agent",
}
#: Not needed to run: the headers, type stubs and sources of compiled wheels, and their tests.
UNWANTED = (".pxd", ".pyx", ".pyi", ".c", ".h", ".hash", "py.typed")


def put(root: Path, place: str, content: bytes, mode: int = 0o644) -> None:
    """Write one file below `root`."""
    path = root / place
    for folder in reversed(path.relative_to(root).parents):
        (root / folder).mkdir(mode=0o755, exist_ok=True, parents=True)
        (root / folder).chmod(0o755)
    path.write_bytes(content)
    path.chmod(mode)


def install(source: Path, root: Path, target: str) -> None:
    """All files of the package for `target`."""
    for room in ROOMS:
        for path in sorted((source / room).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                put(root, f"{PRIVATE}/{path.relative_to(source)}", path.read_bytes())
        if (source / room / "main.py").exists():
            put(root, f"usr/bin/ha-{room}", START.format(room=room).encode(), 0o755)
    for wheel in sorted((source / "wheels").glob("*.whl")):
        unpack(wheel, root)
    special = DEBIAN_FILES if target.startswith("debian") else OTHER_FILES
    for name, place in {**FILES, **special}.items():
        put(root, place, (source / name).read_bytes())
    for name in MANUALS:
        section = name[-1]
        page = gzip.compress((source / "generated" / name).read_bytes(), 9, mtime=0)
        put(root, f"usr/share/man/man{section}/{name}.gz", page)
    pages(source, root)
    for path in sorted((source / "packaging" / "selinux").iterdir()):
        put(root, f"usr/share/ha-agent/selinux/{path.name}", path.read_bytes())
    sbom = (source / "generated" / "sbom.cdx.json").read_bytes()
    put(root, "usr/share/ha-agent/sbom.cdx.json", sbom)


def pages(source: Path, root: Path) -> None:
    """The pages of docs/, as their names are, and the changelog beside them. A link to what is not
    installed is its text alone."""
    docs = source.resolve() / "docs"
    found = (*docs.rglob("*.md"), docs / "status.schema.json")
    places = {page: page.relative_to(docs) for page in found}
    places[docs.with_name("CHANGELOG.md")] = Path("CHANGELOG.md")
    for page, place in sorted(places.items()):
        text = linked(page, places) if page.suffix == ".md" else page.read_text()
        put(root, f"{DOCUMENTS}/{place}", text.encode())


def linked(page: Path, places: dict[Path, Path]) -> str:
    """A page's text with its links as the pages are installed; `places`: where each of them is."""

    def instead(link: re.Match[str]) -> str:
        words, target = link[1], link[2]
        name, mark, part = target.partition("#")
        if not name or ":" in name:
            return link[0]
        there = (page.parent / name).resolve()
        if there not in places:
            return words
        return f"[{words}]({os.path.relpath(places[there], places[page].parent)}{mark}{part})"

    return _LINK.sub(instead, page.read_text())


def unpack(wheel: Path, root: Path) -> None:
    """A wheel is a zip file (PEP 427); none that we bundle has scripts or data to move."""
    with zipfile.ZipFile(wheel) as archive:
        for item in archive.infolist():
            name = item.filename
            if item.is_dir() or name.endswith(UNWANTED) or ".data/" in name:
                continue
            put(root, f"{PRIVATE}/bundled/{name}", archive.read(item))


def main() -> None:
    """Into the root that is named."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: python3 packaging/install.py ROOT TARGET")
    source = Path(__file__).resolve().parents[1]
    root = Path(sys.argv[1])
    shutil.rmtree(root / PRIVATE, ignore_errors=True)
    install(source, root, sys.argv[2])


if __name__ == "__main__":
    main()
