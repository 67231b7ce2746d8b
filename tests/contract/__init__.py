# SPDX-License-Identifier: LGPL-2.1-or-later
"""One suite per port, on the simulated and on the real adapter alike.

What the simulation proves holds in life as far as its adapters do what the real ones do. A test
here is asked of a *site*: an adapter with a world behind it that can be broken. `simulated.py` has
the sites in virtual time; `real.py` those with a file, a real sanlock daemon and libvirt's own test
driver. What only QEMU can show (a second start, a lease that another host holds, a migration that
is not there) is in tests/lab/test_hypervisor_contract.py, with the same functions of `qemu.py`.

Where the two may differ, the test says so.
"""
