# SPDX-License-Identifier: LGPL-2.1-or-later
"""The folder of a release: packages, sources, checksums and a signature, and repositories that apt
and dnf take. Used by packaging/build.py, whose packages these are.

    build/release/VERSION/
        the packages, the wheel and the source archive for pip
        debian/      source packages (dpkg-source), one for each Debian
        apt/         a repository: dists/SUITE, pool
        dnf/         a repository: repodata, the RPMs
        SHA256SUMS   of all files, and SHA256SUMS.asc
        KEY.asc      the public key
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SUMS, PUBLIC_KEY = "SHA256SUMS", "KEY.asc"
#: Target -> the suite that it is for.
SUITES = {"debian12": "bookworm", "debian13": "trixie"}
COMPONENT = "main"

CONTROL = """\
Source: ha-agent
Section: admin
Priority: optional
Maintainer: {maintainer}
Build-Depends: debhelper-compat (= 13), python3
Standards-Version: 4.6.2
Rules-Requires-Root: no

Package: ha-agent
Architecture: {architecture}
Depends: {depends}
Recommends: qemu-system-x86 | qemu-system
Suggests: fence-agents
Description: keeps virtual machines up on hosts that share storage
 Two daemons on each of several KVM hosts keep libvirt virtual machines
 running, each on exactly one of them: it is started where it fits best,
 moved live, and taken over when a host dies. A sanlock lease that its QEMU
 process holds makes a second copy impossible.
"""
#: The units are neither enabled nor started by an installation, the maintainer scripts are ours,
#: and the bundled wheels stay as they are published.
RULES = """\
#!/usr/bin/make -f
%:
\tdh $@
override_dh_auto_clean override_dh_auto_configure override_dh_auto_build override_dh_auto_test:
override_dh_auto_install:
\tpython3 packaging/install.py debian/ha-agent {target}
override_dh_installsystemd override_dh_installtmpfiles override_dh_installsysusers:
override_dh_strip override_dh_makeshlibs override_dh_shlibdeps override_dh_dwz:
override_dh_installdocs:
\tdh_installdocs
override_dh_compress:
\tdh_compress -X.md -X.json
"""


class ReleaseError(Exception):
    """A release cannot be made; says what to do."""


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs with a key of gpg's; `key` as gpg takes it."""

    key: str

    def check(self) -> None:
        """ReleaseError where gpg has no such secret key."""
        if shutil.which("gpg") is None:
            raise ReleaseError("gpg is not installed; apt install gnupg")
        try:
            _run("gpg", "--batch", "--list-secret-keys", self.key)
        except ReleaseError:
            raise ReleaseError(
                f"gpg has no secret key {self.key!r}; gpg --list-secret-keys shows those that there"
                " are"
            ) from None

    def detached(self, path: Path) -> Path:
        """A signature beside a file."""
        return self._made(path, path.with_name(f"{path.name}.asc"), "--detach-sign")

    def inline(self, path: Path, to: Path) -> Path:
        """A signed copy of a text."""
        return self._made(path, to, "--clearsign")

    def public(self, to: Path) -> Path:
        """The public key."""
        to.write_text(_run("gpg", "--batch", "--armor", "--export", self.key))
        return to

    def _made(self, path: Path, to: Path, how: str) -> Path:
        _run(
            *("gpg", "--batch", "--yes", "--armor", "--local-user", self.key),
            *("--output", str(to), how, str(path)),
        )
        return to


def _run(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, cwd=cwd)  # noqa: S603
    if done.returncode != 0:
        raise ReleaseError(f"{argv[0]} failed ({done.returncode}): {done.stdout}{done.stderr}")
    return done.stdout


def sums(folder: Path) -> str:
    """Checksums of all files below a folder, as `sha256sum --check` takes them there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n"
        for path in files
        if path.name not in (SUMS, f"{SUMS}.asc")
    )


# --- apt ------------------------------------------------------------------------------------


def apt(folder: Path, debs: dict[str, list[Path]], when_s: int, signer: Signer) -> None:
    """A repository with the packages of each suite."""
    pool = folder / "pool"
    for suite, packages in debs.items():
        here = pool / suite
        here.mkdir(parents=True)
        for package in packages:
            shutil.copy(package, here)
        suite_folder = folder / "dists" / suite
        architectures = sorted({_architecture(path) for path in packages} - {"all"} | {"amd64"})
        for architecture in architectures:
            index = suite_folder / COMPONENT / f"binary-{architecture}" / "Packages"
            index.parent.mkdir(parents=True)
            words = ("--multiversion", "--arch", architecture, f"pool/{suite}")
            index.write_text(_run("dpkg-scanpackages", *words, cwd=folder))
            packed = gzip.compress(index.read_bytes(), 9, mtime=0)
            index.with_name("Packages.gz").write_bytes(packed)
        release = suite_folder / "Release"
        release.write_text(_release(suite_folder, suite, architectures, when_s))
        signer.inline(release, suite_folder / "InRelease")
        signer.detached(release).rename(suite_folder / "Release.gpg")


def _architecture(package: Path) -> str:
    return package.stem.rpartition("_")[2]


def _release(folder: Path, suite: str, architectures: Iterable[str], when_s: int) -> str:
    stamp = time.strftime("%a, %d %b %Y %H:%M:%S UTC", time.gmtime(when_s))
    head = {
        "Origin": "ha-agent",
        "Label": "ha-agent",
        "Suite": suite,
        "Codename": suite,
        "Date": stamp,
        "Architectures": " ".join(architectures),
        "Components": COMPONENT,
    }
    lines = [f"{name}: {value}" for name, value in head.items()] + ["SHA256:"]
    for path in sorted(folder.rglob("Packages*")):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        lines.append(f" {digest} {len(content)} {path.relative_to(folder)}")
    return "\n".join(lines) + "\n"


# --- dnf ------------------------------------------------------------------------------------


def dnf(folder: Path, rpms: Iterable[Path], signer: Signer) -> None:
    """A repository with the RPMs. Its index is signed (repo_gpgcheck=1), and by it every file."""
    if shutil.which("createrepo_c") is None:
        raise ReleaseError("createrepo_c is not installed; apt install createrepo-c")
    folder.mkdir(parents=True)
    for path in rpms:
        shutil.copy(path, folder)
    _run("createrepo_c", "--no-database", str(folder))
    signer.detached(folder / "repodata" / "repomd.xml")


# --- sources --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DebianSource:
    """What the source package of one target says. `architecture`: any or all."""

    target: str
    version: str
    maintainer: str
    architecture: str
    depends: str
    changelog: str
    copyright: str


def debian_source(source: Path, given: DebianSource, to: Path) -> list[Path]:
    """A source package for debhelper: `dpkg-buildpackage` makes the package of it. `source`: the
    unpacked source archive of the target."""
    to.mkdir(parents=True, exist_ok=True)
    folder = to / f"ha-agent-{given.version}"
    shutil.copytree(source, folder)
    debian = folder / "debian"
    (debian / "source").mkdir(parents=True)
    (debian / "source" / "format").write_text("3.0 (native)\n")
    (debian / "control").write_text(
        CONTROL.format(
            maintainer=given.maintainer, architecture=given.architecture, depends=given.depends
        )
    )
    (debian / "changelog").write_text(given.changelog)
    (debian / "copyright").write_text(given.copyright)
    (debian / "rules").write_text(RULES.format(target=given.target))
    (debian / "rules").chmod(0o755)
    shutil.copy(source / "packaging/deb/lintian-overrides", debian / "ha-agent.lintian-overrides")
    for script in ("postinst", "prerm", "postrm"):
        text = (source / "packaging/deb" / script).read_text()
        # What debhelper may add goes to the end.
        (debian / f"ha-agent.{script}").write_text(f"{text}#DEBHELPER#\n")
    _run("dpkg-source", "--build", folder.name, cwd=to)
    shutil.rmtree(folder)
    return sorted(to.glob(f"ha-agent_{given.version}*"))


def python_packages(source: Path, to: Path, python: str) -> None:
    """Wheel and source archive for pip, by the project's own build backend."""
    _run(python, "-m", "pip", "-q", "wheel", "--no-deps", "-w", str(to), str(source))
    line = "from setuptools.build_meta import build_sdist; import sys; build_sdist(sys.argv[1])"
    _run(python, "-c", line, str(to), cwd=source)


# --- all of it ------------------------------------------------------------------------------


def finish(folder: Path, signer: Signer) -> None:
    """Checksums, their signature, and the key."""
    signer.public(folder / PUBLIC_KEY)
    (folder / SUMS).write_text(sums(folder))
    signer.detached(folder / SUMS)


def instructions(folder: Path) -> str:
    """How the folder is used, where it is served at URL."""
    return (
        f"{folder}\n"
        f"check:  gpg --import {PUBLIC_KEY}; gpg --verify {SUMS}.asc; sha256sum --check {SUMS}\n"
        "apt:    deb [signed-by=/etc/apt/keyrings/ha-agent.asc] URL/apt bookworm main\n"
        f"dnf:    baseurl=URL/dnf repo_gpgcheck=1 gpgcheck=0 gpgkey=URL/{PUBLIC_KEY}"
    )
