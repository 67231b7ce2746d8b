# SPDX-License-Identifier: LGPL-2.1-or-later
"""The packages as files: nothing to complain about, the same bytes each time, everything in
them, and what is in them runs without the checkout."""

from __future__ import annotations

import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from .conftest import build
from .machine import ROOT

UNITS = ("ha-broker.service", "ha-agent.service")
EXPOSURE_MAX = 3.0


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program} is not installed; scripts/setup does it"
    )


def said(*command: str | Path, cwd: Path | None = None) -> str:
    """What a command printed; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def digests(paths: list[Path]) -> dict[str, str]:
    return {path.name: digest for path, digest in zip(paths, digests_of(paths), strict=True)}


def digests_of(paths: list[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


@needs("lintian")
@pytest.mark.parametrize("target", ["debian12", "debian13"])
def test_lintian_is_content(target: str, debs: dict[str, Path]) -> None:
    command = ["lintian", "--allow-root", "--fail-on", "error,warning", str(debs[target])]
    assert said(*command) == ""


@needs("lintian")
def test_the_page_for_cockpit_is_a_package_of_its_own(tmp_path: Path) -> None:
    (package,) = build("cockpit")
    said("lintian", "--allow-root", "--fail-on", "error,warning", package)
    before = digests_of([package])
    said("dpkg-deb", "--extract", package, tmp_path)
    pages = tmp_path / "usr/share/cockpit/ha-agent"
    here = sorted(said("git", "ls-files", "packaging/cockpit", cwd=ROOT).splitlines())
    assert sorted(path.name for path in pages.iterdir()) == [Path(name).name for name in here]
    for name in here:
        assert (pages / Path(name).name).read_bytes() == (ROOT / name).read_bytes()
    assert before == digests_of(build("cockpit")), "the same commit makes the same bytes"


@needs("rpmbuild")
@needs("rpmlint")
def test_rpmlint_is_content(rpms: dict[str, Path]) -> None:
    packaging = ROOT / "packaging" / "rpm"
    text = said(
        "rpmlint", "-r", packaging / "rpmlintrc", *rpms.values(), packaging / "ha-agent.spec"
    )
    assert "0 errors, 0 warnings" in text, text


@needs("rpmbuild")
def test_the_same_commit_makes_the_same_bytes(debs: dict[str, Path], rpms: dict[str, Path]) -> None:
    first = digests([*debs.values(), *rpms.values()])
    before = os.umask(0o077)
    try:
        second = digests([*build("deb", *debs), *build("rpm")])
    finally:
        os.umask(before)
    assert first == second


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", UNITS)
def test_the_units_leave_little_open(unit: str) -> None:
    path = ROOT / "packaging" / "systemd" / unit
    text = said("systemd-analyze", "security", "--no-pager", "--offline=true", path)
    (level,) = re.findall(r"exposure level for .*: ([0-9.]+)", text)
    assert float(level) <= EXPOSURE_MAX


@needs("checkmodule")
def test_the_selinux_module_compiles(tmp_path: Path) -> None:
    source = ROOT / "packaging" / "selinux"
    module = tmp_path / "ha_agent.mod"
    said("checkmodule", "-M", "-m", "-o", module, source / "ha_agent.te")
    package = ("-o", tmp_path / "ha_agent.pp", "-m", module, "-f", source / "ha_agent.fc")
    said("semodule_package", *package)


def test_what_is_bundled_is_pinned_named_and_licensed(debs: dict[str, Path]) -> None:
    for target, package in debs.items():
        pins = (ROOT / "packaging" / f"vendor-requirements.{target}.txt").read_text()
        pinned = set(re.findall(r"^([\w.-]+==\S+)", pins, re.MULTILINE))
        raw = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
        sbom = subprocess.run(
            ["tar", "-xO", "./usr/share/ha-agent/sbom.cdx.json"],
            input=raw.stdout,
            capture_output=True,
            check=True,
        )
        components = json.loads(sbom.stdout)["components"]
        assert {f"{c['name'].lower()}=={c['version']}" for c in components} == pinned
        assert all(c["licenses"][0]["license"]["name"] for c in components)
        names = said("dpkg-deb", "--contents", package)
        for component in components:
            folder = rf"bundled/{component['name']}-{component['version']}\.dist-info/.*LICENSE"
            assert re.search(folder, names, re.IGNORECASE), component["name"]


def test_every_library_the_code_needs_is_bundled_or_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split("[<>=]", name)[0] for name in project["dependencies"]}
    needed |= {"libvirt", "sanlock"}
    targets = tomllib.loads((ROOT / "packaging" / "targets.toml").read_text())
    spec = (ROOT / "packaging" / "rpm" / "ha-agent.spec").read_text()
    for target, given in targets.items():
        depends = {name.partition(" ")[0] for name in given["depends"]}
        if target == "rpm":
            depends = set(re.findall(r"^(?:Requires|Recommends): +(\S+)", spec, re.MULTILINE))
            depends |= {"python3-dnspython"} if "python3-dns" in depends else set()
            bundled = re.findall(r"bundled\(python3dist\((.*?)\)\)", spec)
            assert bundled == given["bundled"]
        for name in needed - set(given["bundled"]):
            assert f"python3-{name}" in depends, (target, name)


def test_the_checksums_are_taken_by_sha256sum(
    debs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "packaging")
    sums = runpy.run_path(str(ROOT / "packaging/build.py"))["sums"]
    for path in debs.values():
        shutil.copy(path, tmp_path)
    (tmp_path / "SHA256SUMS").write_text(sums(tmp_path.glob("*.deb")))
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert said(*check, cwd=tmp_path).count(": OK") == len(debs)
    next(iter(tmp_path.glob("*.deb"))).write_bytes(b"another one")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode == 1


def test_a_release_would_agree_with_itself() -> None:
    """What may keep HEAD from being one is told by the changelog, the tree or the tag alone."""
    command = [sys.executable, str(ROOT / "packaging/build.py"), "release"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    for line in done.stderr.splitlines()[1:]:
        assert re.search("unreleased|work tree|tag", line), line


#: Folders of packaging/ that are installed as they are; sysctl.conf on Debian alone.
INSTALLED = ("systemd", "prometheus", "grafana", "firewalld", "selinux")


@pytest.fixture(scope="session")
def deb_trees(debs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each deb installs, in a folder."""
    found = {target: tmp_path_factory.mktemp(target) for target in debs}
    for target, package in debs.items():
        said("dpkg-deb", "--extract", package, found[target])
    return found


def trees(deb_trees: dict[str, Path], installed: Path) -> dict[str, Path]:
    """The trees of the packages for Debian, and the RPM's."""
    return {**deb_trees, "rpm": installed.parents[1]}


@needs("rpmbuild")
@needs("cpio")
def test_everything_that_is_to_be_installed_is_in_each_package(
    deb_trees: dict[str, Path], installed: Path
) -> None:
    rooms = said("git", "ls-files", "scoring", "broker", "agent", cwd=ROOT).splitlines()
    assert "broker/api/page/index.html" in rooms
    shares = (f"packaging/{folder}" for folder in INSTALLED)
    shared = [ROOT / name for name in said("git", "ls-files", *shares, cwd=ROOT).splitlines()]
    for target, root in trees(deb_trees, installed).items():
        for name in rooms:
            assert (root / "usr/lib/ha-agent" / name).read_bytes() == (ROOT / name).read_bytes()
        assert not list(root.rglob("__pycache__"))
        there = set(digests_of([p for p in root.rglob("*") if p.is_file()]))
        for path in shared:
            if target != "rpm" or path.name != "sysctl.conf":
                assert digests_of([path])[0] in there, (target, path)
        for page in ("man5/ha-agent.toml.5", "man8/ha-agent.8", "man8/ha-broker.8"):
            assert (root / "usr/share/man" / f"{page}.gz").stat().st_size > 500, page
        for shell in ("bash-completion", "zsh", "fish"):
            offered = [p for p in (root / "usr/share" / shell).rglob("*") if p.is_file()]
            assert len(offered) == 1, (target, shell)
            assert "ARGCOMPLETE" in offered[0].read_text()


@needs("rpmbuild")
@needs("cpio")
def test_no_installed_page_leads_to_one_that_is_not(
    deb_trees: dict[str, Path], installed: Path
) -> None:
    for target, root in trees(deb_trees, installed).items():
        (folder,) = {page.parent for page in root.glob("usr/share/doc/**/operations.md")}
        for page in folder.rglob("*.md"):
            for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
                assert (page.parent / link).exists(), (target, page, link)


def test_what_init_writes_is_no_file_of_a_package(
    debs: dict[str, Path], rpms: dict[str, Path]
) -> None:
    """A file that both a person and the package change has dpkg ask at an upgrade."""
    default = "/usr/share/ha-agent/ha-agent.toml"
    for package in debs.values():
        names = said("dpkg-deb", "--contents", package)
        assert f".{default}\n" in names
        assert " ./etc/" not in names
        assert "conffiles" not in said("dpkg-deb", "--info", package)
    with_flags = said("rpm", "-qp", "--qf", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]", rpms["noarch"])
    flags = dict(line.rsplit(" ", 1) for line in with_flags.splitlines())
    assert flags["/etc/ha-agent/ha-agent.toml"] == "cng", "config, noreplace, ghost: not shipped"
    assert flags[default] == ""


def test_the_alerts_lead_to_a_page_that_is_installed(
    debs: dict[str, Path], rpms: dict[str, Path]
) -> None:
    deb = said("dpkg-deb", "--contents", debs["debian12"])
    rpm = said("rpm", "-qpl", rpms["noarch"])
    share = "/usr/share/ha-agent"
    rules = f"{share}/prometheus/ha-agent.rules.yml"
    for path in (rules, f"{share}/grafana/ha-agent.json", "/usr/share/doc/ha-agent/operations.md"):
        assert f".{path}\n" in deb
        assert f"{path}\n" in rpm


@pytest.fixture(scope="session")
def installed(rpms: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The RPM's tree, its commands started by this environment's Python.

    That has the libraries which the RPM takes from EL's and Fedora's own packages. The
    folder with the commands.
    """
    root = tmp_path_factory.mktemp("rpm")
    archive = root / "content.cpio"
    with archive.open("wb") as out:
        subprocess.run(["rpm2cpio", rpms["noarch"]], stdout=out, check=True)
    with archive.open("rb") as content:
        subprocess.run(["cpio", "-idm", "--quiet"], stdin=content, cwd=root, check=True)
    commands = root / "usr" / "bin"
    for path in commands.iterdir():
        first, rest = path.read_text().split("\n", 1)
        assert first == "#!/usr/bin/python3 -I"
        path.write_text(f"#!{sys.executable}\n{rest}")
    return commands


@needs("rpmbuild")
@needs("cpio")
def test_the_installed_tree_runs_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    for program in ("ha-agent", "ha-broker"):
        told = subprocess.run(
            [sys.executable, "-v", installed / program, "--help"],
            capture_output=True,
            text=True,
            cwd="/",
        )
        assert told.returncode == 0
        assert f"usage: {program}" in told.stdout
        mine = re.findall(r"from '?(\S*/(?:scoring|broker|agent)/\w+\.py)", told.stderr)
        assert mine
        assert all(Path(path).is_relative_to(installed.parent) for path in mine), mine
    written = installed.parent / "lib/ha-agent/agent/setup/written.py"
    assert runpy.run_path(str(written))["COMMENTED"].read_text().startswith("# Configuration")
    whiteboard = tmp_path / "whiteboard"
    whiteboard.write_bytes(bytes(4096 * 2001))
    assert json.loads(said(installed / "ha-agent", "whiteboard", "dump", whiteboard, "--json"))


@needs("rpmbuild")
def test_the_source_package_builds_by_itself(rpms: dict[str, Path], tmp_path: Path) -> None:
    """Without a checkout and without a network: everything is in the archive."""
    top = f"_topdir {tmp_path}"
    said("rpmbuild", "--rebuild", "--nodeps", "-D", top, rpms["src"], cwd=tmp_path)
    assert list(tmp_path.glob("RPMS/noarch/*.rpm"))


def test_the_source_archive_is_complete(rpms: dict[str, Path]) -> None:
    (archive,) = (ROOT / "build" / "rpm" / "SOURCES").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"LICENSE", "packaging/install.py", "generated/ha-agent.8", "wheels"} <= names


@needs("rpmbuild")
def test_a_power_cut_is_survived_by_the_installed_tree(installed: Path) -> None:
    """The lab's own test, with its hosts running what was installed."""
    test = "tests/lab/test_takeover.py::test_a_power_cut_is_survived_and_the_host_comes_back"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        cwd=ROOT,
        env={**os.environ, "HA_LAB_COMMANDS": str(installed)},
        capture_output=True,
        text=True,
    )
    if "1 skipped" in done.stdout:
        pytest.skip("the lab cannot run here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
