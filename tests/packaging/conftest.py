# SPDX-License-Identifier: LGPL-2.1-or-later
"""The packages, built once for all tests of the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .machine import KEPT, RELEASES, ROOT

CHOSEN = os.environ.get("HA_PACKAGE_RELEASES", "bookworm").split(",")


def build(*arguments: str) -> list[Path]:
    """Run packaging/build.py; what it made."""
    command = [sys.executable, str(ROOT / "packaging/build.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="session")
def debs() -> dict[str, Path]:
    """The Debian packages by their target."""
    names = ("debian12", "debian13")
    return dict(zip(names, build("deb", *names), strict=True))


@pytest.fixture(scope="session")
def rpms() -> dict[str, Path]:
    """The RPMs: `noarch` and `src`."""
    return {path.suffixes[-2].lstrip("."): path for path in build("rpm")}


@pytest.fixture
def directory() -> Iterator[Path]:
    """On a disk: an overlay's upper folder cannot be on a tmpfs of every kernel."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="m-", dir=KEPT))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=CHOSEN)
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def package(release: str, debs: dict[str, Path]) -> Path:
    """The deb for the release."""
    return debs[RELEASES[release]]
