# SPDX-License-Identifier: LGPL-2.1-or-later
"""A question between hosts: is this what you read in that slot? Pure.

A host that joins sees the members' slots change. Only the members can say whether they see its own:
a volume that shows the cluster's writes and hides its own (a replica, a snapshot that follows)
would make two clusters of one. So it writes its slot and asks.

Rules of this file:

1. The content is named by the SHA-256 of the slot's 4096 bytes. An answer says whether the slot
   held them in a read that was made after the question had come.
2. Question and answer are signed with the cluster key, and carry the nonce of the asking host:

       ha-agent slot question 1 \\n nonce \\n host id \\n digest
       ha-agent slot answer 1 \\n nonce \\n host id \\n digest \\n seen \\n problem

3. `seen` is "yes", "no" (the slot was read and holds something else) or "unknown" (it was not
   read: `problem` says why).
"""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Annotated
from urllib.parse import urlencode

import msgspec
from msgspec import Meta, Struct

from broker.config.cluster_key import ClusterKey
from broker.daemon.foreign import clean
from broker.peers.errors import BadAnswer
from broker.peers.heartbeat import Nonce, is_nonce
from broker.peers.signed_answer import (
    Mac,
    Problem,
    answer_bytes,
    answer_in,
    has_mac,
    problem_line,
    signed_text,
)
from broker.wire.limits import HOST_ID_MAX

PATH = "/slot-seen"
_HEX = re.compile("[0-9a-f]{64}")


class Seen(StrEnum):
    """The result of a member's read of the slot."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


def digest_of(slot: bytes) -> str:
    """The name of a slot's content."""
    return hashlib.sha256(slot).hexdigest()


class SlotQuestion(Struct, frozen=True):
    """Whether the slot of host `host_id` holds the bytes of that `digest`."""

    host_id: int
    digest: str
    nonce: str
    mac: str = ""

    def signed(self, key: ClusterKey) -> SlotQuestion:
        """The question with its MAC."""
        return msgspec.structs.replace(self, mac=key.sign(_question_text(self)))

    @property
    def target(self) -> str:
        """The target of the HTTP request."""
        given = {"id": self.host_id, "digest": self.digest, "nonce": self.nonce, "mac": self.mac}
        return f"{PATH}?{urlencode(given)}"

    @property
    def has_form(self) -> bool:
        """Whether all fields have the right form; others are neither signed nor checked."""
        is_id = 1 <= self.host_id <= HOST_ID_MAX
        return is_id and is_nonce(self.nonce) and _HEX.fullmatch(self.digest) is not None

    def is_from(self, key: ClusterKey) -> bool:
        """Whether a holder of the key has asked this."""
        return self.has_form and has_mac(key, _question_text(self), self.mac)


class SlotSeen(Struct, frozen=True):
    """The answer to a SlotQuestion."""

    host_id: int
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    nonce: Nonce
    seen: Seen
    problem: Problem = ""
    mac: Mac = ""


def answer(key: ClusterKey, question: SlotQuestion, seen: Seen, problem: str = "") -> bytes:
    """The signed answer to a good question, as bytes."""
    line = problem_line(problem)
    made = SlotSeen(question.host_id, question.digest, question.nonce, seen, line)
    return answer_bytes(key, made, _answer_text(made))


def seen_in(key: ClusterKey, raw: bytes, question: SlotQuestion) -> SlotSeen:
    """The answer; BadAnswer where it is none to this question by a holder of the key."""
    found = answer_in(key, raw, SlotSeen, _answer_text)
    asked = (question.host_id, question.digest, question.nonce)
    if (found.host_id, found.digest, found.nonce) != asked:
        raise BadAnswer("an answer to another question")
    return msgspec.structs.replace(found, problem=clean(found.problem))


def _question_text(question: SlotQuestion) -> bytes:
    assert question.has_form, question
    about = str(question.host_id), question.digest
    return signed_text("ha-agent slot question 1", question.nonce, *about)


def _answer_text(found: SlotSeen) -> bytes:
    about = str(found.host_id), found.digest
    said = found.seen.value, found.problem
    return signed_text("ha-agent slot answer 1", found.nonce, *about, *said)
