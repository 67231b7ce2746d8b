# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's storage asks for libfuse 3 by name: beside libfuse 2, which sshfs, ceph-fuse and
glusterfs-client bring, mfusepy would take that one, and no lab comes up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: What is asked of the loader, in that order, on a machine that has libfuse 2 as well.
_CODE = """
import ctypes.util
found = ctypes.util.find_library
asked = []
def find(name):
    if "fuse" in name:
        asked.append(name)
    return found("fuse3") if name == "fuse3" else "libfuse.so.2" if name == "fuse" else found(name)
ctypes.util.find_library = find
try:
    import tests.lab.host_storage
except OSError as error:
    print(error)
print(asked)
"""


def test_the_lab_asks_for_libfuse_3_by_name() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "FUSE_LIBRARY_NAME"}
    done = subprocess.run(
        [sys.executable, "-c", _CODE],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.splitlines()[-1:] == ["['fuse3']"], done.stdout + done.stderr
