# SPDX-License-Identifier: LGPL-2.1-or-later
"""The simulation runs with Python alone (`make demo-sim`): where neither sanlock's nor libvirt's
library is installed. Its deadlines are the product's own, so they must stand in modules that do
without them."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = """
import importlib, sys
for name in ("sanlock", "libvirt", "libvirt_qemu", "libvirtmod"):
    sys.modules[name] = None
importlib.import_module("tests.simulation.demo")
importlib.import_module("tests.simulation.world")
"""


def test_the_simulation_loads_without_sanlock_and_libvirt() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
