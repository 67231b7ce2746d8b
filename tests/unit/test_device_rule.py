# SPDX-License-Identifier: LGPL-2.1-or-later
"""Block devices belong to the daemons now and after a boot, and no rule names a device by a name
that another one may have then."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.doctor import host
from agent.storage import device_rule
from agent.storage.device_rule import devices_step, rule_of
from agent.terminal.errors import CommandError
from agent.terminal.steps import Step
from broker.config.sections import StorageSection

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a device's node")
Make = Callable[..., str]
OWNER = 'OWNER="ha-agent", GROUP="sanlock", MODE="0660"'


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a device's node, and what the kernel says of it."""
    monkeypatch.setattr(device_rule, "SYS_BLOCK", tmp_path / "sys")
    monkeypatch.setattr(device_rule, "owner_ids", lambda: (4242, 4343))
    minor = iter(range(200, 250))

    def made(name: str, mapper: str = "") -> str:
        number = next(minor)
        device = tmp_path / "devices" / name
        (device / "dm").mkdir(parents=True)
        if mapper:
            (device / "dm" / "name").write_text(f"{mapper}\n")
        (tmp_path / "sys").mkdir(exist_ok=True)
        (tmp_path / "sys" / f"7:{number}").symlink_to(device)
        path = tmp_path / name
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(7, number))
        return str(path)

    return made


def test_a_device_is_named_as_it_stays(make: Make) -> None:
    assert rule_of(make("loop7")) == f'SUBSYSTEM=="block", KERNEL=="loop7", {OWNER}'
    mapper = rule_of(make("dm-3", "vg-ha--leases"))
    assert mapper == f'SUBSYSTEM=="block", ENV{{DM_NAME}}=="vg-ha--leases", {OWNER}'


def test_a_link_of_udev_is_named_by_the_link(make: Make) -> None:
    link = Path(f"/dev/ha-agent-test-{os.getpid()}")
    link.symlink_to(make("sdb"))
    try:
        assert rule_of(str(link)) == f'SUBSYSTEM=="block", SYMLINK=="{link.name}", {OWNER}'
    finally:
        link.unlink()


@pytest.mark.parametrize("name", ["sdb", "sdaa1", "vdc", "nvme0n1p2", "a*b"])
def test_a_name_that_may_change_is_refused(make: Make, name: str) -> None:
    with pytest.raises(CommandError, match="/dev/disk/by-id"):
        rule_of(make(name))


def steps(rules: Path, whiteboard: str, leases: str) -> list[Step]:
    return devices_step(StorageSection(whiteboard=whiteboard, leases=leases), rules)


def test_devices_get_their_owner_now_and_after_a_boot_once(make: Make, tmp_path: Path) -> None:
    rules, places = tmp_path / "rules.d" / "90.rules", (make("loop1"), make("loop2"))
    rules.parent.mkdir()
    rules.write_text("# somebody's own line\n")
    (step,) = steps(rules, *places)
    assert step.look() is None
    assert "4242" not in step.act()
    for path in places:
        found = Path(path).stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (4242, 4343, 0o660)
    lines = rules.read_text().splitlines()
    assert lines[0] == "# somebody's own line"
    assert [line.split('"')[3] for line in lines[1:]] == ["loop1", "loop2"]
    assert step.look() is not None
    Path(places[0]).chmod(0o600)
    assert step.look() is None, "as after a boot without the rule"
    step.act()
    assert rules.read_text().splitlines() == lines


def test_files_and_a_host_without_the_package_s_user_have_no_such_step(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "whiteboard"
    file.touch()
    assert steps(tmp_path / "r", str(file), str(tmp_path / "not-there")) == []
    monkeypatch.setattr(device_rule, "owner_ids", lambda: (-1, 105))
    assert steps(tmp_path / "r", make("loop1"), str(file)) == []


def test_doctor_says_the_rule_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("loop9")
    said = host._after_a_boot(path, Path(path).stat())
    assert rule_of(path) in said
    assert str(device_rule.RULES) in said
    assert host._after_a_boot(__file__, Path(__file__).stat()) == ""
