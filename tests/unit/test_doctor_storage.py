# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent doctor` where the storage hangs, and `doctor --storage`."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.commands import config_check
from agent.doctor import checks, storage
from agent.storage import identity, silent
from agent.storage.bounded import HANGS_LEAST_S, HANGS_S, Check, CheckHangs, is_cut_short
from agent.terminal.errors import CommandError
from broker.config.load import load
from broker.daemon.exit_codes import ExitCode
from broker.whiteboard.identity import STEP, Identity
from broker.whiteboard.mounts import Mount
from tests.fakes.hanging_storage import hanging_storage
from tests.unit import commands


@pytest.fixture
def hanging(site: Path, tmp_path: Path) -> Iterator[Path]:
    """A configuration whose volumes lie on a FUSE file system that does not answer any more."""
    with hanging_storage(site, tmp_path):
        yield site


def findings(config: Path, *words: str) -> list[dict[str, Any]]:
    done = commands.run("ha-agent", "--config", config, "doctor", "--json", *words)
    assert "Traceback" not in done.stderr, done.stderr
    answer = json.loads(done.stdout)
    failed = any(each["verdict"] == "fail" for each in answer["checks"])
    assert done.returncode == (ExitCode.FAILED if failed else ExitCode.OK)
    found: list[dict[str, Any]] = answer["checks"]
    return found


@pytest.mark.parametrize("words", [(), ("--storage", "--for", "0.2")])
def test_a_doctor_on_a_storage_that_hangs_ends_and_says_on_what(
    hanging: Path, words: tuple[str, ...]
) -> None:
    """The child that hangs stays in the kernel until the storage is back: nobody waits for it."""
    made = findings(hanging, *words)
    unanswered = [each for each in made if "has not answered for" in each["text"]]
    first, *others = unanswered
    assert first["verdict"] == "fail" and first["fix"].startswith("the storage and its mount")
    assert f"it hangs on {hanging.parent}/mount" in first["text"]
    assert all(each["text"].startswith("not looked at: ") for each in others)


@pytest.mark.parametrize("definition", [b"<domain>\xff</domain>", b"\x00" * 4096])
def test_a_definition_of_any_bytes_ends_no_check(site: Path, definition: bytes) -> None:
    (site.parent / "engine.xml").write_bytes(definition)
    assert findings(site, "--storage", "--for", "0.1")


def test_a_check_that_blocks_is_left_behind(tmp_path: Path) -> None:
    def look() -> Iterator[str]:
        yield "first"
        signal.pause()

    found = Check("a check", look).found(time.monotonic() + 0.3)
    assert next(found) == "first"
    with pytest.raises(CheckHangs, match=r"a check has not answered for \d+ s"):
        next(found)


def test_an_error_of_a_check_is_a_sentence_and_a_bug_stays_a_bug() -> None:
    def fails() -> Iterator[str]:
        raise CommandError(ExitCode.STORAGE, "it is not mounted")
        yield ""

    def breaks() -> Iterator[str]:
        yield str(1 // 0)

    with pytest.raises(CommandError, match="it is not mounted"):
        list(Check("x", fails).found(time.monotonic() + 5))
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(Check("x", breaks).found(time.monotonic() + 5))


def fall_silent(
    monkeypatch: pytest.MonkeyPatch,
    liveness: str,
    age_s: float | None,
    storage: str = "ok",
    problem: str = "",
) -> None:
    """The broker says that of host 2, and that of the storage."""
    host = SimpleNamespace(liveness=liveness, age_s=age_s, hostname="host2", local=False)
    said = SimpleNamespace(hosts={2: host}, storage=SimpleNamespace(state=storage, problem=problem))
    monkeypatch.setattr(silent, "ask", lambda *_, **__: said)


@pytest.mark.parametrize(
    ("state", "problem", "is_left"),
    [
        ("hung", "writing slot 1 has not answered for 12.0 s", True),
        # What fails at once may be looked at: the checks say with what.
        ("error", "writing slot 1: Input/output error", False),
    ],
)
def test_a_storage_that_hangs_by_the_brokers_word_fails_and_is_left_alone(
    site: Path, monkeypatch: pytest.MonkeyPatch, state: str, problem: str, is_left: bool
) -> None:
    """Nothing can be read then, so of no other host it is known that it fell silent."""
    fall_silent(monkeypatch, "uncertain", 12.0, state, problem)
    found = list(checks.check_storage(str(site), 0.1, time.monotonic()))
    texts = [each.text for each in found]
    assert not any("fell silent" in text for text in texts)
    if is_left:
        (only,) = found
        assert (only.verdict, only.fix) == ("fail", checks._HANGS)
        assert problem in only.text and str(site.parent) in only.text
    else:
        assert any("direct write of 4 KiB" in text for text in texts)


@pytest.mark.parametrize(("kind", "looks"), [("ceph", 3), ("fuse.ceph-fuse", 3), ("xfs", 1)])
def test_on_cephfs_a_host_that_has_just_died_is_waited_for(
    site: Path, monkeypatch: pytest.MonkeyPatch, kind: str, looks: int
) -> None:
    """A doctor within 3 s of a host's death opened the whiteboard, and all hosts' writes to it
    stood still for 10 s."""
    ages_s = iter([("live", 1e6), ("live", 1e6), ("silent", 3.0)])
    asked: list[int] = []

    def says(*_: object, **__: object) -> SimpleNamespace:
        liveness, age_s = next(ages_s)
        asked.append(1)
        host = SimpleNamespace(liveness=liveness, age_s=age_s, hostname="host2", local=False)
        return SimpleNamespace(hosts={2: host}, storage=SimpleNamespace(state="ok", problem=""))

    monkeypatch.setattr(silent, "ask", says)
    monkeypatch.setattr(silent, "file_system", lambda path: kind)
    monkeypatch.setattr(silent, "WRITES_S", 1e6)
    monkeypatch.setattr(silent, "_LOOK_S", 0.0)
    found = silent.left_alone(load(str(site)))
    assert len(asked) == looks
    assert found.why == ("host host2 fell silent 3 s ago" if looks == 3 else "")


def test_a_host_that_writes_after_the_command_began_is_alive(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silent, "file_system", lambda path: "ceph")
    monkeypatch.setattr(silent, "WRITES_S", 1e6)
    fall_silent(monkeypatch, "live", 0.0)
    assert not silent.left_alone(load(str(site)))


@pytest.mark.parametrize(
    ("liveness", "age_s", "waits"),
    [
        ("live", 0.5, False),
        ("silent", 12.0, True),
        ("silent", 5000.0, False),
        ("silent", None, False),
    ],
)
def test_nothing_is_opened_on_the_storage_while_a_host_has_just_fallen_silent(
    site: Path, monkeypatch: pytest.MonkeyPatch, liveness: str, age_s: float | None, waits: bool
) -> None:
    """On CephFS that stalls everybody's files until the dead client is evicted."""
    fall_silent(monkeypatch, liveness, age_s)
    made: list[str] = []

    class Noted:
        def __init__(self, name: str, look: object) -> None:
            made.append(name)

        def found(self, until_s: float, hang_until_s: float = 0.0) -> Iterator[object]:
            return iter(())

    monkeypatch.setattr(checks, "Check", Noted)
    found = {each.name: each for each in checks.check(str(site), time.monotonic())}
    assert ("storage" not in made and "sanlock-name" not in made) is waits
    if waits:
        assert found["storage"].text == "not looked at: host host2 fell silent 12 s ago"
        (only,) = checks.check_storage(str(site), 1.0, time.monotonic())
        assert only.text.startswith("not looked at: host host2")
        assert only.verdict == "fail", "nothing is said to be fit that was not looked at"


def test_what_is_looked_at_then_touches_no_storage(
    hanging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No check of the configuration or of a network touches it, and none that does not need it."""
    secrets = hanging.parent / "secrets.toml"
    secrets.write_text(f'cluster-key = "{"ab" * 32}"\n')
    secrets.chmod(0o600)
    definition = hanging.parent / "engine.xml"
    leases = f"{hanging.parent}/leases"
    moved = f"{hanging.parent}/mount/leases"
    definition.write_text(definition.read_text().replace(leases, moved))
    text = hanging.read_text()
    text = text.replace("[libvirt]", '[libvirt]\nmigration-uri = "test:///default"', 1)
    hanging.write_text(text.replace("[daemon]", f'[daemon]\nsecrets = "{secrets}"', 1))
    fall_silent(monkeypatch, "silent", 12.0)
    found = list(checks.check(str(hanging), time.monotonic()))
    assert [each for each in found if "has not answered" in each.text] == []
    left_out = {each.name for each in found if each.text.startswith("not looked at: host host2")}
    assert {"one-host", "storage", "heartbeat", "libvirt"} <= left_out
    checked = {each.name: each for each in config_check.checks(str(hanging), not_now="too soon")}
    assert checked["one-host"].text == "not looked at: too soon"


def test_all_checks_together_have_an_end_and_each_says_what_it_waited_for(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is silent, the ones behind it, and one that asks others."""

    def blocks(*_: object) -> Iterator[tuple[str, str, str]]:
        yield "ok", "so far so good", ""
        signal.pause()

    monkeypatch.setattr(checks, "ALL_S", 4.0)
    monkeypatch.setattr(checks, "LOCAL_S", 2.0)
    monkeypatch.setattr(checks, "_of_file", lambda *_: iter(()))
    monkeypatch.setattr(checks, "lock_driver", blocks)
    monkeypatch.setattr(checks, "fence_devices_answer", blocks)
    found: dict[str, list[checks.Finding]] = {}
    for each in checks.check(str(site), time.monotonic()):
        found.setdefault(each.name, []).append(each)
    for name in ("lock-driver", "fence-device"):
        good, late = found[name]
        # How long they had is too short to call them at fault.
        assert (good.verdict, late.verdict) == ("ok", "warn")
        assert f"this machine is busy, and {name} has not answered for " in late.text
    assert found["clock"][0].text == "not looked at: the command began 2 s ago"


@pytest.mark.parametrize(
    ("given_s", "waited_s", "is_short"),
    [(6.0, 0.1, False), (3.0, 0.1, False), (1.0, 0.0, True), (0.2, 0.0, True), (6.0, 3.0, True)],
)
def test_a_check_that_had_no_time_is_not_at_fault(
    given_s: float, waited_s: float, is_short: bool
) -> None:
    """On a busy machine "certificates has not answered for 0 s" made a host unfit."""
    assert is_cut_short(given_s, waited_s) is is_short


def test_a_command_that_was_slow_to_start_has_only_the_rest_of_its_time(site: Path) -> None:
    """On a busy machine Python takes seconds before the first check."""
    began_s = time.monotonic() - checks.ALL_S
    texts = {each.name: each.text for each in checks.check(str(site), began_s)}
    assert texts["file"] == texts["storage"] == "not looked at: the command began 6 s ago"


@pytest.mark.parametrize(
    ("since_s", "ends_s", "over_s"),
    [
        (1.0, math.inf, 1.0 + HANGS_S),
        (1.0, 9.0, 1.0 + HANGS_S),
        (4.0, 9.0, 9.0),
        (8.0, 9.0, 8.0 + HANGS_LEAST_S),
        # A long measurement that stalls later has the usual time.
        (20.0, 9.0, 20.0 + HANGS_S),
    ],
)
def test_when_a_hang_is_over_for_a_command_that_has_to_end(
    since_s: float, ends_s: float, over_s: float
) -> None:
    check: Check[str] = Check("a check", lambda: ())
    assert list(check.found(time.monotonic() + 5, ends_s)) == []
    assert check._over_s(since_s) == over_s


def test_a_command_knows_when_its_process_began() -> None:
    """The seconds before its first line count, and a child that is forked has the same answer."""
    line = (
        "import os, time; from agent.terminal.begun import command_began_s;"
        # A core that is taken away for half a second between the first readings of the two clocks.
        "read = time.clock_gettime; waits = [0.5];"
        "time.clock_gettime = lambda clock: (waits and time.sleep(waits.pop()), read(clock))[1];"
        "began_s = command_began_s(); print(began_s);"
        "os.fork() or print(command_began_s() == began_s)"
    )
    before_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    said, child = sorted(done.stdout.split())
    # The kernel counts hundredths.
    assert before_s - 0.02 <= float(said) <= time.monotonic()
    assert child == "True"


#: The ids of a cluster, its whiteboard and its lease volume.
IDS = [f"00000000-0000-4000-8000-00000000000{n}" for n in range(3)]


def name_the_ids(site: Path) -> None:
    """The configuration names which volumes they must be."""
    text = site.read_text().replace(
        "[storage]\n", f'[storage]\nwhiteboard-id = "{IDS[1]}"\nleases-id = "{IDS[2]}"\n', 1
    )
    site.write_text(f'{text}[cluster]\nid = "{IDS[0]}"\n')


def config_checked(site: Path) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Exit code of `config check`, and its checks by name."""
    done = commands.run("ha-agent", "--config", site, "--json", "config", "check")
    made: dict[str, list[dict[str, str]]] = {}
    for each in json.loads(done.stdout)["checks"]:
        made.setdefault(each["name"], []).append(each)
    return done.returncode, made


def test_config_check_says_whose_volumes_they_are(site: Path) -> None:
    """Another cluster's volume at the path was not noticed by this command."""
    code, made = config_checked(site)
    (only,) = made["volumes"]
    assert only["verdict"] == "warning" and "ha-agent init --identity" in only["text"]
    name_the_ids(site)
    config = load(str(site))
    for kind in identity.KINDS:
        identity.written_to(identity.path_of(config.storage, kind), kind, config, 4096)
    code, made = config_checked(site)
    assert [each["verdict"] for each in made["volumes"]] == ["ok", "ok"]
    other = IDS[0][:-1] + "9"
    for kind in identity.KINDS:
        theirs = Identity(kind, other, IDS[0], 0)
        identity.put(identity.path_of(config.storage, kind), theirs)
    code, made = config_checked(site)
    assert code == ExitCode.CONFIG
    assert [each["verdict"] for each in made["volumes"]] == ["fail", "fail"]
    assert f"of cluster {other}; whiteboard {IDS[1]}" in made["volumes"][0]["text"]
    # `storage show` named `ha-agent init --identity`, which is refused there.
    done = commands.run("ha-agent", "--config", site, "--json", "storage", "show")
    shown = json.loads(done.stdout)["volumes"]
    assert done.returncode == ExitCode.STORAGE
    assert [each["fix"] for each in shown] == [STEP, STEP]
    # Not mounted yet: no fault of the configuration.
    (site.parent / "whiteboard").unlink()
    code, made = config_checked(site)
    assert [each["verdict"] for each in made["volumes"]] == ["warning", "fail"]


def test_config_check_on_a_storage_that_hangs_says_so_beside_its_other_checks(
    hanging: Path,
) -> None:
    """Before, the whole command was left behind, and said nothing of the configuration."""
    name_the_ids(hanging)
    code, made = config_checked(hanging)
    (only,) = made["volumes"]
    assert code == ExitCode.CONFIG and only["verdict"] == "fail"
    assert f"it hangs on {hanging.parent}/mount/whiteboard" in only["text"]
    assert made["file"][0]["verdict"] == "ok" and "fence" in made


def test_a_volume_that_is_not_the_clusters_is_not_fit(site: Path) -> None:
    """A device whose header was gone was called fit, and another cluster's too."""
    name_the_ids(site)
    before = sorted(site.parent.iterdir())
    found = findings(site, "--storage", "--for", "0.1")
    assert [each["verdict"] for each in found] == ["fail", "fail"]
    assert all("of cluster 00000000" in each["text"] for each in found), found
    assert sorted(site.parent.iterdir()) == before


def test_the_storage_is_measured_in_a_scratch_file_that_is_removed(site: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in site.parent.iterdir() if path.is_file()}
    found = findings(site, "--storage", "--for", "0.5")
    texts = [each["text"] for each in found]
    assert sum("direct write of 4 KiB" in text for text in texts) == 2
    assert sum("direct read of 4 KiB" in text for text in texts) == 2
    assert any("file locks keep a second writer out" in text for text in texts)
    after = {path: path.stat().st_mtime_ns for path in site.parent.iterdir() if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("took", "verdict", "says"),
    [
        ([0.001] * 99 + [0.01], "ok", "1.0 / 10.0 / 10.0 ms (p50 / p99 / max of 100)"),
        ([0.7] * 10, "warn", "a beat is 1 s"),
        ([0.001] * 9 + [11.0], "fail", "sanlock gives up after io-timeout, 10 s"),
    ],
)
def test_latencies_are_held_against_the_beat_and_io_timeout(
    site: Path, took: list[float], verdict: str, says: str
) -> None:
    found, text, fix = storage._compared(load(str(site)), "leases", "write", took)
    assert (found, bool(fix)) == (verdict, verdict != "ok")
    assert says in text


@pytest.mark.parametrize(
    ("kind", "cache", "verdict"),
    [
        (None, "none", "ok"),
        (None, "writeback", "fail"),
        ("nfs4", "none", "ok"),
        ("nfs4", "default", "fail"),
        ("ceph", "default", "ok"),
        ("fuse.glusterfs", "writeback", "ok"),
        ("fuse.ceph-fuse", "none", "warn"),
        ("ext4", "none", "warn"),
    ],
)
def test_whether_a_live_migration_is_possible_by_libvirts_own_rule(
    kind: str | None, cache: str, verdict: str
) -> None:
    found, text, _ = storage.migration_of("/x/disk", kind, cache)
    assert found == verdict
    assert ("refuses a live migration" in text) is (verdict != "ok")


@pytest.mark.parametrize(
    ("kind", "options", "verdict", "says"),
    [
        ("nfs4", "rw,soft,vers=4.2", "fail", "mount it without soft"),
        ("fuse.ceph-fuse", "rw", "ok", ""),
        ("xfs", "rw", "warn", "every host must see this very file"),
    ],
)
def test_the_mount_is_judged_by_kind_and_options(
    kind: str, options: str, verdict: str, says: str
) -> None:
    mount = Mount("server:/x", "/mnt", kind, tuple(options.split(",")))
    (found, text, fix), *more = storage._kind("leases", "/mnt/leases", mount)
    assert (found, says in fix) == (verdict, True)
    assert f"lies on {kind} ({'FUSE' if kind.startswith('fuse') else 'kernel'})" in text
    assert bool(more) is (kind in storage.DEAD_CLIENT)


@pytest.mark.parametrize(
    ("eviction_s", "grace_s", "io_timeout_s", "verdict", "fix"),
    [
        (10.0, 5.0, 2, "ok", ""),
        (30.0, 20.0, 10, "ok", ""),
        # Two of three OSDs that paused for 20 s had a healthy host evicted.
        (10.0, 20.0, 10, "warn", "mds_cap_revoke_eviction_timeout 25"),
        (0.0, 20.0, 10, "warn", "mds_cap_revoke_eviction_timeout 25"),
        (30.0, 5.0, 2, "fail", "mds_cap_revoke_eviction_timeout 10"),
        (10.0, 20.0, 2, "warn", "storage.io-timeout above 4 s"),
    ],
)
def test_cephfs_evicts_neither_too_soon_nor_too_late(
    eviction_s: float, grace_s: float, io_timeout_s: int, verdict: str, fix: str
) -> None:
    found, _, said = storage.evictions_fit(eviction_s, grace_s, io_timeout_s)
    assert (found, fix in said, bool(said)) == (verdict, True, verdict != "ok")


@pytest.mark.parametrize(
    ("answer", "verdict", "says"),
    [
        (
            '{"mds_cap_revoke_eviction_timeout": "10.000000", "osd_heartbeat_grace": "5"}',
            "ok",
            "10 s",
        ),
        ("{}", "warn", "the MDS does not say its mds_cap_revoke_eviction_timeout"),
        ("", "warn", "the MDS does not say"),
    ],
)
def test_the_mds_itself_is_asked(
    site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    verdict: str,
    says: str,
) -> None:
    assert list(storage._evictions(load(str(site)))) == [], "there is no command to ask it by"
    program = tmp_path / "ceph"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    site.write_text(f'{site.read_text()}[storage-fence]\ntype = "ceph"\n')
    ((found, text, _),) = storage._evictions(load(str(site)))
    assert (found, says in text) == (verdict, True)


@pytest.mark.parametrize(
    ("says", "code", "verdict"),
    [
        ("  shared|", 0, "ok"),
        ("  shared|active exclusively", 0, "fail"),
        ("  |active exclusively", 0, "warn"),
        ("", 5, "warn"),
    ],
)
def test_how_lvm_has_a_volume_active_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, code: int, verdict: str
) -> None:
    program = tmp_path / "lvs"
    program.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    ((found, _, _),) = storage._activation("/dev/vg/lv")
    assert found == verdict
