# SPDX-License-Identifier: LGPL-2.1-or-later
"""Addresses: what is one, what another host may make this one connect to, what is published."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config.addresses import ADDRESSES_MAX, advertised, is_loopback, split, to_advertise


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("host2:8765", ("host2", 8765)),
        ("10.0.0.2:1", ("10.0.0.2", 1)),
        ("[fd00::2]:65535", ("fd00::2", 65535)),
    ],
)
def test_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert split(address) == parts


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host2",
        "host2:",
        ":8765",
        "host2:0",
        "host2:65536",
        "fd00::2:8765",
        "[host2]:8765",
        "[:::]:8765",
        "http://host2:8765",
        "host2:8765/x",
        "user@host2:8765",
        "host2:8765\n",
        "ho st:1",
        "host2:٣",
        "x" * 300 + ":1",
    ],
)
def test_anything_else_is_none(address: str) -> None:
    with pytest.raises(ValueError):
        split(address)
    assert advertised(address) == ()


@given(st.text())
def test_foreign_text_makes_at_most_so_many_good_addresses(text: str) -> None:
    found = advertised(text)
    assert len(found) <= ADDRESSES_MAX
    for address in found:
        split(address)


def test_more_addresses_than_may_be_are_not_looked_at() -> None:
    text = ",".join(f"host2:{port}" for port in range(1, 20))
    assert advertised(text) == tuple(f"host2:{port}" for port in range(1, ADDRESSES_MAX + 1))
    assert advertised("a:1,b,a:1,c:3") == ("a:1", "c:3")


@pytest.mark.parametrize(
    ("listen", "published"),
    [
        ((), ()),
        (("127.0.0.1:8765", "[::1]:8765", "localhost:1"), ()),
        (("10.0.0.1:8765", "[fd00::1]:9"), ("10.0.0.1:8765", "[fd00::1]:9")),
        (("0.0.0.0:8765", "[::]:8765"), ("host1:8765",)),
    ],
)
def test_what_is_published_is_what_others_reach(
    listen: tuple[str, ...], published: tuple[str, ...]
) -> None:
    assert to_advertise(listen, "host1") == published


def test_loopback() -> None:
    assert is_loopback("127.9.9.9:1") and is_loopback("[::1]:1") and is_loopback("localhost:1")
    assert not is_loopback("host2:1") and not is_loopback("10.0.0.1:1")
