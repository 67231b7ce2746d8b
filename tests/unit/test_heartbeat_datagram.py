# SPDX-License-Identifier: LGPL-2.1-or-later
"""Datagrams of the heartbeat: only what a member signed for this question is read."""

from __future__ import annotations

import hmac
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config.cluster_key import ClusterKey
from broker.peers.datagram import (
    DATAGRAM_BYTES,
    BadDatagram,
    Question,
    answer_bytes,
    heard_in,
    looks_like_a_question,
    question_bytes,
    question_of,
)
from broker.peers.heartbeat import Fault, Heartbeat
from scoring.vm_facts import VmStatus

RAW_KEY = bytes(range(32))
KEY, OTHER_KEY = ClusterKey(RAW_KEY), ClusterKey(b"x" * 32)
NONCE = "0123456789abcdef" * 2
QUESTION = Question(1, 2, "asker-boot", 5_000_000_000, NONCE)
LIFE = Heartbeat(
    2,
    "a-boot-id",
    17,
    VmStatus.UP,
    NONCE,
    cluster="11111111-2222-3333-4444-555555555555",
    whiteboard="21111111-2222-3333-4444-555555555555",
    leases="31111111-2222-3333-4444-555555555555",
    written=16,
    generation=3,
    renewed=5012,
    written_ago_ms=120,
)


def resigned(raw: bytes, **changed: object) -> bytes:
    """The datagram with other fields, signed by who has the key."""
    head, _, rest = raw.partition(b"\n")
    body = {**json.loads(rest.partition(b"\n")[2]), **changed}
    text = json.dumps(body).encode().ljust(DATAGRAM_BYTES - len(head) - 66)
    mac = hmac.new(RAW_KEY, head + b"\n" + text, "sha256").hexdigest().encode()
    return head + b"\n" + mac + b"\n" + text


def test_a_question_and_its_answer_arrive_as_they_were_sent() -> None:
    question = question_of(KEY, question_bytes(KEY, QUESTION))
    assert question == QUESTION
    for life in (LIFE, msgspec.structs.replace(LIFE, others_up=True)):
        assert heard_in(KEY, answer_bytes(KEY, question, life), QUESTION) == life


def test_the_answer_is_no_longer_than_the_question_and_fits_one_packet() -> None:
    """A longer answer would let anybody have a broker send a third host more than he sends."""
    widest = msgspec.structs.replace(
        LIFE, boot_id="b" * 64, timestamp=2**53, written=2**53, generation=2**53, renewed=2**53
    )
    question = Question(2000, 1999, "b" * 64, 2**62, NONCE)
    assert len(question_bytes(KEY, question)) == len(answer_bytes(KEY, question, widest))
    assert len(question_bytes(KEY, question)) == DATAGRAM_BYTES <= 1280 - 48


def test_the_wire_format_does_not_change_by_accident() -> None:
    """Brokers of different versions must understand each other."""
    head, mac, body = answer_bytes(KEY, QUESTION, LIFE).split(b"\n")
    assert head == b"ha-agent heartbeat answer 1"
    assert mac.decode() == hmac.new(RAW_KEY, head + b"\n" + body, "sha256").hexdigest()
    assert json.loads(body) == {
        "host_id": 2,
        "asker": 1,
        "boot_id": "a-boot-id",
        "nonce": NONCE,
        "timestamp": 17,
        "vms": {"1": "up"},
        "written_ago_ms": 120,
        "cluster": LIFE.cluster,
        "whiteboard": LIFE.whiteboard,
        "leases": LIFE.leases,
        "written": 16,
        "generation": 3,
        "renewed": 5012,
    }
    head, mac, body = question_bytes(KEY, QUESTION).split(b"\n")
    assert head == b"ha-agent heartbeat question 1"
    assert json.loads(body) == {
        "asker": 1,
        "asked": 2,
        "boot_id": "asker-boot",
        "number": 5_000_000_000,
        "nonce": NONCE,
    }


ANSWER = answer_bytes(KEY, QUESTION, LIFE)


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (answer_bytes(OTHER_KEY, QUESTION, LIFE), Fault.WRONG_MAC),
        (answer_bytes(KEY, QUESTION, msgspec.structs.replace(LIFE, host_id=3)), Fault.WRONG_HOST),
        (
            answer_bytes(KEY, msgspec.structs.replace(QUESTION, asker=3), LIFE),
            Fault.WRONG_HOST,
        ),
        (
            answer_bytes(KEY, msgspec.structs.replace(QUESTION, nonce="f" * 32), LIFE),
            Fault.REPLAYED,
        ),
        (question_bytes(KEY, QUESTION), Fault.REFLECTED),
        (answer_bytes(KEY, QUESTION, msgspec.structs.replace(LIFE, written=18)), Fault.IMPOSSIBLE),
        (ANSWER + b" ", Fault.UNREADABLE),
        (ANSWER[:-1], Fault.UNREADABLE),
        (b"", Fault.UNREADABLE),
        (b"x" * DATAGRAM_BYTES, Fault.UNREADABLE),
        (resigned(ANSWER, boot_id="a\nb"), Fault.UNREADABLE),
        (resigned(ANSWER, timestamp=2**53 + 1), Fault.UNREADABLE),
        (resigned(ANSWER, host_id=2001), Fault.UNREADABLE),
        (resigned(ANSWER, cluster="ours"), Fault.UNREADABLE),
    ],
)
def test_any_other_answer_is_none(raw: bytes, fault: Fault) -> None:
    assert heard_in(KEY, raw, QUESTION) is fault


@given(st.integers(0, DATAGRAM_BYTES - 1), st.integers(1, 255))
def test_every_byte_of_an_answer_is_covered(place: int, flip: int) -> None:
    changed = bytearray(ANSWER)
    changed[place] ^= flip
    assert isinstance(heard_in(KEY, bytes(changed), QUESTION), Fault)


@given(st.binary(max_size=200) | st.binary(min_size=DATAGRAM_BYTES, max_size=DATAGRAM_BYTES))
def test_any_bytes_are_survived(raw: bytes) -> None:
    for head in (b"", b"ha-agent heartbeat question 1\n", b"ha-agent heartbeat answer 1\n"):
        data = head + raw
        assert isinstance(heard_in(KEY, data, QUESTION), Fault)
        looks_like_a_question(data)
        with pytest.raises(BadDatagram):
            question_of(KEY, data[:DATAGRAM_BYTES])


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (question_bytes(OTHER_KEY, QUESTION), Fault.WRONG_MAC),
        (ANSWER, Fault.REFLECTED),
        (question_bytes(KEY, QUESTION)[:-1], Fault.UNREADABLE),
        (resigned(question_bytes(KEY, QUESTION), number=2**62 + 1), Fault.UNREADABLE),
        (resigned(question_bytes(KEY, QUESTION), number=-1), Fault.UNREADABLE),
        (resigned(question_bytes(KEY, QUESTION), asker=0), Fault.UNREADABLE),
        (resigned(question_bytes(KEY, QUESTION), nonce=NONCE.upper()), Fault.UNREADABLE),
    ],
)
def test_what_is_no_question_is_named(raw: bytes, fault: Fault) -> None:
    with pytest.raises(BadDatagram) as raised:
        question_of(KEY, raw)
    assert raised.value.fault is fault


def test_what_a_later_version_adds_is_ignored_and_its_words_are_unknown() -> None:
    more = resigned(ANSWER, load=0.5, vms={"1": "hibernating", "2": "up"})
    assert heard_in(KEY, more, QUESTION) == msgspec.structs.replace(LIFE, vm=VmStatus.UNKNOWN)
    assert question_of(KEY, resigned(question_bytes(KEY, QUESTION), why="x")) == QUESTION


def test_while_the_key_is_changed_both_are_understood() -> None:
    changing = ClusterKey(b"x" * 32, also=RAW_KEY)
    assert question_of(changing, question_bytes(KEY, QUESTION)) == QUESTION
    assert heard_in(changing, ANSWER, QUESTION) == LIFE
