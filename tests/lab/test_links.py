# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's own network does not fail with a host: an idle server behind a bridge whose address
changed was not reached for up to 107 s, and it looked like the storage's fault."""

from __future__ import annotations

import subprocess
import sys

from .layout import CHECKOUT

#: Takes out of a bridge the port with the lowest address, as a host that loses its power does.
SCRIPT = """
from tests.lab.links import bridge, ip
from tests.lab.namespaces import CLONE_NEWNET, unshare
import subprocess
unshare(CLONE_NEWNET)
def address():
    words = ["ip", "-br", "link", "show", "dev", "sw"]
    return subprocess.run(words, capture_output=True, text=True).stdout.split()[2]
ip(bridge("sw", "52:54:00:4e:00:09"))
for port, mac in (("high", "52:54:00:ff:00:01"), ("low", "02:00:00:00:00:01")):
    ip([
        f"link add name {port} address {mac} type veth peer name {port}-host",
        f"link set {port} master sw",
    ])
print(address())
ip(["link del low"])
print(address())
"""


def test_the_address_of_a_switch_stays_when_a_host_loses_its_power(able: None) -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["52:54:00:4e:00:09"] * 2, done.stderr
