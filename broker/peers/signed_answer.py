# SPDX-License-Identifier: LGPL-2.1-or-later
"""The common part of questions that one host asks another over HTTP. Pure.

Question and answer are signed with the cluster key over lines that begin with the name and version
of what is signed, and carry the nonce of the asking host. An answer is JSON; where the asked host
could not find the answer, one line in it says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
from msgspec import Meta

from broker.config.cluster_key import ClusterKey
from broker.daemon.foreign_json import decoded
from broker.peers.errors import BadAnswer

#: The length at which a foreign sentence is cut.
PROBLEM_CHARS_MAX = 500
ANSWER_BYTES_MAX = 4096
Mac = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Problem = Annotated[str, Meta(pattern=r"^[^\n]*\Z", max_length=PROBLEM_CHARS_MAX)]
_MAC = re.compile("[0-9a-f]{64}")


class _Signed(Protocol):
    """A message with its MAC."""

    @property
    def mac(self) -> str: ...


_Answer = TypeVar("_Answer", bound=_Signed)


def signed_text(*lines: str) -> bytes:
    """The text to sign. No line may hold a newline: two messages would have one MAC."""
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def has_mac(key: ClusterKey, text: bytes, mac: str) -> bool:
    """Whether a holder of the key has signed this; `mac` may be any text."""
    return _MAC.fullmatch(mac) is not None and key.accepts(text, mac)


def problem_line(problem: str) -> str:
    """One line that UTF-8 can encode."""
    return " ".join(problem.encode("utf-8", "replace").decode().split())[:PROBLEM_CHARS_MAX]


def answer_bytes(key: ClusterKey, made: Any, text: bytes) -> bytes:
    """An answer, a Struct with a field `mac`, as bytes."""
    return msgspec.json.encode(msgspec.structs.replace(made, mac=key.sign(text)))


def answer_in(
    key: ClusterKey, raw: bytes, kind: type[_Answer], text_of: Callable[[_Answer], bytes]
) -> _Answer:
    """The answer in these bytes; BadAnswer where they are no answer of a holder of the key."""
    try:
        found = decoded(raw, kind)
    except msgspec.MsgspecError:
        raise BadAnswer("an answer that cannot be read") from None
    if not key.accepts(text_of(found), found.mac):
        raise BadAnswer("an answer signed with another key")
    return found
