# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asking the other brokers, in virtual time: when, how often, and what an answer is worth."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from broker.config.cluster_key import ClusterKey
from broker.peers.asker import (
    APART_S,
    OVERDUE_S,
    QUESTION_S,
    QUICK_PEERS_MAX,
    QUICK_S,
    STEADY_S,
    Heartbeats,
    Word,
    steady_s,
)
from broker.peers.datagram import Question, answer_bytes, question_of
from broker.peers.heartbeat import Heartbeat, signed
from broker.whiteboard.lines import Ways
from scoring.vm_facts import VmStatus
from tests.simulation.timeline import HostLoop, Process, Timeline

KEY = ClusterKey(b"k" * 32)
BEAT_S = 1.0
FAR_FUTURE_S = 1e9


class Network:
    """Transport: each address has a host, and what becomes of a question to it.

    `faults`: "" answers, "silent", "refused", "replays", "junk". `asked`: (when, address).
    """

    def __init__(self, **hosts: int) -> None:
        self.hosts = hosts
        self.faults: dict[str, str] = {}
        self.keys: dict[str, ClusterKey] = {}
        self.takes_s = 0.01
        self.asked: list[tuple[float, str]] = []
        self.questions: list[Question] = []
        self.open: Counter[str] = Counter()
        self.open_most = 0
        self._old = b""

    async def ask_port(self, address: str, question: bytes, take: Callable[[bytes], bool]) -> None:
        asked = question_of(KEY, question)
        self.questions.append(asked)

        def answer(host_id: int, key: ClusterKey) -> bytes:
            return answer_bytes(key, asked, Heartbeat(host_id, "boot", 1, VmStatus.UP, asked.nonce))

        async with self._question(address):
            if not take(await self._answer(address, answer)):
                await asyncio.sleep(FAR_FUTURE_S)

    async def ask_listener(self, address: str, nonce: str) -> bytes:
        def answer(host_id: int, key: ClusterKey) -> bytes:
            return signed(key, Heartbeat(host_id, "boot", 1, VmStatus.UP, nonce))

        async with self._question(address):
            return await self._answer(address, answer)

    @contextlib.asynccontextmanager
    async def _question(self, address: str) -> AsyncIterator[None]:
        self.asked.append((asyncio.get_running_loop().time(), address))
        self.open[address] += 1
        self.open_most = max(self.open_most, *self.open.values())
        try:
            yield
        finally:
            self.open[address] -= 1

    async def _answer(self, address: str, answer: Callable[[int, ClusterKey], bytes]) -> bytes:
        name = address.partition(":")[0]
        fault = self.faults.get(name, "")
        if fault == "silent":
            await asyncio.sleep(FAR_FUTURE_S)
        await asyncio.sleep(self.takes_s)
        if fault == "refused":
            raise ConnectionRefusedError(111, "Connection refused")
        if fault == "junk":
            return b"<html>"
        if fault == "replays":
            return self._old
        self._old = answer(self.hosts[name], self.keys.get(name, KEY))
        return self._old


class Asker:
    """Host 1's Heartbeats on a clock that shows 0 at the beginning."""

    def __init__(self, network: Network, key: ClusterKey | None = KEY) -> None:
        self.network = network
        self.timeline = Timeline()
        self.loop = HostLoop(self.timeline, 0.0, 1.0)  # type: ignore[abstract]
        self.heartbeats = Heartbeats(1, key, network)
        self.heartbeats.boot_id = "own-boot"
        self.news = 0
        self.heartbeats.on_change = self._count
        self.addresses: dict[int, Ways | None] = {}
        self.quiet: set[int] = set()
        self.watched: tuple[int, ...] = ()
        self.at_once = 1
        self.process = Process(self.loop, "asker", lambda process, error: None)
        self.process.start(self.heartbeats.run())
        self.timeline.run_until(0.0)

    def _count(self) -> None:
        self.news += 1

    def run(self, for_s: float) -> None:
        """Let time pass; each beat says whom to ask, as the broker does."""
        until_s = self.timeline.now_s + for_s
        while self.timeline.now_s < until_s:
            now_s = self.timeline.now_s
            look: Callable[..., None] = self.heartbeats.look
            self.timeline.call_within(
                self.loop, look, self.addresses, self.quiet, BEAT_S, self.loop.time()
            )
            self.timeline.call_within(self.loop, self.heartbeats.watch, self.watched)
            self.timeline.run_until(min(until_s, now_s + BEAT_S))

    def close(self) -> None:
        """End it; nothing may be left, and at no time was an address asked twice at once."""
        assert not self.process.failures and not self.loop.problems
        assert self.network.open_most <= self.at_once
        self.process.kill()
        self.timeline.run_until(self.timeline.now_s + 1.0)
        assert not self.process.tasks

    def times(self, host_id: int = 2) -> tuple[float | None, float | None]:
        return self.heartbeats.times(host_id)


@pytest.fixture
def asker() -> Iterator[Asker]:
    asker = Asker(Network(two=2, second=2, three=3))
    asker.addresses = {2: Ways(("two:1",))}
    yield asker
    asker.close()


def test_a_peer_of_whom_nothing_is_feared_is_asked_every_ten_seconds(asker: Asker) -> None:
    asker.run(100.0)
    times = [at_s for at_s, _ in asker.network.asked]
    assert len(times) == 10
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps == pytest.approx([STEADY_S] * 9)
    assert asker.times() == (times[-1], None), "counted from when the question was asked"
    assert asker.heartbeats.word(2) is Word.ANSWERED


def test_many_peers_are_asked_at_different_times() -> None:
    hosts = range(2, 101)
    asker = Asker(Network(**{f"h{host}": host for host in hosts}))
    asker.addresses = {host: Ways((f"h{host}:1",)) for host in hosts}
    between_s = steady_s(99)
    asker.run(2 * between_s)
    by_second = Counter(int(at_s) for at_s, _ in asker.network.asked)
    assert sum(by_second.values()) == 2 * 99
    assert max(by_second.values()) <= 2 / APART_S
    asker.close()


def test_in_a_large_cluster_a_silent_peer_is_asked_at_once_all_the_same() -> None:
    hosts = range(2, 101)
    asker = Asker(Network(**{f"h{host}": host for host in hosts}))
    asker.addresses = {host: Ways((f"h{host}:1",)) for host in hosts}
    asker.run(3 * STEADY_S)
    asker.quiet = {50}
    begun_s, before = asker.timeline.now_s, len(asker.network.asked)
    asker.run(3 * BEAT_S)
    times = [at_s for at_s, address in asker.network.asked[before:] if address == "h50:1"]
    assert len(times) >= 3
    assert times[0] - begun_s <= BEAT_S
    asker.close()


def test_the_next_question_of_a_silent_peer_comes_at_once_and_then_every_beat(asker: Asker) -> None:
    asker.run(22.0)
    asker.network.asked.clear()
    asker.quiet = {2}
    asker.run(4.5)
    assert [at_s for at_s, _ in asker.network.asked] == pytest.approx([22, 23, 24, 25, 26])
    asker.quiet = set()
    asker.run(30.0)
    assert len(asker.network.asked) == 5 + 3


def test_unanswered_counts_from_the_first_question_in_a_row(asker: Asker) -> None:
    asker.run(20.0)
    before_s, _ = asker.times()
    asker.network.faults["two"] = "silent"
    asker.quiet = {2}
    asker.run(0.5)
    assert asker.times() == (before_s, None), "the question is still under way"
    asker.run(0.6)
    assert asker.times() == (before_s, 20.0)
    asker.run(5.0)
    assert asker.times() == (before_s, 20.0)
    assert asker.heartbeats.word(2) is Word.UNANSWERED
    assert asker.news == 1
    asker.network.faults.clear()
    asker.run(2.0)
    heartbeat_s, unanswered_s = asker.times()
    assert unanswered_s is None
    assert heartbeat_s is not None and heartbeat_s > 25.0
    assert asker.news == 2


@pytest.mark.parametrize(
    ("fault", "cause"), [("junk", "unreadable"), ("replays", "replayed"), ("refused", None)]
)
def test_a_bad_answer_is_no_sign_of_life_and_is_counted(
    asker: Asker, fault: str, cause: str | None
) -> None:
    asker.run(20.0)
    before_s, _ = asker.times()
    asker.network.faults["two"] = fault
    asker.quiet = {2}
    asker.run(3.0)
    pulse = asker.heartbeats.pulses[2]
    assert asker.times() == (before_s, 20.0)
    assert pulse.bad_answers == ({cause: 3} if cause is not None else {})
    assert pulse.problem.startswith("two:1/udp: ")


def test_another_key_and_another_host_s_address_prove_nothing(asker: Asker) -> None:
    asker.network.keys["two"] = ClusterKey(b"x" * 32)
    asker.addresses = {2: Ways(("two:1",)), 3: Ways(("second:1",))}
    asker.run(20.0)
    assert asker.times(2)[0] is None and asker.times(3)[0] is None
    assert asker.heartbeats.pulses[2].bad_answers == {"wrong-mac": 2}
    assert asker.heartbeats.pulses[3].bad_answers == {"wrong-host": 2}


def test_an_answer_over_the_second_network_is_as_good(asker: Asker) -> None:
    asker.addresses = {2: Ways(("two:1", "second:1"))}
    asker.network.faults["two"] = "silent"
    asker.quiet = {2}
    asker.run(10.5)
    heartbeat_s, unanswered_s = asker.times()
    assert unanswered_s is None
    assert heartbeat_s is not None and heartbeat_s >= 10.5 - BEAT_S - QUESTION_S
    assert asker.heartbeats.word(2) is Word.ANSWERED


def test_a_host_that_stood_still_itself_says_nothing_of_the_others(asker: Asker) -> None:
    asker.run(20.0)
    asker.network.faults["two"] = "silent"
    asker.quiet = {2}
    asker.run(3.0)
    assert asker.times()[1] == 20.0
    asker.loop.frozen_until_s = asker.timeline.now_s + 30.0
    asker.timeline.run_until(53.5)
    assert asker.times()[1] is None, "nobody was asked for thirty seconds"
    asker.run(3.0)
    assert asker.times()[1] == pytest.approx(53.0, abs=2.0)


def test_without_a_key_nobody_is_asked() -> None:
    asker = Asker(Network(two=2), key=None)
    asker.addresses = {2: Ways(("two:1",))}
    asker.run(30.0)
    assert asker.network.asked == []
    assert asker.times() == (None, None)
    assert asker.heartbeats.word(2) is Word.NO_KEY
    asker.close()


def test_a_peer_without_an_address_is_not_asked_and_a_torn_slot_keeps_the_old_one(
    asker: Asker,
) -> None:
    asker.addresses = {2: Ways()}
    asker.run(20.0)
    assert asker.network.asked == [] and asker.heartbeats.word(2) is Word.NOT_ADVERTISED
    asker.addresses = {2: Ways(("two:1",))}
    asker.run(11.0)
    asker.addresses = {2: None}
    asker.run(11.0)
    assert len(asker.network.asked) >= 2


def test_a_peer_whose_slot_is_gone_is_forgotten(asker: Asker) -> None:
    asker.run(20.0)
    asker.addresses = {}
    asker.run(1.0)
    asker.network.asked.clear()
    asker.run(30.0)
    assert asker.network.asked == [] and asker.heartbeats.pulses == {}


BOTH = Ways(("two:2",), ("two:1",))


def test_a_peer_that_publishes_no_port_is_asked_at_its_listener(asker: Asker) -> None:
    """Hosts of earlier versions publish none, during an upgrade."""
    asker.addresses = {2: Ways((), ("two:1",))}
    asker.run(30.0)
    assert [address for _, address in asker.network.asked] == ["two:1"] * 3
    assert asker.heartbeats.word(2) is Word.ANSWERED
    assert asker.heartbeats.pulses[2].port_silent_since_s is None, "there is none to be silent"


def test_the_listener_is_left_alone_once_the_port_has_answered(asker: Asker) -> None:
    asker.addresses = {2: BOTH}
    asker.run(50.0)
    assert [address for _, address in asker.network.asked] == ["two:2", "two:1", *["two:2"] * 4]


def test_where_the_port_does_not_answer_the_listener_is_asked_besides(asker: Asker) -> None:
    """A firewall that lets the new port not through must not take the network's word away."""
    asker.network.hosts["closed"] = 2
    asker.network.faults["closed"] = "silent"
    asker.addresses = {2: Ways(("closed:2",), ("two:1",))}
    asker.run(25.0)
    pulse = asker.heartbeats.pulses[2]
    assert asker.heartbeats.word(2) is Word.ANSWERED and asker.times()[1] is None
    first_s = asker.network.asked[0][0]
    assert pulse.port_silent_since_s == first_s
    assert pulse.port_problem == "closed:2/udp: no answer within 1 s"
    asker.network.faults.clear()
    asker.run(10.0)
    assert pulse.port_silent_since_s is None and pulse.port_problem == ""
    before = len(asker.network.asked)
    asker.run(10.0)
    assert [address for _, address in asker.network.asked[before:]] == ["closed:2"]


def test_no_two_questions_have_the_same_number_or_nonce(asker: Asker) -> None:
    asker.addresses = {2: Ways(("two:1", "second:1")), 3: Ways(("three:1",))}
    asker.run(40.0)
    numbers = [question.number for question in asker.network.questions]
    assert len(numbers) >= 12 and numbers == sorted(set(numbers))
    assert len({question.nonce for question in asker.network.questions}) == len(numbers)
    assert {question.boot_id for question in asker.network.questions} == {"own-boot"}


def test_another_key_is_told_by_the_listener_where_the_port_is_silent(asker: Asker) -> None:
    """A port answers nobody with another key, so it cannot say so."""
    asker.network.hosts["port"] = 2
    asker.network.faults["port"] = "silent"
    asker.network.keys["two"] = ClusterKey(b"x" * 32)
    asker.addresses = {2: Ways(("port:2",), ("two:1",))}
    asker.run(25.0)
    pulse = asker.heartbeats.pulses[2]
    assert pulse.problem == "two:1: wrong-mac"
    assert pulse.port_problem == "port:2/udp: no answer within 1 s"
    assert asker.heartbeats.word(2) is Word.UNANSWERED


# --- peers that are watched closely --------------------------------------------------------------


@pytest.fixture
def watcher() -> Iterator[Asker]:
    asker = Asker(Network(two=2, three=3))
    asker.addresses = {2: Ways(ports=("two:1",)), 3: Ways(ports=("three:1",))}
    asker.watched, asker.at_once = (2,), int(QUESTION_S / QUICK_S) + 1
    asker.run(20.0)
    asker.network.asked.clear()
    yield asker
    asker.close()


def overdue_at_s(asker: Asker, within_s: float) -> float | None:
    """When host 2 is first overdue."""
    until_s = asker.timeline.now_s + within_s
    while asker.timeline.now_s < until_s:
        asker.timeline.run_until(asker.timeline.now_s + 0.01)
        if asker.heartbeats.overdue_since_s(2) is not None:
            return asker.timeline.now_s
    return None


def test_a_peer_that_is_watched_closely_is_asked_four_times_a_second(watcher: Asker) -> None:
    watcher.run(10.0)
    asked = Counter(address for _, address in watcher.network.asked)
    assert 40 <= asked["two:1"] <= 42, "the questions of every ten seconds among them"
    assert asked["three:1"] == 1
    assert watcher.heartbeats.overdue_since_s(2) is None
    assert watcher.news == 0


def test_half_a_second_without_an_answer_is_overdue_and_no_proof(watcher: Asker) -> None:
    watcher.network.faults["two"] = "silent"
    silent_s = watcher.timeline.now_s
    at_s = overdue_at_s(watcher, 2.0)
    assert at_s is not None and OVERDUE_S <= at_s - silent_s <= OVERDUE_S + QUICK_S + 0.02
    assert watcher.news == 1
    assert watcher.times()[1] is None, "unanswered is what was asked a second ago"
    watcher.run(1.2)
    _, unanswered_s = watcher.times()
    assert unanswered_s == pytest.approx(at_s, abs=0.02), "asked at once, and not 10 s later"
    watcher.network.faults.clear()
    watcher.run(0.5)
    assert watcher.heartbeats.overdue_since_s(2) is None
    assert watcher.times()[1] is None
    assert watcher.news == 3, "overdue, unanswered, and back"


def test_a_refusal_is_an_answer_of_the_kernel_and_none_of_the_broker(watcher: Asker) -> None:
    assert watcher.heartbeats.refused_s(2) is None and watcher.heartbeats.refused_s(9) is None
    watcher.network.faults["two"] = "refused"
    watcher.run(2.0)
    refused_s, (heard_s, _) = watcher.heartbeats.refused_s(2), watcher.times()
    assert refused_s is not None and heard_s is not None
    assert watcher.timeline.now_s - refused_s <= QUICK_S + 0.02
    assert refused_s - heard_s > 1.5


def test_the_machine_is_asked_as_soon_as_a_question_is_missed(watcher: Asker) -> None:
    missed: list[tuple[float, int]] = []
    watcher.heartbeats.on_missed = lambda host: missed.append((watcher.timeline.now_s, host))
    watcher.run(5.0)
    assert not missed
    watcher.network.faults["two"] = "silent"
    silent_s = watcher.timeline.now_s
    watcher.run(2.0)
    assert {host for _, host in missed} == {2}
    assert missed[0][0] - silent_s <= 2 * QUICK_S + 0.02


def test_one_lost_packet_makes_nobody_overdue(watcher: Asker) -> None:
    watcher.network.faults["two"] = "silent"
    watcher.timeline.run_until(watcher.timeline.now_s + QUICK_S + 0.01)
    watcher.network.faults.clear()
    assert overdue_at_s(watcher, 3.0) is None


def test_an_answer_that_takes_most_of_a_second_is_late_and_an_answer(watcher: Asker) -> None:
    watcher.network.takes_s = 0.9
    assert overdue_at_s(watcher, 1.0) is not None
    watcher.run(2.0)
    assert watcher.times()[1] is None


def test_a_host_that_stood_still_judges_nobody(watcher: Asker) -> None:
    watcher.loop.frozen_until_s = watcher.timeline.now_s + 5.0
    watcher.timeline.run_until(watcher.timeline.now_s + 5.01)
    assert watcher.heartbeats.overdue_since_s(2) is None
    assert overdue_at_s(watcher, 0.4) is None


def test_one_that_never_answered_is_not_overdue() -> None:
    asker = Asker(Network(two=2))
    asker.network.faults["two"] = "silent"
    asker.addresses, asker.watched, asker.at_once = {2: Ways(ports=("two:1",))}, (2,), 6
    asker.run(5.0)
    assert asker.heartbeats.overdue_since_s(2) is None
    asker.close()


def test_who_is_not_watched_any_more_or_gone_is_not_asked_quickly(watcher: Asker) -> None:
    watcher.network.faults["two"] = "silent"
    watcher.run(1.0)
    assert watcher.heartbeats.overdue_since_s(2) is not None
    watcher.watched = ()
    watcher.run(1.0)
    assert watcher.heartbeats.overdue_since_s(2) is None
    watcher.network.faults.clear()
    watcher.run(20.0)
    watcher.network.asked.clear()
    watcher.run(20.0)
    assert len(watcher.network.asked) == 4
    watcher.watched = (2,)
    watcher.run(1.0)
    del watcher.addresses[2]
    watcher.run(1.0)
    watcher.network.asked.clear()
    watcher.run(5.0)
    assert [address for _, address in watcher.network.asked if address == "two:1"] == []
    assert watcher.heartbeats.overdue_since_s(2) is None


def test_only_so_many_are_watched_closely() -> None:
    hosts = range(2, 3 + QUICK_PEERS_MAX)
    asker = Asker(Network(**{f"h{host}": host for host in hosts}))
    asker.addresses = {host: Ways(ports=(f"h{host}:1",)) for host in hosts}
    asker.watched, asker.at_once = tuple(hosts), 6
    asker.run(15.0)
    asked = Counter(address for _, address in asker.network.asked)
    assert asked[f"h{hosts[-1]}:1"] <= 2
    assert sum(count > 40 for count in asked.values()) == QUICK_PEERS_MAX
    asker.close()
