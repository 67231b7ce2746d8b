# SPDX-License-Identifier: LGPL-2.1-or-later
"""A question between hosts: does your host reach the libvirt of the host with this name? Pure.

Rules of this file:

1. Question and answer carry the same nonce, which the asking host has made, and the same name. An
   answer was made after the question, and for it.
2. Both are signed with the cluster key, over texts that no other message of ours can be:

       ha-agent reach question 1 \\n nonce \\n name
       ha-agent reach answer 1 \\n nonce \\n name \\n problem

   No field can hold a newline. HMAC-SHA256, in hexadecimal.
3. Anyone can repeat a question that was overheard: it then costs one connection from a member
   to a host that a holder of the key has named, and reveals nothing new.
"""

from __future__ import annotations

from urllib.parse import urlencode

import msgspec
from msgspec import Struct

from broker.config.addresses import in_uri
from broker.config.cluster_key import ClusterKey
from broker.daemon.foreign import clean
from broker.peers.errors import BadAnswer
from broker.peers.heartbeat import Nonce, is_nonce, new_nonce
from broker.peers.signed_answer import (
    Mac,
    Problem,
    answer_bytes,
    answer_in,
    has_mac,
    problem_line,
    signed_text,
)

PATH = "/libvirt-reach"
#: The member's time to connect to the libvirt in question.
DEADLINE_S = 10.0
__all__ = ["Question", "Reach", "is_host_name", "new_nonce"]


class Question(Struct, frozen=True):
    """The question about the host `name`."""

    name: str
    nonce: str
    mac: str = ""

    def signed(self, key: ClusterKey) -> Question:
        """The question with its MAC; `name` has to be a host name."""
        return msgspec.structs.replace(self, mac=key.sign(_question_text(self)))

    @property
    def target(self) -> str:
        """The target of the HTTP request."""
        return f"{PATH}?{urlencode(msgspec.structs.asdict(self))}"

    @property
    def has_form(self) -> bool:
        """Whether name and nonce have the right form; others are neither signed nor checked."""
        return is_host_name(self.name) and is_nonce(self.nonce)

    def is_from(self, key: ClusterKey) -> bool:
        """Whether a holder of the key has asked this."""
        return self.has_form and has_mac(key, _question_text(self), self.mac)


class Reach(Struct, frozen=True):
    """The answer. `problem`: why that libvirt is not reached; empty: it is."""

    name: str
    nonce: Nonce
    problem: Problem
    mac: Mac = ""


def answer(key: ClusterKey, question: Question, problem: str) -> bytes:
    """The signed answer to a good question, as bytes."""
    made = Reach(question.name, question.nonce, problem_line(problem))
    return answer_bytes(key, made, _answer_text(made))


def problem_in(key: ClusterKey, raw: bytes, question: Question) -> str:
    """The problem in an answer; BadAnswer where it is no answer to this question."""
    found = answer_in(key, raw, Reach, _answer_text)
    if (found.name, found.nonce) != (question.name, question.nonce):
        raise BadAnswer("an answer to another question")
    return clean(found.problem)


def is_host_name(text: str) -> bool:
    """Whether it may replace `{host}` in a URI; no part of it may change the URI's meaning."""
    return in_uri(text) != ""


def _question_text(question: Question) -> bytes:
    assert question.has_form, question
    return signed_text("ha-agent reach question 1", question.nonce, question.name)


def _answer_text(found: Reach) -> bytes:
    return signed_text("ha-agent reach answer 1", found.nonce, found.name, found.problem)
