# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the product counts on where a freeing of a host id does not end, on the real sanlock and a
real mount: the fence lease stays with the process, and the process with its write."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import PARENT


@pytest.fixture
def folder() -> Iterator[Path]:
    PARENT.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="late-", dir=PARENT))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def experiment(what: str, folder: Path) -> Any:
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable]
    argv += ["-m", "tests.lab.late_freeing", what, str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_fence_lease_stays_with_the_process_that_frees(able: None, folder: Path) -> None:
    assert experiment("lease", folder) == {
        "owners, not joined": [],
        "owners, agent killed": [1],
        "acquire": errno.EEXIST,
        "leave": errno.EBUSY,
        "owners, child ended": [],
        "leave then": 0,
    }


def test_a_killed_freeing_ends_when_its_write_has_landed(able: None, folder: Path) -> None:
    assert experiment("write", folder) == {
        "over, killed": False,
        "held": True,
        "code": -1,
        "held then": False,
        "free": True,
    }
