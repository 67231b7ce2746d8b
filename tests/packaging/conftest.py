# SPDX-License-Identifier: LGPL-2.1-or-later
"""The packages, built once for all tests of the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
