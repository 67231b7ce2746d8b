# SPDX-License-Identifier: LGPL-2.1-or-later
"""One sanlock daemon for all suites: its library remembers where its daemon was when it is first
asked, for as long as the process lives."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.real import NAME

FOLDER = Path(tempfile.mkdtemp(prefix="ha-sanlock-"))
# Before any test of this process asks: a folder without a daemon is as good as none to the others.
os.environ.update({"SANLOCK_RUN_DIR": str(FOLDER), "SANLOCK_PRIVILEGED": "0"})


@pytest.fixture(scope="session")
def sanlock_daemon() -> Iterator[None]:
    """A daemon that this process's calls go to, without a watchdog."""
    if os.geteuid() != 0 or shutil.which("sanlock") is None:
        pytest.skip("needs root and sanlock")
    argv = ["sanlock", "daemon", "-D", "-w", "0", "-l", "0", "-h", "0", "-U", "root", "-G", "root"]
    silent = subprocess.DEVNULL
    with subprocess.Popen([*argv, "-e", NAME], stdout=silent, stderr=silent) as process:
        while not (FOLDER / "sanlock.sock").exists():
            assert process.poll() is None
            time.sleep(0.02)
        yield
        process.kill()


def pytest_sessionfinish() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
