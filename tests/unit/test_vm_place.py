# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the VM is, and that "down" is never said for "not known": in the pure function, and in all
that a host tells people and programs of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agent.commands.why import explain
from agent.status.command import code_of
from agent.status.fetch import shown
from agent.status.sentences import last_word
from agent.status.text import engine_line
from broker.api.metrics import Metrics
from broker.daemon.exit_codes import ExitCode
from broker.lockspace.hosts import HostRenewal, look
from broker.monitors.runner import Sample
from broker.peers.asker import Pulse
from broker.peers.vm_place import (
    LEASE_OLD_S,
    LeaseOwner,
    OwnReads,
    PlaceSince,
    SeenHost,
    VmPlace,
    vm_place,
)
from broker.whiteboard.lines import Ways
from broker.wire.exchange import LeaseSeen
from broker.wire.status import Status
from scoring.hosts.liveness import Liveness
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes.broker import make_broker, report
from tests.fakes.lockspace import FakeLockspace
from tests.fakes.slot_store import MemoryStore, MemoryVolume
from tests.unit.builders import DOWN, UNKNOWN, UP

LIVE, SILENT, UNCERTAIN = Liveness.LIVE, Liveness.SILENT, Liveness.UNCERTAIN
NOT_HERE = (VmStatus.DOWN, VmStatus.DOWN_UNEXPECTED, VmStatus.DOWN_MISSING)
GOOD = OwnReads()
BLIND = OwnReads(blind=True, age_s=17.0, state="hung")


def placed(
    hosts: list[SeenHost], reads: OwnReads = GOOD, lease: LeaseOwner | None = None
) -> VmPlace:
    return vm_place(hosts, reads, lease)


def here(vm: VmStatus = VmStatus.DOWN, **changed: Any) -> SeenHost:
    return replace(SeenHost(host_id=2, name="host2", vm=vm, local=True), **changed)


def owner(vm: VmStatus | None = VmStatus.UP, **changed: Any) -> SeenHost:
    """Host 1, which had the VM and is silent."""
    silent = SeenHost(host_id=1, name="host1", vm=vm, liveness=SILENT, age_s=17.0, sanlock="live")
    return replace(silent, **changed)


def standby(**changed: Any) -> SeenHost:
    return replace(SeenHost(host_id=3, name="host3", vm=VmStatus.DOWN), **changed)


def test_it_is_up_where_a_live_host_says_so_and_best_where_it_is_well() -> None:
    ill = owner(liveness=LIVE, health=Health.BAD)
    assert placed([here(), ill]) == VmPlace(True, 1, False)
    assert placed([here(), replace(ill, health=Health.UNKNOWN)]) == VmPlace(True, 1, None)
    well = standby(vm=VmStatus.UP, health=Health.GOOD)
    assert placed([here(), ill, well]) == VmPlace(True, 3, True)


def test_it_is_down_where_every_host_says_so() -> None:
    assert placed([here(), owner(VmStatus.DOWN, liveness=LIVE), standby()]).up is False
    assert placed([here()]).up is False


@pytest.mark.parametrize("liveness", [SILENT, UNCERTAIN])
@pytest.mark.parametrize("vm", [*VmStatus, None])
def test_a_host_that_says_nothing_now_leaves_it_open(
    vm: VmStatus | None, liveness: Liveness
) -> None:
    assert placed([here(), owner(vm, liveness=liveness), standby()]).up is None


@pytest.mark.parametrize(
    "gone",
    [
        {"sanlock": "free"},
        {"sanlock": "dead"},
        {"vm": VmStatus.DOWN, "stopped": True},
        {"heard": VmStatus.DOWN},
    ],
)
def test_unless_nothing_can_run_there(gone: dict[str, Any]) -> None:
    assert placed([here(), owner(**gone), standby()]).up is False


@pytest.mark.parametrize("vm", [VmStatus.UP, VmStatus.UNKNOWN])
def test_an_agent_that_was_stopped_in_good_order_stops_no_vm(vm: VmStatus) -> None:
    """Law 6: the VM runs on without its agent."""
    assert placed([here(), owner(vm, stopped=True)]).up is None


def test_a_vm_that_is_handed_over_is_not_down_in_between() -> None:
    """The source says "migrated" before the target's slot says that it runs."""
    place = placed([here(), standby(moving=True)])
    assert place.up is None
    assert place.known.startswith("host3 (id 3) moves the VM to another host")
    assert placed([here(), standby(moving=True, liveness=SILENT, sanlock="dead")]).up is False
    assert placed([here(), owner(liveness=LIVE), standby(moving=True)]).host == 1


def test_the_network_tells_where_it_is_while_a_slot_stands_still() -> None:
    """Signed, and in answer to a question of now; of the health it tells nothing."""
    assert placed([here(), owner(heard=VmStatus.UP)]) == VmPlace(True, 1, None)
    assert placed([here(), owner(heard=VmStatus.UP)], BLIND) == VmPlace(True, 1, None)
    unsure = placed([here(), owner(heard=VmStatus.UNKNOWN)])
    assert (unsure.up, unsure.likely) == (None, 1)
    assert "it answers on the network: the VM most likely runs there" in unsure.known


@pytest.mark.parametrize(
    ("lease", "up"),
    [
        (LeaseOwner(None, False, 0.5), False),
        (LeaseOwner(1, True, 0.5), False),
        (LeaseOwner(1, False, 0.5), None),
        (LeaseOwner(None, False, LEASE_OLD_S + 0.1), None),
    ],
)
def test_the_lease_proves_that_it_runs_nowhere(lease: LeaseOwner, up: bool | None) -> None:
    assert placed([here(), owner()], lease=lease).up is up
    assert placed([here(), owner()], BLIND, lease).up is None, "asked before this host was blind"


def test_who_owns_the_lease_has_it_most_likely_whatever_its_slot_says() -> None:
    silent = owner(VmStatus.DOWN, renews=True)
    assert placed([here(), silent]).likely is None
    place = placed([here(), silent], lease=LeaseOwner(1, False, 0.5))
    assert (place.up, place.likely) == (None, 1)


def test_a_host_that_cannot_read_says_so_of_itself_and_nothing_of_the_others() -> None:
    place = placed([here(), owner(liveness=UNCERTAIN), standby(liveness=UNCERTAIN)], BLIND)
    assert (place.up, place.likely) == (None, 1)
    assert place.known == (
        "this host has not read the whiteboard for 17 s (hung): what the other hosts do is not"
        " known; host1 (id 1) had the VM when it was last read, and most likely has it still"
    )
    assert "silent" not in place.known
    alone = placed([here(VmStatus.UNKNOWN, reason="libvirt hangs")], BLIND)
    assert alone.known.endswith("whether the VM runs on this host is not known: libvirt hangs")
    assert placed([here(VmStatus.UP)], BLIND).up, "what runs here this host knows by itself"
    never = OwnReads(blind=True, age_s=None)
    assert "has not read the whiteboard yet" in placed([here()], never).known


def test_a_host_on_other_storage_knows_nothing_of_the_others_by_it() -> None:
    reads = OwnReads(elsewhere="host1 says that it wrote 815")
    dead, free = owner(sanlock="dead"), LeaseOwner(None, False, 0.0)
    assert placed([here(), dead], reads, free) == VmPlace(None, known=reads.elsewhere)
    heard = owner(heard=VmStatus.UP)
    assert placed([here(), heard], reads, free).host == 1, "the network is no storage"


def test_what_was_not_looked_for_long_enough_is_not_known() -> None:
    place = placed([here()], OwnReads(all_known=False))
    assert (place.up, place.known) == (None, "not every slot of the whiteboard was read yet")


@pytest.mark.parametrize(
    ("hosts", "known"),
    [
        (
            [here(), owner(renews=True, renewed_s=4.0, unanswered_s=16.0)],
            "host1 (id 1) wrote nothing for 17 s, its sanlock renews, no answer on the network for"
            " 16 s: the VM most likely runs there",
        ),
        (
            [here(), owner(renewed_s=19.0, unanswered_s=16.0)],
            "host1 (id 1) wrote nothing for 17 s, its sanlock renewed 19 s ago, no answer on the"
            " network for 16 s: it had the VM, whether the VM still runs there is not known",
        ),
        (
            [here(), owner(VmStatus.DOWN)],
            "host1 (id 1) wrote nothing for 17 s: whether it has started the VM meanwhile is not"
            " known",
        ),
        (
            [here(), owner(liveness=UNCERTAIN), standby(liveness=UNCERTAIN), standby(host_id=4)],
            "host1 (id 1) was not seen to write yet; by its slot the VM runs there; nor is it known"
            " of 1 other host",
        ),
        (
            [here(), standby(vm=VmStatus.UNKNOWN, reason="libvirt was late")],
            "host3 (id 3) does not know whether the VM runs there: libvirt was late",
        ),
        (
            [here(), standby(vm=None, liveness=UNCERTAIN, sanlock="live")],
            "host 3 has no slot that can be read, and its host id is in use",
        ),
        (
            [here(VmStatus.UNKNOWN, reason="libvirt hangs"), owner(VmStatus.DOWN)],
            "whether the VM runs on this host is not known: libvirt hangs; nor is it known of 1"
            " other host",
        ),
    ],
)
def test_what_is_known_is_said_in_a_sentence(hosts: list[SeenHost], known: str) -> None:
    assert placed(hosts).known == known


seen_hosts = st.builds(
    SeenHost,
    host_id=st.just(1),
    name=st.just("x"),
    vm=st.sampled_from([*VmStatus, None]),
    health=st.sampled_from(Health),
    liveness=st.sampled_from(Liveness),
    age_s=st.floats(0, 1000),
    stopped=st.booleans(),
    heard=st.sampled_from([*VmStatus, None]),
    renews=st.booleans(),
    renewed_s=st.none() | st.floats(0, 1000),
    sanlock=st.sampled_from(["free", "live", "fail", "dead", "unknown"]),
)


@given(
    own=st.sampled_from(VmStatus),
    others=st.lists(seen_hosts, max_size=5),
    reads=st.builds(OwnReads, blind=st.booleans(), all_known=st.booleans()),
    lease=st.none()
    | st.builds(LeaseOwner, st.sampled_from([None, 1, 3]), st.booleans(), st.floats(0, 10)),
)
def test_down_is_never_said_while_a_host_that_might_run_it_is_unseen(
    own: VmStatus, others: list[SeenHost], reads: OwnReads, lease: LeaseOwner | None
) -> None:
    hosts = [here(own), *(replace(host, host_id=n + 3) for n, host in enumerate(others))]
    place = placed(hosts, reads, lease)

    def rules_itself_out(host: SeenHost) -> bool:
        """Written anew, from the law's side."""
        if host.liveness is LIVE:
            return host.vm in NOT_HERE
        if host.heard in NOT_HERE:
            return True
        ended = host.sanlock in ("free", "dead") or (host.stopped and host.vm in NOT_HERE)
        return ended and not reads.blind and host.heard is not VmStatus.UP

    proven_by_lease = (
        lease is not None
        and not reads.blind
        and lease.age_s <= LEASE_OLD_S
        and (lease.owner is None or lease.gone)
    )
    if place.up is False:
        assert not reads.blind
        assert proven_by_lease or (reads.all_known and all(map(rules_itself_out, hosts)))
    if place.up is None:
        assert place.known and place.host is None and place.healthy is None
    if place.up:
        assert any(host.host_id == place.host for host in hosts)
    if own is VmStatus.UP:
        assert place.up


def test_where_it_is_found_again_it_was_all_the_time() -> None:
    since = PlaceSince()
    up, unknown = VmPlace(True, 1, True), VmPlace(None, known="x")
    for at_s, place in ((0.0, up), (100.0, unknown), (120.0, up)):
        since.look(place, at_s)
    assert since.summary(up, "host1", None, 130.0).for_s == 130.0
    since.look(unknown, 140.0)
    found = since.summary(unknown, None, "host1", 150.0)
    assert (found.up, found.healthy, found.for_s, found.last_up) == (None, None, 10.0, "host1")
    assert found.health_for_s is None


# --- all that a host tells of it ----------------------------------------------------------------


class Stage:
    """Hosts 1 (which has the VM), 2 and 3 on one whiteboard; what host `looks_from` tells."""

    def __init__(self, folder: Path, looks_from: int = 2) -> None:
        self.folder = folder
        self.volume = MemoryVolume()
        self.brokers = {n: make_broker(folder, self.volume, n) for n in (1, 2, 3)}
        self.looks_from = self.brokers[looks_from]
        self.engine = {1: UP, 2: DOWN, 3: DOWN}
        self.silent: set[int] = set()
        self.renewing = {1, 2, 3}
        self.dead: dict[int, str] = {}
        self.now_s = 0.0

    async def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_s += 1.0
            self._lockspace()
            for number, broker in self.brokers.items():
                if number in self.silent:
                    continue
                status = self.engine[number]
                broker.monitors.latest["engine"] = Sample(status, self.now_s)
                state = "EngineUp" if status is UP else "EngineDown"
                broker.take_report(report(state), self.now_s)
                await broker.beat(self.now_s)

    def _lockspace(self) -> None:
        fake = self.looks_from.lockspace
        assert isinstance(fake, FakeLockspace)
        hosts = [
            HostRenewal(
                n,
                1,
                int(self.now_s if n in self.renewing else 1) // 20 + 1,
                self.dead.get(n, "live"),
            )
            for n in (1, 2, 3)
        ]
        fake.witnesses = look(fake.witnesses, hosts, self.now_s)
        known = {w.host_id: (w.generation, w.timestamp) for w in hosts}
        for number, state in self.dead.items():
            if state == "free":
                known[number] = (1, 0)
        fake.renewals.learn(known, self.now_s)

    def heard(self, host: int, vm: VmStatus | None) -> None:
        """What host `host` answers over the network from now on; None: nothing."""
        pulse = Pulse(Ways(("x",)), heartbeat_s=self.now_s, vm=vm)
        if vm is None:
            pulse.unanswered_since_s = self.now_s
        self.looks_from.heartbeats.pulses[host] = pulse

    def lease(self, owner: int | None, gone: bool) -> None:
        found = LeaseSeen(owner, gone, self.now_s)
        old = report("EngineDown")
        self.looks_from.take_report(msgspec.structs.replace(old, lease=found), self.now_s)

    def storage(self, fault: str) -> None:
        store = self.looks_from.board._store
        assert isinstance(store, MemoryStore)
        store.fault, store.deadline_s = fault, 0.0

    def told(self) -> tuple[str, ExitCode, object, dict[str, float]]:
        """The first line, the exit code, `up` in the JSON, the engine's samples."""
        status = self.looks_from.status(self.now_s)
        raw = msgspec.json.encode(status)
        text, _ = shown(raw, None, False)
        head = text.splitlines()[0]
        assert head == engine_line(status)
        scrape, _ = Metrics(self.looks_from, lambda: self.now_s).text("")
        samples = {
            sample.name.removeprefix("ha_agent_"): sample.value
            for family in text_string_to_metric_families(scrape.decode())
            for sample in family.samples
            if sample.name in ("ha_agent_engine_up", "ha_agent_engine_healthy")
            or sample.name == "ha_agent_engine_host_id"
        }
        return head, code_of(status.engine.up), json.loads(raw)["engine"]["up"], samples

    @property
    def status(self) -> Status:
        return self.looks_from.status(self.now_s)


Story = Callable[[Stage], Any]
NOWHERE = {"engine_up": 0.0, "engine_healthy": 0.0, "engine_host_id": 0.0}
UNSEEN: dict[str, float] = {}


async def storage_hung_here(stage: Stage) -> None:
    stage.storage("hang")
    await stage.run(17)


async def storage_of_the_owner_hangs(stage: Stage) -> None:
    stage.silent, stage.renewing = {1}, {2, 3}
    await stage.run(17)
    stage.heard(1, VmStatus.UP)


async def broker_of_the_owner_stopped(stage: Stage) -> None:
    stage.silent = {1}
    await stage.run(30)
    stage.heard(1, None)


async def package_removed_from_the_owner(stage: Stage) -> None:
    """Remove the package: the owner's agent ends in good order, its broker says so and ends."""
    stage.brokers[1].take_report(report("AgentStopped", 0, stopped=True), stage.now_s)
    await stage.brokers[1].beat(stage.now_s + 0.5)
    stage.silent = {1}
    await stage.run(300)


async def owner_without_power(stage: Stage) -> None:
    stage.silent, stage.renewing = {1}, {2, 3}
    stage.heard(1, None)
    await stage.run(5)


async def owner_read_off_and_freed(stage: Stage) -> None:
    await owner_without_power(stage)
    stage.dead[1] = "free"
    await stage.run(1)


async def owner_without_network_and_storage(stage: Stage) -> None:
    stage.silent, stage.renewing = {1}, {2, 3}
    stage.heard(1, None)
    await stage.run(40)


async def all_say_down(stage: Stage) -> None:
    stage.engine[1] = DOWN
    await stage.run(5)


async def down_in_global_maintenance(stage: Stage) -> None:
    await all_say_down(stage)
    await stage.looks_from.keeper.set_global(stage.looks_from.keeper.mode(maintenance(), "root"))
    await stage.run(2)


async def libvirt_of_the_owner_hangs(stage: Stage) -> None:
    stage.engine[1] = UNKNOWN
    await stage.run(5)


async def lease_is_free(stage: Stage) -> None:
    stage.silent = {1}
    await stage.run(10)
    stage.lease(None, False)


async def stands_by_in_good_order(stage: Stage) -> None:
    """A host that was stopped without the VM is no secret."""
    stage.brokers[3].take_report(report("AgentStopped", 0, stopped=True), stage.now_s)
    await stage.brokers[3].beat(stage.now_s + 0.5)
    stage.silent = {3}
    stage.engine[1] = DOWN
    await stage.run(10)


def maintenance() -> Any:
    from broker.wire.status import Maintenance

    return Maintenance(on=True, reason="a test")


HUNG = "this host has not read the whiteboard for 17 s (hung): what the other hosts do is not known"


@pytest.mark.parametrize(
    ("story", "head", "code", "up", "samples"),
    [
        (
            storage_hung_here,
            f"ha: whether HostedEngine is up is NOT KNOWN, for 14 s: {HUNG}; host1 (id 1) had the"
            " VM when it was last read, and most likely has it still",
            ExitCode.ENGINE_UNKNOWN,
            None,
            UNSEEN,
        ),
        (
            storage_of_the_owner_hangs,
            "ha: HostedEngine is up, its health is not known, on host1 (id 1), for at least 27 s",
            ExitCode.OK,
            True,
            {"engine_up": 1.0, "engine_host_id": 1.0},
        ),
        (
            broker_of_the_owner_stopped,
            "ha: whether HostedEngine is up is NOT KNOWN, for 27 s: host1 (id 1) wrote nothing for"
            " 30 s, its sanlock renews, no answer on the network for 0 s: the VM most likely runs"
            " there",
            ExitCode.ENGINE_UNKNOWN,
            None,
            UNSEEN,
        ),
        (
            package_removed_from_the_owner,
            "ha: whether HostedEngine is up is NOT KNOWN, for 4 min 56 s: host1 (id 1) wrote"
            " nothing for 299 s, its sanlock renews: the VM most likely runs there",
            ExitCode.ENGINE_UNKNOWN,
            None,
            UNSEEN,
        ),
        (
            owner_without_power,
            "ha: whether HostedEngine is up is NOT KNOWN, for 2 s: host1 (id 1) wrote nothing for 5"
            " s, its sanlock renewed 16 s ago, no answer on the network for 5 s: it had the VM,"
            " whether the VM still runs there is not known",
            ExitCode.ENGINE_UNKNOWN,
            None,
            UNSEEN,
        ),
        (
            owner_read_off_and_freed,
            "ha: HostedEngine is DOWN for 0 s: nothing runs on host1 any more",
            ExitCode.ENGINE_DOWN,
            False,
            NOWHERE,
        ),
        (
            owner_without_network_and_storage,
            "ha: whether HostedEngine is up is NOT KNOWN, for 37 s: host1 (id 1) wrote nothing for"
            " 40 s, its sanlock renewed 51 s ago, no answer on the network for 40 s: it had the VM,"
            " whether the VM still runs there is not known",
            ExitCode.ENGINE_UNKNOWN,
            None,
            UNSEEN,
        ),
        (
            all_say_down,
            "ha: HostedEngine is DOWN for 4 s: no host has it up; last seen up on host1",
            ExitCode.ENGINE_DOWN,
            False,
            NOWHERE,
        ),
        (
            down_in_global_maintenance,
            "ha: HostedEngine is DOWN for 6 s: no host has it up; last seen up on host1",
            ExitCode.ENGINE_DOWN,
            False,
            NOWHERE,
        ),
        (
            libvirt_of_the_owner_hangs,
            "ha: whether HostedEngine is up is NOT KNOWN, for 4 s: host1 (id 1) does not know"
            " whether the VM runs there: libvirt hangs",
            ExitCode.ENGINE_UNKNOWN,
            None,
            UNSEEN,
        ),
        (
            lease_is_free,
            "ha: HostedEngine is DOWN for 0 s: the engine lease is free; last seen up on host1",
            ExitCode.ENGINE_DOWN,
            False,
            NOWHERE,
        ),
        (
            stands_by_in_good_order,
            "ha: HostedEngine is DOWN for 9 s: no host has it up; last seen up on host1",
            ExitCode.ENGINE_DOWN,
            False,
            NOWHERE,
        ),
    ],
)
def test_every_way_to_ask_tells_the_same(
    tmp_path: Path,
    story: Story,
    head: str,
    code: ExitCode,
    up: bool | None,
    samples: dict[str, float],
) -> None:
    async def run() -> None:
        stage = Stage(tmp_path)
        await stage.run(12)
        assert stage.status.engine.up and stage.status.engine.host == 1
        await story(stage)
        assert stage.told() == (head, code, up, samples)

    asyncio.run(run())


def test_a_host_without_storage_calls_its_peers_neither_silent_nor_dead(tmp_path: Path) -> None:
    """The host shows its own trouble first, and as its score the one that the others see: none."""

    async def run() -> None:
        stage = Stage(tmp_path)
        await stage.run(12)
        await storage_hung_here(stage)
        status = stage.status
        assert {host.liveness for host in status.hosts.values() if not host.local} == {"uncertain"}
        assert (status.storage.blind, status.storage.unheard) == (True, True)
        own = status.hosts[2]
        assert (own.score, [part.name for part in own.penalties]) == (0, ["storage"])
        text, _ = shown(msgspec.json.encode(status), None, False)
        wrong = text.split("wrong:")[1].splitlines()[1:]
        assert wrong[0].strip().startswith("STORAGE hung")
        assert wrong[1].strip() == "whether the VM is up is not known (ha-agent why)"
        assert "SILENT" not in text and "takeover" not in text and "NO STANDBY" not in text
        assert text.count("LAST WORD") == 2
        assert "next: this host reads the storage again; the other hosts go on" in text
        why = "\n".join(explain(status, stage.looks_from.config.rules(0)))
        assert why.startswith(f"Whether the VM HostedEngine is up is not known: {HUNG}")
        assert "host1 cannot be read from here, its last word is 17 s old." in why
        # Seen on a CephFS whose client hung: "host2 was not seen to write yet", of the host itself.
        said = last_word(status, own)
        assert said == "is this host: it cannot read the whiteboard, and takes no VM over"
        notices = stage.looks_from.events.after(0).events
        assert not [event for event in notices if event.kind.startswith("peer-")]
        assert stage.looks_from.history.shown()["minutes"].engine[-1] is None

    asyncio.run(run())


def test_the_vm_here_is_known_though_the_storage_hangs(tmp_path: Path) -> None:
    async def run() -> None:
        stage = Stage(tmp_path, looks_from=1)
        await stage.run(12)
        fake = stage.looks_from.lockspace
        assert isinstance(fake, FakeLockspace)
        fake.renewed_s = stage.now_s
        await storage_hung_here(stage)
        head, code, up, samples = stage.told()
        assert head.startswith(
            "ha: HostedEngine is up and healthy on host1 (id 1), for at least 28 s"
        )
        assert (code, up, samples["engine_up"]) == (ExitCode.OK, True, 1.0)
        text, _ = shown(msgspec.json.encode(stage.status), None, False)
        assert "LEASE: if its storage stays away as well, sanlock ends the VM here in 63 s" in text
        assert "THIS HOST is silent for the others" in text

    asyncio.run(run())


def test_who_was_asked_for_nothing_yet_says_so(tmp_path: Path) -> None:
    async def run() -> None:
        stage = Stage(tmp_path)
        assert stage.status.engine.up is None
        await stage.run(1)
        assert stage.status.engine.up is None
        assert "was not seen to write yet" in stage.status.engine.known

    asyncio.run(run())


def test_a_host_in_the_lockspace_without_a_slot_may_have_it(tmp_path: Path) -> None:
    async def run() -> None:
        stage = Stage(tmp_path)
        stage.silent = {1}
        stage.engine[1] = DOWN
        await stage.run(12)
        status = stage.status
        assert (status.engine.up, 1 in status.hosts) == (None, False)
        assert status.engine.known.startswith("host 1 has no slot that can be read")

    asyncio.run(run())


def test_an_id_that_sanlock_does_not_name_was_never_joined(tmp_path: Path) -> None:
    """A slot that was left behind by a host that is long gone keeps nobody from saying "down"."""

    async def run() -> None:
        stage = Stage(tmp_path)
        stage.engine[1] = EngineStatus(VmStatus.UP, Health.GOOD, "up")
        stray = make_broker(stage.folder, stage.volume, 7)
        await stray.beat(0.5)
        stage.engine[1] = DOWN
        await stage.run(12)
        assert stage.status.hosts[7].liveness == "silent"
        assert stage.status.engine.up is False

    asyncio.run(run())


def test_the_broker_is_shown_the_lease_by_its_agent(tmp_path: Path) -> None:
    async def run() -> None:
        stage = Stage(tmp_path)
        await stage.run(12)
        stage.silent = {1}
        await stage.run(10)
        stage.lease(2, False)
        assert stage.status.engine.up is False, "its own, and the VM is not here"
        stage.lease(1, False)
        assert stage.status.engine.up is None

    asyncio.run(run())
