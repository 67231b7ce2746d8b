# SPDX-License-Identifier: LGPL-2.1-or-later
"""sanlock daemons of a test's own, each with a run directory of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

needs_sanlock = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("sanlock") is None, reason="needs root and sanlock"
)


#: Runs its arguments without the machine's own sanlock.conf, which may give every sanlock a name.
_WITHOUT_CONF = (
    *("unshare", "--mount", "sh", "-ec"),
    '[ ! -d /etc/sanlock ] || mount -t tmpfs none /etc/sanlock; exec "$@"',
    "sh",
)


class Daemon:
    """A sanlock daemon with a run directory of its own, which does not see the machine's
    sanlock.conf. `name` "": it makes one up."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir()
        self.environment = {
            **os.environ,
            "SANLOCK_RUN_DIR": str(folder),
            "SANLOCK_PRIVILEGED": "0",
        }
        argv = ["sanlock", "daemon", "-D", "-w", "0", "-l", "0", "-h", "0", "-U", "root"]
        argv += ["-G", "root", *(("-e", name) if name else ())]
        self.process = subprocess.Popen(
            [*_WITHOUT_CONF, *argv],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # sanlock's socket is there a moment before sanlock listens on it.
        while self.client("status").returncode:
            assert self.process.poll() is None
            time.sleep(0.02)

    def client(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sanlock", "client", *words], env=self.environment, capture_output=True, text=True
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
