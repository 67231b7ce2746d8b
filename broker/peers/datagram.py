# SPDX-License-Identifier: LGPL-2.1-or-later
"""Question and answer of a heartbeat as datagrams. Pure.

Anybody can send a datagram and write any address on it. So its length is checked first, its MAC
second, and nothing else of a datagram is read before the MAC has proven that a member signed it.

Rules of this file:

1. Both are text of DATAGRAM_BYTES in all, so an answer is never longer than its question:

       ha-agent heartbeat question 1 \\n MAC \\n {JSON} spaces
       ha-agent heartbeat answer 1 \\n MAC \\n {JSON} spaces

   The MAC (broker/config/cluster_key.py) covers the first line and all that follows the MAC, spaces
   and fields of later versions included. DATAGRAM_BYTES is below what IPv6 carries in one piece.
2. A question names the asking and the asked host and the boot, and has a number that grows with
   each question of that boot: it is not answered twice.
3. An answer names the answering and the asking host, and carries the nonce of the question, which
   nobody can know before: it was made after the question, whatever the clocks say.
4. Fields that a later version adds are ignored. A later version with another meaning has another
   first line.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from broker.config.cluster_key import MAC_DIGITS, ClusterKey
from broker.daemon.foreign_json import decoded
from broker.peers.errors import PeerError
from broker.peers.heartbeat import BootId, Counter, Fault, Heartbeat, Id, Nonce
from scoring.vm_facts import VmStatus

DATAGRAM_BYTES = 1024
#: The number of the VM that all versions know.
_ENGINE = "1"
#: A status that only a later version knows is unknown here.
_STATUS = {status.value: status for status in VmStatus}
_QUESTION = b"ha-agent heartbeat question 1\n"
_ANSWER = b"ha-agent heartbeat answer 1\n"
#: The first bytes of a question of any version, for the kernel's filter.
QUESTION_BEGINS = _QUESTION[:4]

HostId = Annotated[int, Meta(ge=1, le=2000)]
#: Nanoseconds of a monotonic clock, as a rule; JSON has no bound, this has.
Number = Annotated[int, Meta(ge=0, le=2**62)]


class Question(Struct, frozen=True):
    """`asker`, `asked`: host ids. `boot_id`: of the asker. `number`: grows in that boot."""

    asker: HostId
    asked: HostId
    boot_id: BootId
    number: Number
    nonce: Nonce


class _Answer(Struct, frozen=True, omit_defaults=True):
    """The fields of a Heartbeat, but `vms`: the status of the engine there, by its number."""

    host_id: HostId
    asker: HostId
    boot_id: BootId
    nonce: Nonce
    timestamp: Counter
    vms: dict[str, str]
    cluster: Id = ""
    whiteboard: Id = ""
    leases: Id = ""
    written: Counter = 0
    generation: Counter = 0
    renewed: Counter = 0
    written_ago_ms: Counter | None = None
    lost_ms: Counter | None = None
    empty: bool = False
    global_maintenance: bool | None = None
    others_up: bool = False


class BadDatagram(PeerError):
    """The datagram is not the expected one: `fault`."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


def question_bytes(key: ClusterKey, question: Question) -> bytes:
    """The question as bytes."""
    return _datagram(key, _QUESTION, question)


def answer_bytes(key: ClusterKey, question: Question, life: Heartbeat) -> bytes:
    """The answer as bytes. `life`: the answering host's sign of life."""
    answer = _Answer(
        host_id=life.host_id,
        asker=question.asker,
        boot_id=life.boot_id,
        nonce=question.nonce,
        timestamp=life.timestamp,
        vms={_ENGINE: life.vm.value},
        cluster=life.cluster,
        whiteboard=life.whiteboard,
        leases=life.leases,
        written=life.written,
        generation=life.generation,
        renewed=life.renewed,
        written_ago_ms=life.written_ago_ms,
        lost_ms=life.lost_ms,
        empty=life.empty,
        global_maintenance=life.global_maintenance,
        others_up=life.others_up,
    )
    return _datagram(key, _ANSWER, answer)


def looks_like_a_question(raw: bytes) -> Fault | None:
    """What can be checked without any work: None where it may be a question."""
    if len(raw) == DATAGRAM_BYTES and raw.startswith(_QUESTION):
        return None
    return Fault.REFLECTED if raw.startswith(_ANSWER) else Fault.UNREADABLE


def question_of(key: ClusterKey, raw: bytes) -> Question:
    """A question that a member has signed; BadDatagram."""
    body = _signed_body(key, raw, _QUESTION, _ANSWER)
    try:
        return decoded(body, Question)
    except msgspec.MsgspecError:
        raise BadDatagram(Fault.UNREADABLE) from None


def heard_in(key: ClusterKey, raw: bytes, question: Question) -> Heartbeat | Fault:
    """The answer to this question, or what is wrong with it."""
    try:
        answer = decoded(_signed_body(key, raw, _ANSWER, _QUESTION), _Answer)
    except BadDatagram as error:
        return error.fault
    except msgspec.MsgspecError:
        return Fault.UNREADABLE
    if (answer.host_id, answer.asker) != (question.asked, question.asker):
        return Fault.WRONG_HOST
    if answer.nonce != question.nonce:
        return Fault.REPLAYED
    if answer.written > answer.timestamp:
        return Fault.IMPOSSIBLE
    return Heartbeat(
        host_id=answer.host_id,
        boot_id=answer.boot_id,
        timestamp=answer.timestamp,
        vm=_STATUS.get(answer.vms.get(_ENGINE, ""), VmStatus.UNKNOWN),
        nonce=answer.nonce,
        cluster=answer.cluster,
        whiteboard=answer.whiteboard,
        leases=answer.leases,
        written=answer.written,
        generation=answer.generation,
        renewed=answer.renewed,
        written_ago_ms=answer.written_ago_ms,
        lost_ms=answer.lost_ms,
        empty=answer.empty,
        global_maintenance=answer.global_maintenance,
        others_up=answer.others_up,
    )


def _datagram(key: ClusterKey, head: bytes, content: Struct) -> bytes:
    body = msgspec.json.encode(content).ljust(DATAGRAM_BYTES - len(head) - MAC_DIGITS - 1)
    raw = b"%b%b\n%b" % (head, key.sign(head + body).encode(), body)
    assert len(raw) == DATAGRAM_BYTES, len(raw)
    return raw


def _signed_body(key: ClusterKey, raw: bytes, head: bytes, other: bytes) -> bytes:
    """The content after a valid MAC; BadDatagram. `other`: the first line of the other kind."""
    if raw.startswith(other):
        raise BadDatagram(Fault.REFLECTED)
    mac_ends = len(head) + MAC_DIGITS
    if len(raw) != DATAGRAM_BYTES or not raw.startswith(head) or raw[mac_ends] != ord("\n"):
        raise BadDatagram(Fault.UNREADABLE)
    body = raw[mac_ends + 1 :]
    if not key.accepts(head + body, raw[len(head) : mac_ends].decode("latin-1")):
        raise BadDatagram(Fault.WRONG_MAC)
    return body
