# SPDX-License-Identifier: LGPL-2.1-or-later
"""The gate before the answers: who is let in, what is refused and under which name."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from broker.config.cluster_key import ClusterKey
from broker.peers import question_gate
from broker.peers.datagram import Question, answer_bytes, question_bytes, question_of
from broker.peers.heartbeat import Heartbeat, new_nonce
from broker.peers.question_gate import (
    ANSWERS_PER_S,
    BOOTS_MAX,
    STRANGERS_PER_S,
    WINDOW_S,
    QuestionGate,
    Refusal,
    as_number,
)
from scoring.vm_facts import VmStatus

KEY, OTHER_KEY = ClusterKey(b"k" * 32), ClusterKey(b"x" * 32)
HERE, ASKER = 2, 1
ASKER_AT, STRANGER_AT = "192.0.2.1", "203.0.113.9"
SECOND = 1_000_000_000
GARBAGE = b"ha-agent heartbeat question 1\n" + b"x" * 994


def question(number: int, boot_id: str = "boot", asker: int = ASKER, asked: int = HERE) -> Question:
    return Question(asker, asked, boot_id, number, new_nonce())


class Gate:
    """Host 2's, whose clock is moved by hand."""

    def __init__(self) -> None:
        self.gate = QuestionGate(HERE)
        self.gate.members({ASKER: (f"{ASKER_AT}:8766", "host1:8765"), 3: ("[2001:DB8::3]:8766",)})
        self.now_s = 1000.0

    def sees(self, raw: bytes, source: str = ASKER_AT) -> Refusal | None:
        """Why the datagram is refused; None: it is answered."""
        found = self.gate.admit(KEY, raw, source, self.now_s)
        return found if isinstance(found, Refusal) else None

    def asked(self, its: Question, source: str = ASKER_AT) -> Refusal | None:
        return self.sees(question_bytes(KEY, its), source)


@pytest.fixture
def gate() -> Gate:
    return Gate()


def test_a_member_s_question_is_answered_and_its_replay_is_not(gate: Gate) -> None:
    raw = question_bytes(KEY, question(7 * SECOND))
    assert gate.sees(raw) is None
    assert gate.sees(raw) is Refusal.REPLAYED
    assert gate.gate.answered == 1 and gate.gate.refused == {Refusal.REPLAYED: 1}
    assert gate.gate.refused_of == {ASKER: {Refusal.REPLAYED: 1}}


def test_questions_that_overtake_each_other_are_answered_and_old_ones_are_not(gate: Gate) -> None:
    assert gate.asked(question(100 * SECOND)) is None
    assert gate.asked(question(99 * SECOND)) is None
    assert gate.asked(question(int((100 - WINDOW_S) * SECOND))) is Refusal.REPLAYED
    assert gate.asked(question(101 * SECOND)) is None


def test_a_question_from_before_a_restart_is_named_so(gate: Gate) -> None:
    recorded = question_bytes(KEY, question(7 * SECOND, "earlier-boot"))
    assert gate.sees(recorded) is None
    assert gate.asked(question(1 * SECOND, "boot")) is None, "a boot counts anew"
    assert gate.sees(recorded) is Refusal.BEFORE_RESTART


def test_two_machines_with_one_host_id_do_not_silence_each_other(gate: Gate) -> None:
    """A misconfigured one must not take the network's word from the member."""
    for number in range(1, 20):
        assert gate.asked(question(number * SECOND, "one")) is None
        assert gate.asked(question(number, "other")) is None


def test_of_many_boots_the_oldest_are_forgotten(gate: Gate) -> None:
    for boot in range(BOOTS_MAX + 1):
        gate.now_s += 1.0
        assert gate.asked(question(SECOND, f"boot-{boot}")) is None
    assert len(gate.gate._members[ASKER].boots) == BOOTS_MAX


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", Refusal.UNREADABLE),
        (b"GET / HTTP/1.1\r\n\r\n", Refusal.UNREADABLE),
        (b"x" * 65_507, Refusal.UNREADABLE),
        (question_bytes(KEY, question(1)) + b" ", Refusal.UNREADABLE),
        (GARBAGE, Refusal.UNREADABLE),
        (question_bytes(OTHER_KEY, question(1)), Refusal.WRONG_MAC),
        (question_bytes(KEY, question(1, asked=3)), Refusal.WRONG_HOST),
        (question_bytes(KEY, question(1, asker=HERE, asked=ASKER)), Refusal.REFLECTED),
        (
            answer_bytes(KEY, question(1), Heartbeat(2, "boot", 1, VmStatus.UP, new_nonce())),
            Refusal.REFLECTED,
        ),
    ],
)
def test_what_is_no_question_for_this_host_is_named(gate: Gate, raw: bytes, why: Refusal) -> None:
    assert gate.sees(raw) is why
    assert gate.gate.refused == {why: 1} and gate.gate.answered == 0


def test_a_stranger_without_the_key_is_a_stranger_whatever_he_sends(gate: Gate) -> None:
    assert gate.sees(question_bytes(OTHER_KEY, question(1)), STRANGER_AT) is Refusal.STRANGER
    assert gate.gate.refused_of == {}


def test_beyond_some_a_second_strangers_are_dropped_unread(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = itertools.count()
    read = question_of

    def counted(key: ClusterKey, raw: bytes) -> Question:
        next(looked_at)
        return read(key, raw)

    monkeypatch.setattr(question_gate, "question_of", counted)
    raw = question_bytes(OTHER_KEY, question(1))
    for n in range(10 * STRANGERS_PER_S):
        assert gate.sees(raw, f"203.0.113.{n % 250}") is Refusal.STRANGER
    assert next(looked_at) == STRANGERS_PER_S
    gate.now_s += 1.0
    assert gate.sees(raw, STRANGER_AT) is Refusal.STRANGER
    assert next(looked_at) == STRANGERS_PER_S + 2


def test_no_flood_of_strangers_or_replays_costs_a_member_its_answer(gate: Gate) -> None:
    replay = question_bytes(KEY, question(SECOND))
    assert gate.sees(replay) is None
    for number in range(2, 12):
        for _ in range(500):
            gate.sees(question_bytes(OTHER_KEY, question(1)), STRANGER_AT)
            assert gate.sees(replay) is Refusal.REPLAYED
            gate.sees(GARBAGE)
        gate.now_s += 0.1
        assert gate.asked(question(number * SECOND)) is None


def test_a_member_whose_address_was_never_seen_is_answered_and_known_from_then_on(
    gate: Gate,
) -> None:
    """One that publishes a name, that has two networks, that has not written its slot yet."""
    assert gate.asked(question(SECOND, asker=9), STRANGER_AT) is None
    assert gate.gate.host_at(STRANGER_AT) == 9
    for _ in range(2 * STRANGERS_PER_S):
        gate.sees(question_bytes(OTHER_KEY, question(1)), "203.0.113.77")
    assert gate.asked(question(2 * SECOND, asker=9), STRANGER_AT) is None


def test_a_member_gets_so_many_answers_a_second_and_takes_none_from_another(gate: Gate) -> None:
    found = [gate.asked(question(number * 1000)) for number in range(1, 2 * ANSWERS_PER_S)]
    assert found.count(None) == ANSWERS_PER_S and set(found) == {None, Refusal.TOO_MANY}
    assert gate.asked(question(SECOND, asker=3), "2001:db8::3") is None
    gate.now_s += 1.0
    assert gate.asked(question(SECOND)) is None


def test_what_is_remembered_of_a_member_is_bounded(gate: Gate) -> None:
    for number in range(1, 4000):
        gate.now_s += 1 / ANSWERS_PER_S
        assert gate.asked(question(number * SECOND // ANSWERS_PER_S)) is None
    boot = gate.gate._members[ASKER].boots["boot"]
    assert len(boot.seen) <= ANSWERS_PER_S * WINDOW_S + 1


def test_the_proven_addresses_are_bounded(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question_gate, "PROVEN_MAX", 3)
    for n in range(1, 6):
        assert gate.asked(question(n * SECOND, asker=9), f"203.0.113.{n}") is None
    assert list(gate.gate._proven) == ["203.0.113.3", "203.0.113.4", "203.0.113.5"]


def test_addresses_are_known_in_the_kernel_s_form(gate: Gate) -> None:
    assert gate.gate.host_at("2001:db8::3") == 3
    assert gate.gate.host_at("host1") is None, "a name is no address until it has asked"
    assert as_number("2001:DB8:0::3") == "2001:db8::3"
    assert as_number("::ffff:192.0.2.1") == "192.0.2.1"
    assert as_number("host1") == ""


def test_a_question_after_another_of_its_fields_was_changed_is_not_signed(gate: Gate) -> None:
    raw = bytearray(question_bytes(KEY, question(SECOND)))
    place = bytes(raw).index(b'"number":1')
    raw[place + 9 : place + 10] = b"2"
    assert gate.sees(bytes(raw)) is Refusal.WRONG_MAC


def test_the_values_of_refusals_are_stable() -> None:
    assert {refusal.value for refusal in Refusal} == {
        *("unreadable", "reflected", "stranger", "wrong-mac", "wrong-host"),
        *("replayed", "before-restart", "too-many"),
    }
    assert msgspec.json.encode(Refusal.TOO_MANY) == b'"too-many"'
