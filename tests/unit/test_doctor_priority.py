# SPDX-License-Identifier: LGPL-2.1-or-later
"""doctor does not wait for busy programs, where its user may go before them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
from agent.doctor import priority
os.setpriority(os.PRIO_PROCESS, 0, int(sys.argv[1]))
if sys.argv[2] != "0":
    os.setresuid(*[int(sys.argv[2])] * 3)
priority.go_first()
print(os.getpriority(os.PRIO_PROCESS, 0))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a priority to give")
@pytest.mark.parametrize(
    ("given", "user", "nice"),
    [(0, 0, -10), (5, 0, 5), (0, 65534, 0)],
    ids=["as-usual", "given-another", "may-not"],
)
def test_doctor_goes_first_where_it_may(given: int, user: int, nice: int) -> None:
    command = [sys.executable, "-c", SCRIPT, str(given), str(user)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"{nice}\n", done.stderr
