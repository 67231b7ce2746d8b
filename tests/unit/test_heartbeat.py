# SPDX-License-Identifier: LGPL-2.1-or-later
"""The signed answer: only the one to this question, from this host, under this key, counts."""

from __future__ import annotations

import hmac
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config.cluster_key import ClusterKey
from broker.peers.heartbeat import (
    ANSWER_BYTES_MAX,
    Fault,
    Heartbeat,
    heard,
    is_nonce,
    new_nonce,
    signed,
)
from scoring.vm_facts import VmStatus

RAW_KEY = bytes(range(32))
KEY = ClusterKey(RAW_KEY)
NONCE = "0123456789abcdef" * 2
BEAT = Heartbeat(2, "a-boot-id", 17, VmStatus.UP, NONCE)


def test_the_answer_to_this_question_is_a_sign_of_life() -> None:
    assert isinstance(heard(KEY, signed(KEY, BEAT), 2, NONCE), Heartbeat)


#: What a host of the version before wrote: made with Python's hmac once.
EARLIER = {
    "host_id": 2,
    "boot_id": "a-boot-id",
    "timestamp": 17,
    "vm": "up",
    "nonce": NONCE,
    "mac": "6523633cdd8fc43736c8291d8ca9d903074b9fdef7a278361cf9a96c2f948c48",
}
FULL = msgspec.structs.replace(
    BEAT,
    cluster="11111111-2222-3333-4444-555555555555",
    whiteboard="21111111-2222-3333-4444-555555555555",
    leases="31111111-2222-3333-4444-555555555555",
    written=16,
    generation=3,
    renewed=5012,
)


def test_the_wire_format_does_not_change_by_accident() -> None:
    """Brokers of different versions must understand each other."""
    ids = (FULL.cluster, FULL.whiteboard, FULL.leases)
    fields = ("ha-agent heartbeat 2", "2", "a-boot-id", "17", "up", NONCE, *ids, "16", "3", "5012")
    text = "\n".join(fields)
    more = {
        "cluster": FULL.cluster,
        "whiteboard": FULL.whiteboard,
        "leases": FULL.leases,
        "written": 16,
        "generation": 3,
        "renewed": 5012,
        "proof": hmac.new(RAW_KEY, text.encode(), "sha256").hexdigest(),
    }
    assert json.loads(signed(KEY, FULL)) == EARLIER | more
    assert len(signed(KEY, FULL)) < ANSWER_BYTES_MAX, "an earlier version reads no more"


def test_an_answer_of_the_earlier_version_is_a_sign_of_life_that_says_no_more() -> None:
    assert heard(KEY, json.dumps(EARLIER).encode(), 2, NONCE) == BEAT
    claims = {**EARLIER, "written": 16, "cluster": FULL.cluster}
    assert heard(KEY, json.dumps(claims).encode(), 2, NONCE) == BEAT, "nobody signed that"


def test_what_it_says_of_its_storage_is_heard() -> None:
    found = heard(KEY, signed(KEY, FULL), 2, NONCE)
    assert isinstance(found, Heartbeat)
    assert msgspec.structs.replace(found, mac="", proof="") == FULL


def test_more_was_acknowledged_than_written() -> None:
    future = msgspec.structs.replace(BEAT, written=18)
    assert heard(KEY, signed(KEY, future), 2, NONCE) is Fault.IMPOSSIBLE


@pytest.mark.parametrize(
    ("key", "host_id", "nonce", "fault"),
    [
        (ClusterKey(b"x" * 32), 2, NONCE, Fault.WRONG_MAC),
        (KEY, 3, NONCE, Fault.WRONG_HOST),
        (KEY, 2, "f" * 32, Fault.REPLAYED),
    ],
)
def test_any_other_answer_is_none(key: ClusterKey, host_id: int, nonce: str, fault: Fault) -> None:
    assert heard(key, signed(KEY, BEAT), host_id, nonce) is fault


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host_id", 3),
        ("boot_id", "another"),
        ("timestamp", 18),
        ("vm", "down"),
        ("nonce", "f" * 32),
        ("mac", "0" * 64),
        ("cluster", FULL.leases),
        ("whiteboard", FULL.leases),
        ("leases", ""),
        ("written", 15),
        ("generation", 4),
        ("renewed", 5013),
        ("proof", "0" * 64),
    ],
)
def test_every_field_is_covered_by_the_mac(field: str, value: object) -> None:
    changed = {**json.loads(signed(KEY, FULL)), field: value}
    assert heard(KEY, json.dumps(changed).encode(), 2, NONCE) is Fault.WRONG_MAC


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("boot_id", "a\nb"),
        ("boot_id", "x" * 65),
        ("vm", "gone"),
        ("nonce", NONCE + "\n"),
        ("nonce", NONCE.upper()),
        ("mac", "0" * 63),
        ("host_id", "2"),
        ("cluster", "ours"),
        ("whiteboard", FULL.whiteboard + "\n"),
        ("written", -1),
        ("written", 2**53 + 1),
        ("renewed", 1e30),
        ("generation", "3"),
        ("proof", "0" * 63),
    ],
)
def test_a_field_of_another_form_is_not_even_checked(field: str, value: object) -> None:
    changed = {**json.loads(signed(KEY, BEAT)), field: value}
    assert heard(KEY, json.dumps(changed).encode(), 2, NONCE) is Fault.UNREADABLE


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_bytes_are_survived(raw: bytes) -> None:
    assert heard(KEY, raw, 2, NONCE) is Fault.UNREADABLE


def test_what_a_later_version_adds_is_ignored() -> None:
    more = {**json.loads(signed(KEY, BEAT)), "load": 0.5}
    assert isinstance(heard(KEY, msgspec.json.encode(more), 2, NONCE), Heartbeat)


def test_nonces_are_new_each_time() -> None:
    nonces = {new_nonce() for _ in range(100)}
    assert len(nonces) == 100 and all(map(is_nonce, nonces))
    assert not any(map(is_nonce, ["", "0" * 31, "0" * 33, NONCE.upper(), NONCE + "\n", "g" * 32]))
