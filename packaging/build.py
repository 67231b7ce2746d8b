# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python packaging/build.py VERB`: packages of the commit HEAD; --help names the verbs.

What is built is what is committed; a changed file in the work tree is not in it. Every
time stamp is the commit's (SOURCE_DATE_EPOCH), every order sorted: the same commit gives
the same bytes. Results lie in build/packages. Run with .venv's Python, whose msgspec and
libvirt the generated pages need; pip alone asks the network, for the pinned wheels.
"""

from __future__ import annotations

import argparse
import email
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import uuid
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import install
import release as folders

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "packaging"
BUILD = ROOT / "build"
OUT = BUILD / "packages"
NAME = "ha-agent"
TARGETS: dict[str, dict[str, Any]] = tomllib.loads((HERE / "targets.toml").read_text())
#: Of the commit, what goes into the source archive.
CONTENT = ("scoring", "broker", "agent", "packaging", "docs", "pyproject.toml", "LICENSE")
PAGES = ("README.md", "CHANGELOG.md")
#: glibc 2.28 and older: wheels that both distributions can load.
PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_28")
MAINTAINER = "ha-agent developers <ha-agent@packages.invalid>"


def run(*argv: str | Path, more: Mapping[str, str] | None = None) -> str:
    """A command's output; a failing one ends the build with what it said. `more`: variables."""
    result = subprocess.run(  # noqa: S603  our own arguments
        [str(word) for word in argv],
        cwd=ROOT,
        env={**os.environ, **(more or {})},
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise SystemExit(f"{argv[0]} failed ({result.returncode}): {result.stdout}{result.stderr}")
    return result.stdout


@dataclass(frozen=True, slots=True)
class Commit:
    """What is built. `snapshot`: empty where the commit carries the version's tag."""

    version: str
    snapshot: str
    time_s: int

    @classmethod
    def head(cls) -> Commit:
        version = project_version()
        when, digest = run("git", "log", "-1", "--format=%ct %h", "--abbrev=10").split()
        tags = run("git", "tag", "--points-at", "HEAD").split()
        stamp = time.strftime("%Y%m%d%H%M%S", time.gmtime(int(when)))
        snapshot = "" if f"v{version}" in tags else f"{stamp}.g{digest}"
        return cls(version, snapshot, int(when))

    @property
    def deb_version(self) -> str:
        """A snapshot sorts before its release, and after every older snapshot."""
        return f"{self.version}~{self.snapshot}" if self.snapshot else self.version

    @property
    def epoch(self) -> dict[str, str]:
        return {"SOURCE_DATE_EPOCH": str(self.time_s)}


def project_version() -> str:
    """The version in pyproject.toml, from which all others come."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


# --- what is bundled ------------------------------------------------------------------------


def lock_file(target: str) -> Path:
    return HERE / f"vendor-requirements.{target}.txt"


def pip_download(target: str, machine: str, to: Path, *what: str) -> None:
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_{machine}")]
    run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"),
        *("--no-deps", "--only-binary", ":all:", "--implementation", "cp"),
        *("--python-version", TARGETS[target]["python"], *platforms, "-d", to, *what),
    )


def lock(target: str) -> None:
    """Pin the newest version of what the target bundles, with the hash of each wheel."""
    folder = BUILD / "lock" / target
    shutil.rmtree(folder, ignore_errors=True)
    wheels: dict[tuple[str, str], set[str]] = {}
    for machine in ("x86_64", "aarch64"):
        names = TARGETS[target]["bundled"]
        pip_download(target, machine, folder / machine, *names)
        for wheel in (folder / machine).glob("*.whl"):
            name, version = wheel.name.split("-")[:2]
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            # A wheel's name has "_" where the project's has "-" (PEP 427).
            wheels.setdefault((name.lower().replace("_", "-"), version), set()).add(digest)
    lines = [f"# Made by: packaging/build.py lock {target}"]
    for (name, version), digests in sorted(wheels.items()):
        hashes = " ".join(f"--hash=sha256:{digest}" for digest in sorted(digests))
        lines.append(f"{name}=={version} {hashes}")
    lock_file(target).write_text("\n".join(lines) + "\n")


def wheels(target: str) -> Path:
    """The folder with the pinned wheels, downloaded where they are not there yet."""
    pins = lock_file(target)
    machine = os.uname().machine
    folder = BUILD / "wheels" / f"{target}-{machine}"
    stamp = folder / ".pins"
    if not stamp.exists() or stamp.read_bytes() != pins.read_bytes():
        shutil.rmtree(folder, ignore_errors=True)
        pip_download(target, machine, folder, "--require-hashes", "-r", str(pins))
        stamp.write_bytes(pins.read_bytes())
    return folder


def sbom(commit: Commit, folder: Path) -> str:
    """CycloneDX 1.5 of what is bundled, from the wheels' own metadata."""
    components = []
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            (place,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            about = email.message_from_bytes(archive.read(place))
        name, version = str(about["Name"]), str(about["Version"])
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        components.append(
            {
                "type": "library",
                "name": name,
                "version": version,
                "purl": f"pkg:pypi/{name.lower()}@{version}",
                "hashes": [{"alg": "SHA-256", "content": digest}],
                "licenses": [{"license": {"name": licence_of(about)}}],
            }
        )
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(commit.time_s))
    product = {"type": "application", "name": NAME, "version": commit.version}
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([commit.deb_version, components]))
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "timestamp": stamp,
            "component": {**product, "licenses": [{"license": {"id": "LGPL-2.1-or-later"}}]},
        },
        "components": components,
    }
    return json.dumps(document, indent=1) + "\n"


def licence_of(about: Any) -> str:
    """A wheel's licence in its own words."""
    for field in ("License-Expression", "License"):
        if text := str(about[field] or "").strip().split("\n")[0]:
            return text
    named = [c for c in about.get_all("Classifier", []) if c.startswith("License ::")]
    return named[-1].split(" :: ")[-1] if named else "see its dist-info folder"


# --- the source archive ---------------------------------------------------------------------


def source(commit: Commit, target: str) -> Path:
    """The commit's files, the wheels that the target bundles, and the generated pages, in a
    folder."""
    folder = BUILD / "source" / target / f"{NAME}-{commit.version}"
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    archive = folder.parent / "commit.tar"
    run("git", "archive", "-o", archive, "HEAD", *CONTENT, *PAGES)
    run("tar", "-xf", archive, "-C", folder)
    (folder / "wheels").mkdir()
    for wheel in wheels(target).glob("*.whl"):
        shutil.copy(wheel, folder / "wheels")
    generated = folder / "generated"
    more = {"PYTHONDONTWRITEBYTECODE": "1", **commit.epoch}
    run(sys.executable, folder / "docs/generate_man.py", generated, more=more)
    (generated / "sbom.cdx.json").write_text(sbom(commit, folder / "wheels"))
    return folder


def pack(folder: Path, archive: Path, time_s: int) -> None:
    """A tar.gz whose bytes depend on the files alone."""

    def as_root(item: tarfile.TarInfo) -> tarfile.TarInfo:
        item.uid = item.gid = 0
        item.uname = item.gname = "root"
        item.mtime = time_s
        item.mode = 0o755 if item.mode & 0o100 else 0o644
        return item

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            name = f"{folder.name}/{path.relative_to(folder)}"
            tar.add(path, arcname=name, recursive=False, filter=as_root)
    archive.write_bytes(gzip.compress(raw.getvalue(), 9, mtime=0))
    archive.chmod(0o644)


# --- deb ------------------------------------------------------------------------------------


def deb(target: str) -> Path:
    """The Debian package for the target."""
    commit = Commit.head()
    folder = source(commit, target)
    root = BUILD / "deb" / target
    shutil.rmtree(root, ignore_errors=True)
    install.install(folder, root, target)
    architecture = TARGETS[target]["architecture"]
    if architecture == "any":
        architecture = run("dpkg", "--print-architecture").strip()
    documents = f"usr/share/doc/{NAME}"
    install.put(root, f"{documents}/copyright", copyright_file(commit, folder).encode())
    changelog = deb_changelog(commit, NAME, f"{commit.deb_version}+{target}").encode()
    install.put(root, f"{documents}/changelog.gz", gzip.compress(changelog, 9, mtime=0))
    overrides = (folder / "packaging/deb/lintian-overrides").read_bytes()
    install.put(root, f"usr/share/lintian/overrides/{NAME}", overrides)
    files = sorted(p for p in root.rglob("*") if p.is_file())
    control = f"""\
Package: {NAME}
Version: {commit.deb_version}+{target}
Architecture: {architecture}
Maintainer: {MAINTAINER}
Installed-Size: {sum(-(-p.stat().st_size // 1024) for p in files)}
Depends: {", ".join(TARGETS[target]["depends"])}
Recommends: qemu-system-x86 | qemu-system
Suggests: fence-agents
Section: admin
Priority: optional
Description: keeps virtual machines up on hosts that share storage
 Two daemons on each of several KVM hosts keep libvirt virtual machines
 running, each on exactly one of them: it is started where it fits best,
 moved live, and taken over when a host dies. A sanlock lease that its QEMU
 process holds makes a second copy impossible.
"""
    sums = [f"{md5(path)}  {path.relative_to(root)}\n" for path in files]
    install.put(root, "DEBIAN/control", control.encode())
    install.put(root, "DEBIAN/md5sums", "".join(sums).encode())
    for script in ("postinst", "prerm", "postrm"):
        content = (folder / "packaging/deb" / script).read_bytes()
        install.put(root, f"DEBIAN/{script}", content, 0o755)
    OUT.mkdir(parents=True, exist_ok=True)
    for older in OUT.glob(f"*+{target}_*.deb"):
        older.unlink()
    package = OUT / f"{NAME}_{commit.deb_version}+{target}_{architecture}.deb"
    run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", root, package, more=commit.epoch)
    return package


COCKPIT = "cockpit-ha-agent"


def cockpit() -> Path:
    """The Debian package with the page for Cockpit: four files, the same for all releases."""
    commit = Commit.head()
    root = BUILD / "deb" / COCKPIT
    shutil.rmtree(root, ignore_errors=True)
    for name in run("git", "ls-files", "packaging/cockpit").split():
        content = run("git", "show", f"HEAD:{name}").encode()
        install.put(root, f"usr/share/cockpit/ha-agent/{Path(name).name}", content)
    documents = f"usr/share/doc/{COCKPIT}"
    install.put(root, f"{documents}/copyright", own_copyright(commit).encode())
    changelog = deb_changelog(commit, COCKPIT, commit.deb_version).encode()
    install.put(root, f"{documents}/changelog.gz", gzip.compress(changelog, 9, mtime=0))
    files = sorted(p for p in root.rglob("*") if p.is_file())
    control = f"""\
Package: {COCKPIT}
Version: {commit.deb_version}
Architecture: all
Maintainer: {MAINTAINER}
Installed-Size: {sum(-(-p.stat().st_size // 1024) for p in files)}
Depends: cockpit-bridge (>= 239), {NAME}
Recommends: cockpit-ws
Section: admin
Priority: optional
Description: page for the VMs of ha-agent in Cockpit
 Shows the protected virtual machine and its hosts, sets and ends maintenance,
 moves the machine, and joins a new host, with Cockpit's login: each order is
 the command that an administrator would type.
"""
    sums = [f"{md5(path)}  {path.relative_to(root)}\n" for path in files]
    install.put(root, "DEBIAN/control", control.encode())
    install.put(root, "DEBIAN/md5sums", "".join(sums).encode())
    OUT.mkdir(parents=True, exist_ok=True)
    for older in OUT.glob(f"{COCKPIT}_*.deb"):
        older.unlink()
    package = OUT / f"{COCKPIT}_{commit.deb_version}_all.deb"
    run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", root, package, more=commit.epoch)
    return package


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def deb_changelog(commit: Commit, name: str, version: str) -> str:
    stamp = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(commit.time_s))
    return (
        f"{name} ({version}) unstable; urgency=medium\n\n"
        f"  * What is new for operators: /usr/share/doc/{NAME}/CHANGELOG.md\n\n"
        f" -- {MAINTAINER}  {stamp}\n"
    )


def own_copyright(commit: Commit) -> str:
    """DEP 5, where nothing is bundled."""
    return (
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n"
        f"Files: *\nCopyright: {time.gmtime(commit.time_s).tm_year} the ha-agent authors\n"
        "License: LGPL-2.1-or-later\n On Debian systems: /usr/share/common-licenses/LGPL-2.1\n"
    )


def copyright_file(commit: Commit, folder: Path) -> str:
    """DEP 5: our licence, and of each bundled library where its own is."""
    year = time.gmtime(commit.time_s).tm_year
    parts = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/",
        f"Files: *\nCopyright: {year} the ha-agent authors\nLicense: LGPL-2.1-or-later",
    ]
    bundled = json.loads((folder / "generated/sbom.cdx.json").read_text())["components"]
    for component in bundled:
        licence = component["licenses"][0]["license"]["name"]
        parts.append(
            f"Files: usr/lib/ha-agent/bundled/{component['name']}*\n"
            f"Copyright: the authors of {component['name']} {component['version']}\n"
            f"License: {re.sub(r'[^A-Za-z0-9.+-]+', '-', licence)}\n"
            f" Its text is in usr/lib/ha-agent/bundled, in the dist-info folder of its name."
        )
    parts.append(
        "License: LGPL-2.1-or-later\n On Debian systems: /usr/share/common-licenses/LGPL-2.1"
    )
    return "\n\n".join(parts) + "\n"


# --- rpm ------------------------------------------------------------------------------------


def rpm() -> list[Path]:
    """The source and the binary package."""
    commit = Commit.head()
    folder = source(commit, "rpm")
    top = BUILD / "rpm"
    shutil.rmtree(top, ignore_errors=True)
    (top / "SOURCES").mkdir(parents=True)
    pack(folder, top / "SOURCES" / f"{folder.name}.tar.gz", commit.time_s)
    defines = {
        "_topdir": str(top),
        "_buildhost": "localhost",
        "use_source_date_epoch_as_buildtime": "1",
        "clamp_mtime_to_source_date_epoch": "1",
        "source_date_epoch_from_changelog": "0",
        **({"snapshot": commit.snapshot} if commit.snapshot else {}),
    }
    options = [word for name, value in defines.items() for word in ("-D", f"{name} {value}")]
    # No RPM database is asked on a machine that has none.
    foreign = [] if Path("/etc/redhat-release").exists() else ["--nodeps"]
    spec = folder / "packaging/rpm/ha-agent.spec"
    spec.chmod(0o644)
    run("rpmbuild", "-ba", *foreign, *options, spec, more={"TZ": "UTC", **commit.epoch})
    OUT.mkdir(parents=True, exist_ok=True)
    for older in OUT.glob("*.rpm"):
        older.unlink()
    made = sorted(top.glob("*RPMS/**/*.rpm"))
    return [Path(shutil.copy(path, OUT)) for path in made]


# --- release --------------------------------------------------------------------------------


def release(key: str, is_snapshot: bool) -> None:
    """The folder of a release, signed with a key of gpg's; SystemExit says what is missing.
    `is_snapshot`: of a commit that is not tagged."""
    if not key:
        raise SystemExit(
            "a release is signed, and no key is named: make release KEY=ID (gpg --list-secret-keys"
            " shows yours); make packages makes the packages alone, unsigned"
        )
    signer = folders.Signer(key)
    commit = Commit.head()
    if commit.snapshot and not is_snapshot:
        raise SystemExit(
            f"HEAD does not carry the tag v{commit.version}: make release-check says what a release"
            " needs; SNAPSHOT=1 makes the folder of this commit all the same"
        )
    try:
        signer.check()
        folder = BUILD / "release" / commit.deb_version
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        page, by_target = cockpit(), {target: deb(target) for target in folders.SUITES}
        rpms = rpm()
        for path in (page, *by_target.values(), *rpms):
            shutil.copy(path, folder)
        for target in folders.SUITES:
            unpacked = source(commit, target)
            folders.debian_source(unpacked, _as_source(commit, target), folder / "debian")
        folders.python_packages(source(commit, "rpm"), folder, sys.executable)
        suites = {folders.SUITES[target]: [path, page] for target, path in by_target.items()}
        folders.apt(folder / "apt", suites, commit.time_s, signer)
        folders.dnf(folder / "dnf", rpms, signer)
        if Commit.head() != commit:
            raise SystemExit("HEAD has moved while this was built: make release again")
        folders.finish(folder, signer)
    except folders.ReleaseError as error:
        raise SystemExit(str(error)) from None
    print(folders.instructions(folder))


def _as_source(commit: Commit, target: str) -> folders.DebianSource:
    version, given = f"{commit.deb_version}+{target}", TARGETS[target]
    return folders.DebianSource(
        target,
        version,
        MAINTAINER,
        given["architecture"],
        ", ".join(given["depends"]),
        deb_changelog(commit, NAME, version),
        copyright_file(commit, BUILD / "source" / target / f"{NAME}-{commit.version}"),
    )


def release_check() -> None:
    """Check that a release can be tagged from HEAD, and say how; nothing is tagged here."""
    version = project_version()
    problems = []
    if run("git", "status", "--porcelain"):
        problems.append("the work tree has changes; commit or drop them")
    heads = re.findall(r"^## (\S+)(.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    if not heads or heads[0][0] != version:
        problems.append(f"CHANGELOG.md: its first version is not {version}")
    elif "unreleased" in heads[0][1]:
        problems.append(f"CHANGELOG.md: {version} is still marked as unreleased")
    spec = (HERE / "rpm/ha-agent.spec").read_text()
    if f"\nVersion:        {version}\n" not in spec:
        problems.append(f"packaging/rpm/ha-agent.spec: its Version is not {version}")
    if not Commit.head().deb_version.startswith(version):
        problems.append(f"the deb would not be {version}")
    for target, given in TARGETS.items():
        pins = re.findall(r"^([\w.-]+)==", lock_file(target).read_text(), re.MULTILINE)
        if pins != sorted(given["bundled"]):
            problems.append(f"{lock_file(target).name}: does not pin what targets.toml bundles")
    if f"v{version}" in run("git", "tag").split():
        problems.append(f"the tag v{version} is there already; raise the version")
    if problems:
        raise SystemExit("not ready for a release:\n  " + "\n  ".join(problems))
    print(f"{version} is ready. make package-test, then:\n  git tag -s v{version}")
    print("  make release KEY=ID")


SUMS = "SHA256SUMS"


def sums(files: Iterable[Path]) -> str:
    """Their checksums, as `sha256sum --check` takes them."""
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(files)
    )


def packages() -> None:
    """All packages, with their checksums; says where they are and how each is installed."""
    debs = [name for name in TARGETS if name.startswith("debian")]
    made = [*map(deb, debs), cockpit(), *rpm()]
    (OUT / SUMS).write_text(sums(made))
    for path in made:
        print(path)
    print(f"{OUT / SUMS}   (there: sha256sum --check {SUMS})")
    print("install: apt install FILE.deb, or dnf install FILE.noarch.rpm, on each host")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Builds the packages of HEAD.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    debs = [name for name in TARGETS if name.startswith("debian")]
    verbs.add_parser("lock").add_argument("target", choices=TARGETS)
    verbs.add_parser("deb").add_argument("target", choices=debs, nargs="+")
    verbs.add_parser("cockpit")
    verbs.add_parser("rpm")
    verbs.add_parser("packages")
    verbs.add_parser("release-check")
    whole = verbs.add_parser("release")
    whole.add_argument("--key", default="", help="gpg's secret key that signs it")
    whole.add_argument("--snapshot", action="store_true", help="of a commit without the tag")
    arguments = parser.parse_args()
    match arguments.verb:
        case "lock":
            lock(arguments.target)
        case "deb":
            for target in arguments.target:
                print(deb(target))
        case "packages":
            packages()
        case "cockpit":
            print(cockpit())
        case "rpm":
            for path in rpm():
                print(path)
        case "release-check":
            release_check()
        case _:
            release(arguments.key, arguments.snapshot)


if __name__ == "__main__":
    main()
