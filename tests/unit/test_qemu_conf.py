# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's files are read as libvirt reads them: each case goes through its own parser too."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from agent.terminal.errors import CommandError
from agent.vm import qemu_conf
from agent.vm.qemu_conf import lock_driver_step
from broker.config.load import load
from broker.monitors.lock_driver import LockDriverMonitor
from broker.monitors.runner import MonitorRunner, Verdict
from broker.vm.qemu_conf import (
    LOCK_MANAGER_LINE,
    NO_DISK_LEASES_LINE,
    disk_leases_required,
    lock_driver_named,
    sanlock_conf,
)

#: libvirt's parser in a process of its own: these functions are private, and no promise.
LIBVIRT = """
import ctypes, libvirt, sys
libvirt.registerErrorHandler(lambda context, error: None, None)
library = ctypes.CDLL("libvirt.so.0")
library.virInitialize()
library.virConfReadString.restype = ctypes.c_void_p
library.virConfReadString.argtypes = [ctypes.c_char_p, ctypes.c_uint]
for name in ("virConfGetValueString", "virConfGetValueBool"):
    getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
conf = library.virConfReadString(sys.stdin.buffer.read(), 0)
if not conf:
    print("refused")
    sys.exit()
text, flag = ctypes.c_char_p(), ctypes.c_bool()
library.virConfGetValueString(conf, b"lock_manager", ctypes.byref(text))
said = library.virConfGetValueBool(conf, b"require_lease_for_disks", ctypes.byref(flag))
print(text.value == b"sanlock", {1: flag.value, 0: None}.get(said, "refused"))
"""

#: A text, whether it names sanlock, and what it says of leases for disks.
CASES: list[tuple[str, bool, bool | None]] = [
    ("", False, None),
    ('lock_manager = "sanlock"', True, None),
    ("lock_manager='sanlock' # why", True, None),
    ('  lock_manager = """sanlock"""\n', True, None),
    ('# lock_manager = "sanlock"\n', False, None),
    ('lock_manager = "lockd"\nlock_manager = "sanlock"\n', False, None),
    ('lock_manager = "sanlock"\nlock_manager = "lockd"\n', True, None),
    ('note = """\nlock_manager = "sanlock"\n"""\n', False, None),
    ('users = [ "a",\n  "b" ]\nlock_manager = "sanlock"\n', True, None),
    ("require_lease_for_disks = 0 # c\n", False, False),
    ("require_lease_for_disks = 1\nrequire_lease_for_disks = 0\n", False, True),
]


@pytest.mark.parametrize(("text", "is_named", "required"), CASES)
def test_what_the_files_say(
    tmp_path: Path, text: str, is_named: bool, required: bool | None
) -> None:
    path = tmp_path / "qemu.conf"
    path.write_text(text)
    sanlock_conf(str(path)).write_text(text)
    assert lock_driver_named(str(path)) is is_named
    assert disk_leases_required(str(path)) is required


def test_libvirt_itself_says_the_same() -> None:
    for text, is_named, required in CASES:
        done = subprocess.run(
            [sys.executable, "-c", LIBVIRT], input=text.encode(), capture_output=True, timeout=30
        )
        if done.returncode != 0:
            pytest.skip(f"this libvirt does not let its parser be called: {done.stderr!r}")
        assert done.stdout.decode().strip() == f"{is_named} {required}", text


def test_a_driver_that_makes_the_leases_by_itself_requires_none(tmp_path: Path) -> None:
    path = str(tmp_path / "qemu.conf")
    assert disk_leases_required(path) is None, "there is no file"
    sanlock_conf(path).write_text("auto_disk_leases = 1\n")
    assert disk_leases_required(path) is False
    sanlock_conf(path).write_text("auto_disk_leases = 0\n")
    assert disk_leases_required(path) is None


def test_the_monitor_tells_a_wrong_file_from_one_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "qemu.conf"

    async def look() -> tuple[object, Verdict, str]:
        runner = MonitorRunner([LockDriverMonitor(str(path))])
        running = asyncio.create_task(runner.run())
        while not runner.latest:
            await asyncio.sleep(0)
        running.cancel()
        sample = runner.latest["lock_driver"]
        return sample.value, sample.verdict, sample.problem

    assert asyncio.run(look()) == (None, Verdict.UNKNOWN, f"{path} cannot be read")
    path.write_text('lock_manager = "lockd"\n')
    value, verdict, problem = asyncio.run(look())
    assert (value, verdict) == (False, Verdict.BAD)
    assert 'set lock_manager = "sanlock" and restart libvirt' in problem
    path.write_text('lock_manager = "sanlock"\n')
    assert asyncio.run(look()) == (True, Verdict.OK, "")


def test_the_lines_are_set_where_it_was_asked_for_and_only_at_the_end_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_conf, "restart_libvirt", lambda: "set")
    conf = tmp_path / "qemu.conf"
    given = tmp_path / "ha-agent.toml"
    given.write_text(
        '[host]\nid = 1\n[storage]\nwhiteboard = "/w"\nleases = "/l"\n'
        f'[libvirt]\nqemu-conf = "{conf}"\n'
    )
    config = load(str(given))
    conf.write_text('# mine\n#lock_manager = "lockd"\n')
    with pytest.raises(CommandError, match="--set-libvirt"):
        lock_driver_step(config).look()
    step = lock_driver_step(config, may_set=True)
    assert step.look() is None
    step.act()
    assert conf.read_text() == f'# mine\n#lock_manager = "lockd"\n{LOCK_MANAGER_LINE}\n'
    assert sanlock_conf(str(conf)).read_text() == f"{NO_DISK_LEASES_LINE}\n"
    assert step.look() is not None, "and a second time nothing is to be done"
    # Another driver is the administrator's to take out.
    conf.write_text('lock_manager = "lockd"\n')
    with pytest.raises(CommandError, match="must go"):
        step.look()
    conf.unlink()
    with pytest.raises(CommandError, match="is not there"):
        step.look()
