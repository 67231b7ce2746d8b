# SPDX-License-Identifier: LGPL-2.1-or-later
"""The folder of a release: signed, whole, and installable by apt, dpkg-buildpackage and rpm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .machine import ROOT, Machine, machines, why_not

BUILD = ROOT / "packaging" / "build.py"
KEY = "release-test@packages.invalid"


def run(
    *words: str | Path, home: Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A command, with keys of its own."""
    environment = {**os.environ, "GNUPGHOME": str(home), "LC_ALL": "C.UTF-8"}
    return subprocess.run(words, capture_output=True, text=True, env=environment, cwd=cwd or ROOT)


def must(*words: str | Path, home: Path, cwd: Path | None = None) -> str:
    done = run(*words, home=home, cwd=cwd)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of gpg's with one key. Short: gpg's agent has a socket in it."""
    folder = tmp_path_factory.mktemp("gpg")
    folder.chmod(0o700)
    words = ("--batch", "--passphrase", "", "--quick-generate-key", KEY, "ed25519", "sign", "never")
    must("gpg", *words, home=folder)
    yield folder
    run("gpgconf", "--kill", "gpg-agent", home=folder)


@pytest.fixture(scope="module")
def folder(home: Path) -> Path:
    """The release of this commit."""
    words = (sys.executable, BUILD, "release", "--key", KEY, "--snapshot")
    return Path(must(*words, home=home).splitlines()[0])


def test_without_a_key_or_with_one_that_is_not_there_nothing_is_made(home: Path) -> None:
    for words, said in (
        ((), "no key is named: make release KEY=ID"),
        (("--key", "nobody@packages.invalid", "--snapshot"), "gpg has no secret key"),
    ):
        done = run(sys.executable, BUILD, "release", *words, home=home)
        assert done.returncode == 1 and said in done.stderr, done.stderr


def test_what_is_published_is_whole_and_signed(folder: Path, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "g"
    other.mkdir(mode=0o700)
    must("gpg", "--import", folder / "KEY.asc", home=other)
    must("gpg", "--verify", folder / "SHA256SUMS.asc", folder / "SHA256SUMS", home=other)
    must("sha256sum", "--check", "--strict", "SHA256SUMS", home=other, cwd=folder)
    named = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert there - named == {"SHA256SUMS", "SHA256SUMS.asc"}
    for kind in (
        r"ha-agent_.*debian12_amd64\.deb",
        r"ha-agent_.*debian13_all\.deb",
        r"cockpit-ha-agent_.*\.deb",
        r"ha-agent-.*\.noarch\.rpm",
        r"ha-agent-.*\.src\.rpm",
        r"ha_agent-.*\.whl",
        r"ha[-_]agent-.*\.tar\.gz",
    ):
        assert len([name for name in there if re.fullmatch(kind, name)]) == 1, kind
    must(
        "gpg",
        "--verify",
        folder / "dnf/repodata/repomd.xml.asc",
        folder / "dnf/repodata/repomd.xml",
        home=other,
    )
    run("gpgconf", "--kill", "gpg-agent", home=other)


@pytest.mark.skipif(shutil.which("dh") is None, reason="debhelper is not installed")
def test_the_source_package_builds_the_package(folder: Path, home: Path, tmp_path: Path) -> None:
    (dsc,) = (folder / "debian").glob("*debian12.dsc")
    must("dpkg-source", "--extract", dsc, tmp_path / "src", home=home, cwd=tmp_path)
    # What it depends on to be built is looked at by dpkg: debhelper and Python.
    must("dpkg-buildpackage", "-b", "-us", "-uc", home=home, cwd=tmp_path / "src")
    (built,) = tmp_path.glob("ha-agent_*.deb")
    (ours,) = folder.glob("ha-agent_*debian12_*.deb")

    def content(package: Path) -> set[str]:
        lines = must("dpkg-deb", "--contents", package, home=home).splitlines()
        return {line.split()[5] for line in lines}

    def fields(package: Path) -> str:
        return must("dpkg-deb", "--field", package, "Package", "Version", "Depends", home=home)

    assert {p for p in content(ours) if "/doc/" not in p} <= content(built)
    assert fields(built) == fields(ours)


@pytest.fixture
def bare(directory: Path) -> Iterator[Machine]:
    for (machine,) in machines("bookworm", directory, 1):
        yield machine


@pytest.mark.skipif(bool(why_not()), reason=f"no machine can be made: {why_not()}")
def test_apt_installs_from_the_repository_and_believes_its_key_alone(
    folder: Path, bare: Machine
) -> None:
    there = Path(f"/proc/{bare.first}/root/srv/release")
    shutil.copytree(folder, there)
    line = "deb [signed-by=/srv/release/KEY.asc] file:/srv/release/apt bookworm main\n"
    bare.write("/etc/apt/sources.list", line)
    bare.must("apt-get", "update")
    said = bare.must("apt-get", "install", "--yes", "--no-install-recommends", "ha-agent")
    assert "cannot be authenticated" not in said
    assert "usage: ha-agent" in bare.must("ha-agent", "--help")
    index = there / "apt/dists/bookworm/InRelease"
    index.write_text(index.read_text().replace("Origin: ha-agent", "Origin: ha-agenT"))
    (there / "apt/dists/bookworm/Release.gpg").unlink()
    bare.must("sh", "-c", "rm -rf /var/lib/apt/lists/*")
    assert bare.run("apt-get", "update").returncode != 0, "a changed index is refused"
