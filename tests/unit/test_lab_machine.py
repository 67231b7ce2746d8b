# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a storage of the lab needs is installed when it is asked for, or the reason is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import machine
from tests.lab.errors import MachineError
from tests.lab.storages import kinds


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose scripts/setup notes what it is asked for, and cannot install it."""
    script = tmp_path / "scripts/setup"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/asked\nexit 1\n')
    script.chmod(0o755)
    monkeypatch.setattr(machine, "CHECKOUT", tmp_path)
    monkeypatch.setitem(kinds.NEEDED, kinds.CEPH, {"no-such-program": "no-such-package"})
    return tmp_path / "asked"


def test_what_cannot_be_installed_is_the_machine_s_lack(setup: Path) -> None:
    """A test then skips, and `up` says that nothing was started."""
    with pytest.raises(MachineError, match="ceph: its packages could not be installed"):
        machine.install(kinds.CEPH)
    assert setup.read_text() == "--also no-such-package\n"


def test_a_storage_that_needs_nothing_installs_nothing(setup: Path) -> None:
    machine.install(kinds.DIR)
    assert not setup.exists()
