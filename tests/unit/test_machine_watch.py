# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine that runs the engine is asked beside its broker; what its silence says, and what not.
In virtual time; the last part on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from broker.config.sections import HealthSection
from broker.monitors.outside import address_of
from broker.peers.machine import AGAIN_S, QUESTION_S, STEADY_S, MachineWatch, NetworkReach
from tests.simulation.timeline import HostLoop, Process, Timeline

HOST, VM = "two:8766", "vm:80"
BEAT_S = 1.0
FAR_S = 1e9


class Network:
    """Reach: by address True answers, False is silent, None: it cannot be asked."""

    def __init__(self) -> None:
        self.answer: dict[str, bool | None] = {HOST: True, VM: True}
        self.asked: list[tuple[float, str]] = []

    async def answers(self, address: str) -> bool | None:
        self.asked.append((asyncio.get_running_loop().time(), address))
        if self.answer[address] is False:
            await asyncio.sleep(FAR_S)
        await asyncio.sleep(0.01)
        return self.answer[address]


class Stage:
    """Host 1 watches the engine's machine, host 2."""

    def __init__(self) -> None:
        self.network, self.timeline = Network(), Timeline()
        self.vm_at, self.host, self.quiet, self.watched = VM, 2, set[int](), {2}
        self.news = 0
        self.loop = HostLoop(self.timeline, 0.0, 1.0)  # type: ignore[abstract]
        self.watch = MachineWatch(self.network, lambda: self.vm_at)
        self.watch.on_change = self._count
        self.process = Process(self.loop, "watch", lambda process, error: None)
        self.process.start(self.watch.run())

    def _count(self) -> None:
        self.news += 1

    def run(self, for_s: float, host: int | None = 2) -> None:
        until_s = self.timeline.now_s + for_s
        while self.timeline.now_s < until_s:
            look = self.watch.look
            given = (host, (HOST,), self.quiet, self.watched, BEAT_S)
            self.timeline.call_within(self.loop, look, *given)
            self.timeline.run_until(min(until_s, self.timeline.now_s + BEAT_S))

    def silent_since_s(self) -> float | None:
        return self.watch.silent_since_s(2)


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    stage.run(5.0)
    yield stage
    assert not stage.process.failures and not stage.loop.problems
    stage.process.kill()
    stage.timeline.run_until(stage.timeline.now_s + 5.0)
    assert not stage.process.tasks


def test_it_is_asked_seldom_while_its_slot_changes_and_each_beat_while_not(stage: Stage) -> None:
    stage.run(65.0)
    assert len(stage.network.asked) == 2 * (1 + int(65.0 / STEADY_S))
    stage.network.asked.clear()
    stage.quiet = {2}
    stage.run(5.0)
    assert len(stage.network.asked) in (10, 12)


def test_who_is_not_its_heir_asks_only_while_its_slot_stands_still() -> None:
    """That host says whether the machine answers; only the heir judges that it hangs."""
    stage = Stage()
    stage.watched = set()
    stage.run(65.0)
    assert stage.network.asked == []
    stage.quiet = {2}
    stage.run(3.0)
    assert [*stage.watch.answering(5.0, stage.timeline.now_s)] == [2]
    assert stage.watch.heard_s(2) is not None and stage.watch.heard_s(3) is None
    stage.process.kill()
    stage.timeline.run_until(stage.timeline.now_s + 5.0)


def test_an_unanswered_question_to_its_broker_has_it_asked_at_once(stage: Stage) -> None:
    stage.network.asked.clear()
    stage.timeline.call_within(stage.loop, stage.watch.hurry, 3)
    stage.timeline.run_until(stage.timeline.now_s + 0.1)
    assert stage.network.asked == []
    stage.timeline.call_within(stage.loop, stage.watch.hurry, 2)
    stage.timeline.run_until(stage.timeline.now_s + 0.1)
    assert [address for _, address in stage.network.asked] == [HOST, VM]


def test_what_answered_long_ago_says_nothing(stage: Stage) -> None:
    """The VM has a firewall since: its silence is older than the machine's."""
    stage.network.answer[VM] = False
    stage.run(2.5 * STEADY_S)
    stage.network.answer[HOST] = False
    stage.quiet = {2}
    stage.run(20.0)
    assert stage.silent_since_s() is None


def test_one_lost_answer_is_asked_for_again_soon(stage: Stage) -> None:
    """Else a machine that hangs a minute later is not known to hang: what answered was too old."""
    stage.network.answer[VM] = False
    stage.run(STEADY_S)
    stage.network.answer[VM] = True
    stage.run(AGAIN_S + 2.0)
    stage.network.answer |= {HOST: False, VM: False}
    stage.quiet = {2}
    stage.run(3.0)
    assert stage.silent_since_s() is not None


def test_what_answers_neither_here_nor_there_is_silent(stage: Stage) -> None:
    stage.network.answer |= {HOST: False, VM: False}
    stage.quiet = {2}
    begun_s = stage.timeline.now_s
    stage.run(3.0)
    since_s = stage.silent_since_s()
    assert since_s is not None and begun_s <= since_s <= begun_s + BEAT_S
    assert stage.news == 1
    assert not [*stage.watch.answering(5.0, stage.timeline.now_s)]
    stage.network.answer[VM] = True
    stage.run(2.0)
    assert stage.silent_since_s() is None and stage.news == 2
    assert [*stage.watch.answering(5.0, stage.timeline.now_s)] == [2]


@pytest.mark.parametrize("speaks", [HOST, VM])
def test_one_answer_of_any_is_a_sign_of_life(stage: Stage, speaks: str) -> None:
    stage.network.answer |= {HOST: False, VM: False, speaks: True}
    stage.quiet = {2}
    stage.run(10.0)
    assert stage.silent_since_s() is None


def test_a_question_that_cannot_be_put_proves_nothing(stage: Stage) -> None:
    stage.network.answer |= {HOST: False, VM: None}
    stage.quiet = {2}
    stage.run(10.0)
    assert stage.silent_since_s() is None


@pytest.mark.parametrize("never", [HOST, VM])
def test_the_silence_of_what_never_answered_says_nothing(never: str) -> None:
    """A firewall that drops all looks the same."""
    stage = Stage()
    stage.network.answer[never] = False
    stage.run(5.0)
    stage.network.answer |= {HOST: False, VM: False}
    stage.quiet = {2}
    stage.run(20.0)
    assert stage.silent_since_s() is None
    stage.process.kill()
    stage.timeline.run_until(stage.timeline.now_s + 5.0)


def test_another_place_is_another_story(stage: Stage) -> None:
    """What answered on one host says nothing of the next one; the one that is silent is asked on
    while its slot stands still, also when nobody says any more that the VM is there."""
    stage.network.answer |= {HOST: False, VM: False}
    stage.quiet = {2}
    stage.run(3.0)
    stage.run(3.0, host=None)
    assert stage.silent_since_s() is not None
    stage.run(3.0, host=3)
    assert stage.silent_since_s() is None and stage.watch.silent_since_s(3) is None
    stage.quiet = set()
    stage.run(3.0, host=None)
    stage.network.asked.clear()
    stage.run(60.0, host=None)
    assert stage.network.asked == []


def test_a_host_that_stood_still_judges_nobody(stage: Stage) -> None:
    stage.network.answer |= {HOST: False, VM: False}
    stage.quiet = {2}
    stage.timeline.run_until(stage.timeline.now_s + 0.1)
    stage.run(0.5)
    stage.loop.frozen_until_s = stage.timeline.now_s + 6.0
    stage.timeline.run_until(stage.timeline.now_s + 6.01)
    assert stage.silent_since_s() is None


def test_a_vm_that_only_its_own_host_can_ask_is_no_witness(stage: Stage) -> None:
    stage.vm_at = ""
    stage.network.answer |= {HOST: False}
    stage.quiet = {2}
    stage.run(10.0)
    assert stage.silent_since_s() is None


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ({"url": "http://vm.example/x"}, "vm.example:80"),
        ({"url": "https://vm.example/x"}, "vm.example:443"),
        ({"url": "https://[2001:db8::1]:8443/x"}, "[2001:db8::1]:8443"),
        ({"tcp": "vm.example:22"}, "vm.example:22"),
        ({"guest_agent": True}, ""),
        ({"url": "http://127.0.0.1/x"}, ""),
        ({}, ""),
    ],
)
def test_the_vms_address(given: dict[str, object], address: str) -> None:
    assert address_of(HealthSection(**given)) == address  # type: ignore[arg-type]


# --- real sockets --------------------------------------------------------------------------------


def test_a_refused_connection_is_an_answer_and_so_is_an_accepted_one() -> None:
    async def story() -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        assert await NetworkReach().answers(f"127.0.0.1:{port}") is True
        server.close()
        await server.wait_closed()
        assert await NetworkReach().answers(f"127.0.0.1:{port}") is True

    asyncio.run(story())


def test_a_name_that_is_none_cannot_be_asked() -> None:
    assert asyncio.run(NetworkReach().answers("no-such-name.invalid:1")) in (None, False)


class HalfSent(NetworkReach):
    """The kernel sends the connections and forbids the ping, as where net.ipv4.ping_group_range has
    nobody; nothing answers. `sends` False: it forbids both."""

    def __init__(self, sends: bool) -> None:
        super().__init__()
        self.sends = sends

    async def _connects(self, ip_address: str, port: int) -> bool | None:
        if self.sends:
            await asyncio.sleep(FAR_S)
        return None

    async def _pings(self, ip_address: str) -> bool | None:
        return None


@pytest.mark.parametrize(("sends", "answer"), [(True, False), (False, None)])
def test_a_ping_that_is_forbidden_does_not_hide_what_was_sent(
    sends: bool, answer: bool | None
) -> None:
    assert asyncio.run(HalfSent(sends).answers("192.0.2.1:1")) is answer


def test_a_name_whose_lookup_hangs_cannot_be_asked() -> None:
    async def hang(name: str) -> list[str]:
        await asyncio.sleep(FAR_S)
        return []

    async def story() -> bool | None:
        reach = NetworkReach()
        reach._lookup.addresses = hang  # type: ignore[method-assign]
        async with asyncio.timeout(QUESTION_S):
            return await reach.answers("vm.example:80")

    assert asyncio.run(story()) is None


def test_the_time_for_an_answer_is_less_than_a_beat_and_a_stall() -> None:
    assert QUESTION_S <= BEAT_S
