# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose word counts: members', and nobody else's."""

from __future__ import annotations

import pytest

from broker.config.cluster_key import ClusterKey
from broker.lockspace.hosts import Witness
from broker.lockspace.renewals import Renewal
from broker.peers.asker import Heartbeats, Pulse
from broker.peers.members import (
    AFTER_FREE_S,
    BACK_S,
    NEWER_STANDS_S,
    SANLOCK_LOOKS_S,
    STRANGERS_MAX,
    Members,
)
from broker.whiteboard.board import Board
from broker.whiteboard.fence_log import LogRecord
from broker.whiteboard.lines import Ways
from broker.whiteboard.signatures import Signature, Signatures, Unsigned
from broker.whiteboard.slot import SlotReport
from scoring.observation import FenceStep
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes.lockspace import FakeLockspace
from tests.fakes.slot_store import MemoryStore, MemoryVolume

KEY = ClusterKey(b"k" * 32)
UP = EngineStatus(VmStatus.UP, Health.GOOD, "up")
IO_TIMEOUT_S = 10.0
LONG_S = 2 * IO_TIMEOUT_S + SANLOCK_LOOKS_S


class Cluster:
    """What host 1 knows; each `beat` changes the slots that are written."""

    def __init__(self, key: ClusterKey | None = KEY, unsigned: Unsigned = Unsigned.SHOW) -> None:
        self.board = Board(MemoryStore(MemoryVolume()), 1, lambda: 1e9, Signatures(key, unsigned))
        self.lockspace = FakeLockspace()
        self.heartbeats = Heartbeats(1, key, None)
        self.members = Members(self.board, self.lockspace, self.heartbeats, IO_TIMEOUT_S)
        self.now_s = 100.0

    def slot(self, host: int, signature: Signature = Signature.GOOD) -> Cluster:
        self.board.reports[host] = SlotReport(host, 1, 3400, UP, f"host{host}")
        self.board.signed[host] = signature
        return self

    def disk(self, host: int, timestamp: int) -> Cluster:
        """Note that the host's delta lease is read now."""
        old = self.lockspace.renewals.table.get(host)
        if old is None or old.timestamp != timestamp:
            self.lockspace.renewals.table[host] = Renewal(1, timestamp, self.now_s)
        self.lockspace.renewals.read_s[host] = self.now_s
        return self

    def sanlock(self, host: int, state: str) -> Cluster:
        self.lockspace.witnesses[host] = Witness(state, 1, 1, self.now_s)
        return self

    def answers(self, host: int, is_so: bool = True) -> Cluster:
        silent_s = None if is_so else self.now_s
        pulse = Pulse(Ways(("a:1",), ()), heartbeat_s=self.now_s, unanswered_since_s=silent_s)
        self.heartbeats.pulses[host] = pulse
        return self

    def beat(self, *writes: int, seconds: float = 1.0) -> Cluster:
        self.now_s += seconds
        for host in writes:
            old = self.board.reports[host]
            self.board.reports[host] = SlotReport(host, old.timestamp + 1, 3400, UP, old.hostname)
        self.members.look(self.now_s)
        return self

    @property
    def counted(self) -> list[int]:
        return sorted(self.members.reports)


def test_a_signed_host_of_which_nothing_is_known_counts() -> None:
    assert Cluster().slot(2).beat().counted == [2]


def test_a_forged_slot_of_a_host_that_does_not_exist_never_counts() -> None:
    cluster = Cluster().slot(2).slot(77, Signature.NONE).sanlock(2, "live").beat(77)
    for _ in range(60):
        assert cluster.beat(2, 77).counted == [2]
    assert "not signed" in cluster.members.why_not[77]
    assert cluster.members.unsigned == frozenset()


@pytest.mark.parametrize("state", ["live", "fail", "dead", "unknown"])
def test_a_host_of_an_earlier_version_counts_while_its_id_is_in_use(state: str) -> None:
    cluster = Cluster().slot(2, Signature.NONE).sanlock(2, state).beat(2)
    assert cluster.counted == [2] and cluster.members.unsigned == {2}
    assert cluster.board.has_earlier()


def test_a_host_of_an_earlier_version_counts_while_it_answers() -> None:
    cluster = Cluster().slot(2, Signature.NONE).sanlock(1, "live").answers(2).beat(2)
    assert cluster.counted == [2]
    cluster.answers(2, False)
    assert cluster.beat(2).counted == [2], "it was a member just now"
    for _ in range(5):
        cluster.beat(2)
    assert cluster.counted == [], "and writes on without being one"


def test_a_signed_host_whose_id_is_free_does_not_count() -> None:
    """A replay of the slots of a host that has left the cluster."""
    cluster = Cluster().slot(2).beat(2).disk(2, 0)
    cluster.beat(2)
    for _ in range(5):
        cluster.beat(2).disk(2, 0)
    assert cluster.counted == [] and "is free" in cluster.members.why_not[2]
    assert cluster.disk(2, 55).beat(2).counted == [2], "it has joined"


def test_what_was_read_before_its_slot_was_written_says_nothing() -> None:
    cluster = Cluster().disk(2, 0)
    assert cluster.beat().slot(2).beat(2).counted == [2], "it may have joined meanwhile"
    assert cluster.beat(2).counted == [2]


def test_a_host_that_comes_back_counts_before_its_lease_is_read_anew() -> None:
    cluster = Cluster().slot(2).disk(2, 55).beat(2)
    cluster.disk(2, 0)  # switched off, and freed
    for _ in range(int(BACK_S) + 3):
        cluster.beat().disk(2, 0)
    assert cluster.counted == [2], "who was a member and is dead is still who had the VM"
    cluster.beat(2)
    assert cluster.counted == [2], "it writes again: it may have joined"
    cluster.beat(2).disk(2, 56).beat(2)
    assert cluster.counted == [2]


def test_who_writes_on_after_its_id_was_freed_does_not_count() -> None:
    cluster = Cluster().slot(2).disk(2, 55).beat(2).disk(2, 0)
    cluster.beat(2)
    assert cluster.counted == [2], "its last slot may be as old as its last renewal"
    cluster.beat(2, seconds=AFTER_FREE_S).disk(2, 0).beat(2)
    assert cluster.counted == []
    assert cluster.answers(2).beat(2).counted == [2], "out on request, it still answers"


def test_without_a_key_sanlock_s_word_is_what_there_is() -> None:
    cluster = Cluster(None).slot(2, Signature.NONE).slot(77, Signature.NONE)
    cluster.sanlock(2, "live").beat(2, 77)
    assert cluster.counted == [2, 77], "nothing is known of it yet"
    cluster.beat(2, 77, seconds=LONG_S)
    cluster.beat(2, 77, seconds=LONG_S)
    assert cluster.counted == [2], "sanlock has looked at all of them, and names it not"


def test_without_sanlock_s_word_nobody_is_left_out() -> None:
    cluster = Cluster(None).slot(2, Signature.NONE).beat(2)
    assert cluster.beat(2, seconds=10 * LONG_S).counted == [2]


def test_strangers_cost_no_more_however_many_they_are() -> None:
    cluster = Cluster().slot(2).sanlock(2, "live")
    for host in range(3, 1900):
        cluster.slot(host, Signature.NONE)
    cluster.beat()
    assert cluster.counted == [2]
    assert len(cluster.members.strangers) == STRANGERS_MAX
    assert cluster.lockspace.renewals.strangers == cluster.members.strangers


def test_a_slot_that_is_gone_is_forgotten() -> None:
    cluster = Cluster().slot(77, Signature.NONE).sanlock(2, "live").beat(77)
    del cluster.board.reports[77]
    assert cluster.beat().members.why_not == {}


def test_records_of_an_earlier_version_count_while_it_may_run() -> None:
    cluster = Cluster()
    record = LogRecord(1, FenceStep.INTENT, 2, "host2", 3, "host3", "boot", 1e9)
    counts = cluster.board.fence_log.counts
    assert counts(record), "nothing is known yet, and a freeing may be under way"
    cluster.sanlock(1, "live")
    assert not counts(record), "nobody has that id"
    cluster.sanlock(2, "dead")
    assert counts(record)
    assert cluster.answers(4) and counts(LogRecord(1, FenceStep.INTENT, 4, "", 3, "", "", 1e9))
    made = SlotReport(2, 1, 0, UP, "host2", extra={"count": "7"}, extra_trusted=True)
    signatures = cluster.board.signatures
    signatures._newest[2] = (7, "", "")
    assert signatures.signs(made.host_id) and not counts(record), "it signs now"


# --- newer versions, and scores ---------------------------------------------------------------


def newer(cluster: Cluster, host: int, changed_s: float) -> tuple[int, ...]:
    cluster.board.newer_versions[host] = changed_s
    cluster.beat()
    return cluster.members.newer_versions


def test_a_slot_of_a_newer_version_stops_this_host_while_a_member_writes_it() -> None:
    cluster = Cluster().sanlock(1, "live").sanlock(3, "live")
    assert newer(cluster, 3, cluster.now_s) == (3,)
    assert newer(cluster, 3, cluster.now_s - NEWER_STANDS_S) == (), "a dead one never does"
    assert newer(cluster, 77, cluster.now_s) == (), "nor does a stranger"
    assert newer(cluster.answers(77), 77, cluster.now_s) == (77,)


def test_what_cannot_be_told_of_a_newer_version_stops_this_host() -> None:
    assert newer(Cluster(), 77, 100.0) == (77,), "sanlock has not said anything yet"
    assert newer(Cluster(None).sanlock(1, "live"), 77, 100.0) == (77,), "nothing is signed here"


@pytest.mark.parametrize(
    ("score", "told", "counted"),
    [
        (3400, "", 3400),
        (10_000, "", 3400),
        (10_000, '{"score.base-score":4400}', 4400),
        (4000, '{"score.base-score":4400}', 4000),
        (3600, '{"score.base-score":2000}', 3400),
        (10_000, "{", 3400),
        (10_000, "[]", 3400),
        (10_000, '{"score.base-score":"9999"}', 3400),
    ],
)
def test_a_score_counts_up_to_what_its_host_can_have(score: int, told: str, counted: int) -> None:
    cluster = Cluster().slot(2)
    cluster.members.base_score = 3400
    lines = {"config": told}
    cluster.board.reports[2] = SlotReport(2, 1, score, UP, "h", extra=lines, extra_trusted=True)
    assert cluster.beat().members.reports[2].score == counted


# --- contradicted -----------------------------------------------------------------------------


def claiming(owner: int | None = None, is_known: bool = True) -> Cluster:
    """Host 2 says for some seconds that the VM is up there."""
    cluster = Cluster().slot(2).sanlock(2, "live").sanlock(1, "live")
    for _ in range(4):
        cluster.beat(2)
    cluster.members.lease_owner = lambda: (owner, cluster.now_s) if is_known else None
    return cluster


def says(cluster: Cluster, vm: VmStatus) -> Cluster:
    """The host answers over the network, and slots are written after that."""
    cluster.answers(2).heartbeats.pulses[2].vm = vm
    for _ in range(3):
        cluster.beat(2)
    return cluster


@pytest.mark.parametrize("owner", [None, 3])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_claim_that_its_own_host_denies_is_not_believed(
    owner: int | None, is_known: bool
) -> None:
    cluster = says(claiming(owner, is_known), VmStatus.DOWN)
    assert cluster.counted == []
    why = cluster.members.why_not[2]
    assert "answers over the network that it is not" in why
    assert ("owns the engine lease" in why) is is_known
    assert says(cluster, VmStatus.DOWN).counted == [], "nor does it come and go"


@pytest.mark.parametrize("state", ["free", "dead"])
def test_a_claim_of_a_host_that_is_gone_by_all_witnesses_is_not_believed(state: str) -> None:
    cluster = claiming(3).sanlock(2, state).answers(2, False).beat(2)
    assert cluster.counted == [] and state in cluster.members.why_not[2]


def test_one_witness_that_speaks_for_it_is_enough() -> None:
    assert says(claiming(2), VmStatus.DOWN).counted == [2], "it owns the lease"
    assert says(claiming(3), VmStatus.UP).counted == [2], "the network says so too"
    assert says(claiming(3), VmStatus.UNKNOWN).counted == [2], "unknown is not down"
    assert claiming(3).answers(2, False).beat(2).counted == [2], "sanlock says that it lives"


def test_what_was_asked_before_the_claim_contradicts_nothing() -> None:
    """A VM that was started, or has moved there, just now."""
    cluster = Cluster().slot(2).sanlock(2, "live").answers(2)
    cluster.heartbeats.pulses[2].vm = VmStatus.DOWN
    for _ in range(5):
        assert cluster.beat(2).counted == [2]


def test_a_claim_that_was_not_repeated_after_the_answer_may_be_the_older_word() -> None:
    cluster = claiming()
    cluster.answers(2).heartbeats.pulses[2].vm = VmStatus.DOWN
    assert cluster.beat(2).counted == [2] and cluster.beat().counted == [2]
    for _ in range(20):
        assert cluster.beat().counted == [2], "its slot stands still: it is judged as a silent one"


def test_who_does_not_claim_it_any_more_is_believed_again() -> None:
    cluster = says(claiming(3), VmStatus.DOWN)
    assert cluster.counted == []
    down = EngineStatus(VmStatus.DOWN, Health.BAD)
    cluster.board.reports[2] = SlotReport(2, 99, 3400, down, "host2")
    assert cluster.beat().counted == [2]
