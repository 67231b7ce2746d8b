# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ansible's way into a machine of machine.py: nsenter instead of ssh. Everything else is as it
is for any host: modules are copied there and run by the machine's own Python."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: nsenter
short_description: enter the namespaces of a process
description: runs commands in the namespaces and the root of a process of this machine
options:
  first:
    description: the process, by its number here
    required: true
    vars:
      - name: ansible_nsenter_pid
"""
CLEAN = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8")


class Connection(ConnectionBase):  # type: ignore[misc]
    """One machine."""

    transport = "nsenter"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def _run(self, argv: list[str], data: bytes | None) -> subprocess.CompletedProcess[bytes]:
        enter = ["nsenter", "-t", str(self.get_option("first"))]
        enter += ["-m", "-u", "-n", "-p", "-C", "-r", "-w", "--", *CLEAN]
        # Nothing to read is the end of input at once, never this program's own.
        return subprocess.run([*enter, *argv], capture_output=True, input=data or b"")

    def exec_command(
        self, cmd: str, in_data: bytes | None = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        done = self._run(["/bin/sh", "-c", cmd], in_data or None)
        return done.returncode, done.stdout, done.stderr

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        done = self._run(["/bin/sh", "-c", 'cat > "$1"', "-", out_path], Path(in_path).read_bytes())
        if done.returncode != 0:
            raise AnsibleConnectionFailure(f"{out_path}: {done.stderr.decode()}")

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        done = self._run(["cat", in_path], None)
        if done.returncode != 0:
            raise AnsibleConnectionFailure(f"{in_path}: {done.stderr.decode()}")
        Path(out_path).write_bytes(done.stdout)

    def close(self) -> None:
        self._connected = False
