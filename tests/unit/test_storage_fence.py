# SPDX-License-Identifier: LGPL-2.1-or-later
"""Storage fencing: what is cut belongs to the dead boot of the host, and nothing without a proof.
The storage's command is a program in a folder, which writes down how it was called."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec
import pytest

from agent.commands.fence_test import storage_tests
from agent.doctor import checks
from agent.fence.storage import (
    CephClients,
    GlusterLocks,
    StorageCommand,
    StorageFence,
    off_twice,
    same_host,
)
from agent.fence.storage_program import StorageFenceError, run
from broker.config.load import load
from broker.config.storage_fence import StorageFenceSection

SESSIONS = [
    {"id": 11, "client_metadata": {"hostname": "host1"}},
    {"id": 12, "client_metadata": {"hostname": "host1.example.org"}},
    {"id": 13, "client_metadata": {"hostname": "host10"}},
    {"id": 14, "client_metadata": {}},
]


class Storage:
    """A driver that writes down what it is asked for."""

    def __init__(self, calls: list[str], found: tuple[str, ...] = ("11",)) -> None:
        self.calls, self.found = calls, found

    def find(
        self, host: int, name: str, deadline_s: float, others: Collection[str] = ()
    ) -> tuple[str, ...]:
        self.calls.append("find")
        if name == "broken":
            raise StorageFenceError("no way")
        return self.found

    def cut(self, host: int, name: str, found: Sequence[str], deadline_s: float) -> None:
        self.calls.append(f"cut {' '.join(found)}")
        if name == "refuses":
            raise StorageFenceError("refused")


def cut(storage: Storage, problem: str = "", name: str = "host1") -> None:
    async def prove() -> str:
        storage.calls.append("prove")
        return problem

    asyncio.run(StorageFence("ceph", storage, 5.0).cut(1, name, prove))


def test_it_is_proven_after_it_was_found_and_before_it_is_cut() -> None:
    """A client of a host that was switched on meanwhile could be among the found otherwise."""
    storage = Storage([])
    cut(storage)
    assert storage.calls == ["find", "prove", "cut 11"]


def test_nothing_is_cut_without_the_proof() -> None:
    storage = Storage([])
    cut(storage, "its power reads on")
    assert storage.calls == ["find", "prove"]


def test_where_nothing_is_held_nothing_is_asked() -> None:
    storage = Storage([], found=())
    cut(storage)
    assert storage.calls == ["find"]


@pytest.mark.parametrize(("name", "calls"), [("broken", 1), ("refuses", 3)])
def test_a_storage_that_fails_ends_no_takeover(
    name: str, calls: int, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage([])
    cut(storage, name=name)
    assert len(storage.calls) == calls
    assert "its own time is waited for" in caplog.text


def test_a_check_cuts_nothing_and_says_what_is_wrong() -> None:
    storage = Storage([])
    fence = StorageFence("ceph", storage, 5.0)
    assert asyncio.run(fence.check(1, "host1")) == ""
    assert asyncio.run(fence.check(1, "broken")) == "ceph: no way"
    assert storage.calls == ["find", "find"]


def test_the_fence_test_asks_for_each_host_and_cuts_nothing() -> None:
    storage = Storage([])
    fence = StorageFence("ceph", storage, 5.0)
    found = asyncio.run(storage_tests(fence, (1, 2), {1: "host1", 2: "broken"}))
    assert found == {1: "", 2: "ceph: no way"}
    assert storage.calls == ["find", "find"]
    assert asyncio.run(storage_tests(StorageFence("", None, 1.0), (1,), {})) == {}


def test_without_a_driver_nothing_happens() -> None:
    fence = StorageFence("", None, 1.0)

    async def never() -> str:
        raise AssertionError("asked for a proof")

    assert not fence.is_configured
    assert asyncio.run(fence.check(1, "host1")) == ""
    asyncio.run(fence.cut(1, "host1", never))


@pytest.mark.parametrize(
    ("readings", "still", "problem"),
    [
        (["", ""], "", ""),
        (["on"], "", "on"),
        (["", "on"], "", "on"),
        (["", ""], "withdrawn", "withdrawn"),
    ],
)
def test_two_readings_prove_that_a_host_is_off(
    readings: list[str], still: str, problem: str
) -> None:
    left = iter(readings)

    async def read() -> str:
        return next(left)

    assert asyncio.run(off_twice(read, lambda: still, 0.0)) == problem
    assert list(left) == []


@pytest.mark.parametrize(
    ("client", "name", "same"),
    [
        ("host1", "host1", True),
        ("host1", "host1.example.org", True),
        ("host1.example.org", "host1", True),
        ("host1.example.org", "host1.example.com", False),
        ("host10", "host1", False),
        ("", "host1", False),
        ("localhost", "localhost.example.org", False),
    ],
)
def test_a_client_is_a_host_s_by_its_whole_name(client: str, name: str, same: bool) -> None:
    assert same_host(client, name) is same


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `ceph` and a `gluster` that print the file `says` and end with the code in `code`."""
    for name in ("ceph", "gluster", "own", "sanlock"):
        program = tmp_path / name
        program.write_text(
            f'#!/bin/sh\necho "$0 $*" >> {tmp_path}/calls\ncat {tmp_path}/says\n'
            f"exit $(cat {tmp_path}/code)\n"
        )
        program.chmod(0o700)
    (tmp_path / "says").write_text("")
    (tmp_path / "code").write_text("0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def calls(programs: Path) -> list[str]:
    return (programs / "calls").read_text().replace(f"{programs}/", "").splitlines()


def soon() -> float:
    return time.monotonic() + 60.0


def test_ceph_evicts_the_sessions_of_that_host_alone(programs: Path) -> None:
    (programs / "says").write_text(json.dumps(SESSIONS))
    driver = CephClients("cephfs", ["--id", "ha"])
    found = driver.find(1, "host1", soon())
    assert found == ("11", "12")
    driver.cut(1, "host1", found, soon())
    assert calls(programs) == [
        "ceph --id ha tell mds.cephfs:0 client ls --format=json",
        "ceph --id ha tell mds.cephfs:0 client evict id=11",
        "ceph --id ha tell mds.cephfs:0 client evict id=12",
    ]


@pytest.mark.parametrize("says", ["", "{}", "[1]", '[{"id": 1}]', '[{"id": "x"}]'])
def test_a_list_that_cannot_be_read_is_no_empty_list(programs: Path, says: str) -> None:
    (programs / "says").write_text(says)
    if says == "{}":
        assert CephClients("cephfs", ()).find(1, "host1", soon()) == ()
        return
    with pytest.raises(StorageFenceError, match="cannot be read"):
        CephClients("cephfs", ()).find(1, "host1", soon())


@pytest.mark.parametrize("name", ["", "localhost"])
def test_a_name_that_many_have_is_nobody_s(programs: Path, name: str) -> None:
    with pytest.raises(StorageFenceError, match="no name of its own"):
        CephClients("cephfs", ()).find(1, name, soon())


def test_a_short_name_that_two_hosts_have_is_nobody_s(programs: Path) -> None:
    """The other host lives, and its client may be the one that gives the short name."""
    sessions = [
        {"id": number, "client_metadata": {"hostname": name}}
        for number, name in ((1, "node1"), (2, "node1.a"), (3, "node1.b"))
    ]
    (programs / "says").write_text(json.dumps(sessions))
    driver = CephClients("cephfs", ())
    assert driver.find(1, "node1.a", soon(), ["node1.b", "host3"]) == ("2",)
    assert driver.find(1, "node1.a", soon(), ["host2", "host3"]) == ("1", "2")


class Owners:
    """Who has the lease of an image's VM: host ids by image."""

    def __init__(self, owners: dict[str, int]) -> None:
        self.owners = owners

    def of(self, host: int, image: str) -> tuple[str, ...]:
        if self.owners[image] != host:
            raise StorageFenceError(f"host {self.owners[image]} has the lease")
        return (f"ls:vm-of{image}:/leases:1048576",)


def test_gluster_clears_locks_under_the_leases_of_the_dead_host_s_vms_alone(programs: Path) -> None:
    """A lock carries no host: a VM that runs elsewhere keeps the one on its image."""
    owners = Owners({"/a": 1, "/b": 2, "/c": 1})
    driver = GlusterLocks("gv0", ["/a", "/b", "/c"], ["--remote-host=s1"], owners)
    found = driver.find(1, "host1", soon())
    assert found == ("/a", "/c")
    owners.owners["/c"] = 3
    with pytest.raises(StorageFenceError, match="host 3 has the lease"):
        driver.cut(1, "host1", found, soon())
    gluster = f"{programs}/gluster --mode=script --remote-host=s1 volume clear-locks gv0"
    assert (programs / "calls").read_text().splitlines() == [
        f"{programs}/gluster --mode=script --remote-host=s1 volume status gv0",
        f"{programs}/sanlock client command -r ls:vm-of/a:/leases:1048576 -c {gluster}"
        " /a kind granted posix",
    ]
    assert driver.find(4, "host4", soon()) == ()


def test_a_lease_that_somebody_has_meanwhile_is_no_leave_to_clear(programs: Path) -> None:
    """sanlock refuses the command then."""
    (programs / "says").write_text("acquire error -243\n")
    (programs / "code").write_text("1")
    driver = GlusterLocks("gv0", ["/a"], [], Owners({"/a": 1}))
    with pytest.raises(StorageFenceError, match="sanlock ended with 1: acquire error -243"):
        driver.cut(1, "host1", ["/a"], soon())


def test_gluster_s_locks_are_not_cut_for_the_fence_lease() -> None:
    """The locks keep nobody from the lease volume, and the dead host's id is not free yet."""
    gluster = StorageFence("gluster", GlusterLocks("gv0", ["/a"], [], None), 1.0)
    assert gluster.is_configured and not gluster.keeps_leases
    assert StorageFence("ceph", CephClients("cephfs", ()), 1.0).keeps_leases
    assert not StorageFence("", None, 1.0).keeps_leases


def test_a_command_that_is_left_goes_on(tmp_path: Path) -> None:
    """The end of the command would not end what it has begun."""
    done = tmp_path / "done"
    with pytest.raises(StorageFenceError, match="did not end in time, and goes on"):
        run(["sh", "-c", f"sleep 0.3; touch {done}"], time.monotonic(), leave=True)
    while not done.exists():
        time.sleep(0.05)


def test_a_command_of_the_site_is_asked_first(programs: Path) -> None:
    driver = StorageCommand(["own", "{action}", "-n{name}", "{host}"])
    driver.cut(3, "host3", driver.find(3, "host3", soon()), soon())
    assert calls(programs) == ["own check -nhost3 3", "own cut -nhost3 3"]


def test_what_a_command_says_when_it_fails_is_handed_on(programs: Path) -> None:
    (programs / "says").write_text("volume is\x1b[31m not there\n")
    (programs / "code").write_text("3")
    with pytest.raises(StorageFenceError, match=r"own ended with 3: volume is\?\[31m not there"):
        run(["own"], soon())
    with pytest.raises(StorageFenceError, match="is not installed"):
        run(["no-such-program"], soon())


def test_what_is_no_program_ends_no_takeover(programs: Path, tmp_path: Path) -> None:
    """An error would end the freeing without an outcome, and keep the fence lease for ever."""
    (tmp_path / "text").write_text("no first line\n")
    (tmp_path / "text").chmod(0o700)
    for argv in (["text", "{action}", "{name}"], ["own", "{action}", "{name}"]):
        fence = StorageFence("command", StorageCommand(argv), 5.0)
        assert "cannot be run" in asyncio.run(fence.check(1, "host\0one"))


def test_a_command_that_hangs_is_ended() -> None:
    with pytest.raises(StorageFenceError, match="did not end in time"):
        run(["sleep", "600"], time.monotonic())


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("{}", True),
        ('{"type": "ceph"}', True),
        ('{"type": "nfs"}', False),
        ('{"type": "gluster", "volume": "gv0"}', False),
        ('{"type": "gluster", "volume": "gv0", "images": ["/a"]}', True),
        ('{"type": "command"}', False),
        ('{"type": "command", "argv": ["x", "{action}"]}', False),
        ('{"type": "command", "argv": ["x", "{action}", "{name}"]}', True),
    ],
)
def test_the_keys_of_a_type_belong_together(text: str, fits: bool) -> None:
    if fits:
        msgspec.json.decode(text, type=StorageFenceSection)
        return
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=StorageFenceSection)


# --- the doctor --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "code", "found"),
    [
        ({1: "own", 2: "two", 3: "three"}, 0, [("ok", "host 2 two"), ("ok", "host 3 three")]),
        (
            {1: "own", 2: "two", 3: "three"},
            4,
            [("fail", "host 2 two: command: fence ended with 4")],
        ),
        ({1: "own"}, 0, [("warn", "not asked")]),
    ],
)
def test_the_doctor_asks_the_storage_fence_and_cuts_nothing(
    site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: dict[int, str],
    code: int,
    found: list[tuple[str, str]],
) -> None:
    """The first host for which it fails is the last one that is asked about: each may take the
    whole deadline."""
    calls = tmp_path / "calls"
    program = tmp_path / "fence"
    program.write_text(f'#!/bin/sh\necho "$*" >> {calls}\nexit {code}\n')
    program.chmod(0o755)
    monkeypatch.setattr("agent.commands.fence_test.published", lambda config: (names, {}, ""))
    assert list(checks.storage_fence_answers(load(str(site)), 5.0)) == [], "none is configured"
    argv = f'["{program}", "{{action}}", "{{name}}"]'
    site.write_text(f'{site.read_text()}[storage-fence]\ntype = "command"\nargv = {argv}\n')
    told = list(checks.storage_fence_answers(load(str(site)), 5.0))
    assert [verdict for verdict, _, _ in told] == [verdict for verdict, _ in found]
    for (_, text, fix), (verdict, words) in zip(told, found, strict=True):
        assert words.replace("fence ended", f"{program} ended") in text
        assert bool(fix) is (verdict != "ok")
    asked = calls.read_text().splitlines() if calls.exists() else []
    assert asked == [f"check {names[n]}" for n in (2, 3)[: len(found)] if n in names]
