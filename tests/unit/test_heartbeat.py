# SPDX-License-Identifier: LGPL-2.1-or-later
"""The signed answer: only the one to this question, from this host, under this key, counts."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.heartbeat import Fault, Heartbeat, fault_of, is_nonce, new_nonce, signed
from scoring.observation import VmStatus

KEY = bytes(range(32))
NONCE = "0123456789abcdef" * 2
BEAT = Heartbeat(2, "a-boot-id", 17, VmStatus.UP, NONCE)


def test_the_answer_to_this_question_is_a_sign_of_life() -> None:
    assert fault_of(KEY, signed(KEY, BEAT), 2, NONCE) is None


def test_the_wire_format_does_not_change_by_accident() -> None:
    """Brokers of different versions must understand each other: made with Python's hmac once."""
    answer = json.loads(signed(KEY, BEAT))
    assert answer == {
        "host_id": 2,
        "boot_id": "a-boot-id",
        "timestamp": 17,
        "vm": "up",
        "nonce": NONCE,
        "mac": "6523633cdd8fc43736c8291d8ca9d903074b9fdef7a278361cf9a96c2f948c48",
    }


@pytest.mark.parametrize(
    ("key", "host_id", "nonce", "fault"),
    [
        (b"x" * 32, 2, NONCE, Fault.WRONG_MAC),
        (KEY, 3, NONCE, Fault.WRONG_HOST),
        (KEY, 2, "f" * 32, Fault.REPLAYED),
    ],
)
def test_any_other_answer_is_none(key: bytes, host_id: int, nonce: str, fault: Fault) -> None:
    assert fault_of(key, signed(KEY, BEAT), host_id, nonce) is fault


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host_id", 3),
        ("boot_id", "another"),
        ("timestamp", 18),
        ("vm", "down"),
        ("nonce", "f" * 32),
        ("mac", "0" * 64),
    ],
)
def test_every_field_is_covered_by_the_mac(field: str, value: object) -> None:
    changed = {**json.loads(signed(KEY, BEAT)), field: value}
    assert fault_of(KEY, json.dumps(changed).encode(), 2, NONCE) is Fault.WRONG_MAC


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
    ],
)
def test_a_field_of_another_form_is_not_even_checked(field: str, value: object) -> None:
    changed = {**json.loads(signed(KEY, BEAT)), field: value}
    assert fault_of(KEY, json.dumps(changed).encode(), 2, NONCE) is Fault.UNREADABLE


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_bytes_are_survived(raw: bytes) -> None:
    assert fault_of(KEY, raw, 2, NONCE) is Fault.UNREADABLE


def test_what_a_later_version_adds_is_ignored() -> None:
    more = {**json.loads(signed(KEY, BEAT)), "load": 0.5}
    assert fault_of(KEY, msgspec.json.encode(more), 2, NONCE) is None


def test_nonces_are_new_each_time() -> None:
    nonces = {new_nonce() for _ in range(100)}
    assert len(nonces) == 100 and all(map(is_nonce, nonces))
    assert not any(map(is_nonce, ["", "0" * 31, "0" * 33, NONCE.upper(), NONCE + "\n", "g" * 32]))
