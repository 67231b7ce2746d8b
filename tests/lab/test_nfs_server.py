# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two labs with an NFS server at once do not share an rpcbind."""

from __future__ import annotations

import subprocess
from pathlib import Path

from . import ask, machine
from .environment import clean
from .storages import kinds, nfs


def test_each_server_has_an_rpcbind(able: None, tmp_path: Path) -> None:
    """The second one's ended at once; its ganesha, killed and started again after the first lab had
    gone, found none and ended too, and whoever read from that storage hung."""
    machine.install(kinds.NFS)
    running = []
    try:
        for name in ("one", "other"):
            command = ["unshare", "--net", *nfs.rpcbind(tmp_path / name)]
            running.append(subprocess.Popen(command, env=clean(), stderr=subprocess.PIPE))
        sockets = [tmp_path / name / "run/rpcbind.sock" for name in ("one", "other")]

        def is_over() -> bool:
            ended = any(each.poll() is not None for each in running)
            return ended or all(socket.exists() for socket in sockets)

        ask.until("both answer, or one has ended", 60.0, is_over)
        assert [each.poll() for each in running] == [None, None]
    finally:
        for each in running:
            each.kill()
            each.communicate()
