# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files that a member hands to a newcomer, and the messages between the two. Pure.

The newcomer sends one line of JSON over TLS, an Asked; the member answers with one, an Answer, and
closes.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

#: What a member reads of a newcomer, and the other way round.
ASKED_BYTES_MAX, ANSWER_BYTES_MAX = 1024, 8 * 1024 * 1024
#: How long an invitation is valid; after that its process still answers, for a while, that it has
#: ended.
HOLDS_S, SAYS_S = 600.0, 300.0
#: The first port, and how many are tried, one for each invitation that is open.
FIRST_PORT, PORTS = 8767, 8

Text = Annotated[str, Meta(max_length=2 * 1024 * 1024)]


class Ids(msgspec.Struct, frozen=True):
    """The numbers of a user and its group on a host."""

    uid: Annotated[int, Meta(ge=0, lt=2**32)]
    gid: Annotated[int, Meta(ge=0, lt=2**32)]


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """`config`, `secrets`, `definition`, `authority`: the text of the member's files; `authority`
    empty where the cluster makes no certificates. `ids`: its users' numbers by name. `version`: of
    ha-agent there."""

    config: Text
    secrets: Text
    definition: Text
    ids: Annotated[dict[str, Ids], Meta(max_length=8)] = {}
    version: Annotated[str, Meta(max_length=64)] = ""
    authority: Annotated[str, Meta(max_length=64 * 1024)] = ""

    def __repr__(self) -> str:
        return "Offer(***)"


class Asked(msgspec.Struct, frozen=True):
    """`secret`: of the token, in hex. `host`: the newcomer's name, for the sentence that the token
    was used."""

    secret: Annotated[str, Meta(max_length=64)]
    host: Annotated[str, Meta(max_length=253)] = ""


class Answer(msgspec.Struct, frozen=True):
    """`problem`: why there is no offer, in a sentence."""

    offer: Offer | None = None
    problem: Annotated[str, Meta(max_length=1024)] = ""


class Spec(msgspec.Struct, frozen=True):
    """The order of the process. `sockets`: descriptors that listen. `certificate`: with its key,
    PEM."""

    sockets: tuple[int, ...]
    certificate: str
    secret: str
    offer: Offer
    holds_s: float = HOLDS_S
    says_s: float = SAYS_S
