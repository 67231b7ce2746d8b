# SPDX-License-Identifier: LGPL-2.1-or-later
"""A sign of life over the network: the answer to a question, signed with the cluster key. Pure.

This file has the content of the answer, and the form in which hosts without a port for heartbeats
are asked, over HTTP. The form for the other hosts is in broker/peers/datagram.py.

Rules of this file:

1. The asking host makes a nonce that nobody can know before. An answer that carries it was made
   after the question, so it proves life since then; no clock is compared.
2. The MAC covers every field of the answer and the version of this text:

       ha-agent heartbeat 1 \\n host id \\n boot id \\n timestamp \\n vm \\n nonce

   No field can hold a newline. HMAC-SHA256, in hexadecimal.
3. An answer with any fault is no sign of life.
4. Fields that later versions added are covered by a second MAC, `proof`, whose text continues where
   the first one's ends: ids of cluster, whiteboard and leases, what was written, what was renewed.
   An answer without it is of an earlier version: a sign of life without these fields.
"""

from __future__ import annotations

import secrets
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from broker.config.cluster_key import ClusterKey
from broker.daemon.foreign_json import decoded
from scoring.vm_facts import VmStatus

NONCE_BYTES = 16
#: Longer answers are not read to the end.
ANSWER_BYTES_MAX = 1024

_VERSION = "ha-agent heartbeat 1"
_PROOF_VERSION = "ha-agent heartbeat 2"

# \Z: $ would also match before a last newline.
Nonce = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]


#: The id of a cluster or a volume: a UUID, "" for none.
Id = Annotated[str, Meta(pattern=r"^(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})?\Z")]
#: A counter of a slot is not larger (broker/whiteboard/slot.py).
Counter = Annotated[int, Meta(ge=0, le=2**53)]
BootId = Annotated[str, Meta(pattern=r"^[!-~]{0,64}\Z")]
_Mac = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Heartbeat(Struct, frozen=True, omit_defaults=True):
    """An answer. `timestamp`: of the host's last slot; `vm`: the engine's status on that host;
    `others_up`: whether another protected VM is up there, or may be.

    `cluster`, `whiteboard`, `leases`: the ids that its configuration names. `written`: the
    timestamp of its last slot that the storage acknowledged, 0: none since its broker was started.
    `generation`, `renewed`: the last renewal of its own host id, as it reads it on the lease
    volume; 0: none. `written_ago_ms`: how long before this answer that slot was acknowledged, in
    milliseconds; None: not said. `lost_ms`: for so long nothing that it read or wrote on the
    whiteboard has come back, in milliseconds; None: something does, or not said. `empty`: no
    process of a protected VM is left on it. `global_maintenance`: as it has read it; None: it has
    not, or does not say. The last five are not said over HTTP, where no MAC covers them.
    """

    host_id: int
    boot_id: BootId
    timestamp: int
    vm: VmStatus
    nonce: Nonce
    mac: _Mac = ""
    cluster: Id = ""
    whiteboard: Id = ""
    leases: Id = ""
    written: Counter = 0
    generation: Counter = 0
    renewed: Counter = 0
    proof: Annotated[str, Meta(pattern=r"^(?:[0-9a-f]{64})?\Z")] = ""
    written_ago_ms: Counter | None = None
    lost_ms: Counter | None = None
    empty: bool = False
    global_maintenance: bool | None = None
    others_up: bool = False


class Fault(StrEnum):
    """Why an answer is no sign of life. The values are stable: they go into JSON and metrics.

    WRONG_HOST: another host's, or to another host's question. IMPOSSIBLE: it says that more was
    acknowledged than was ever written. REFLECTED: a question where an answer belongs, or the other
    way round."""

    UNREADABLE = "unreadable"
    WRONG_MAC = "wrong-mac"
    WRONG_HOST = "wrong-host"
    REPLAYED = "replayed"
    IMPOSSIBLE = "impossible"
    REFLECTED = "reflected"


def new_nonce() -> str:
    """A new nonce, which nobody can guess."""
    return secrets.token_hex(NONCE_BYTES)


def is_nonce(text: str) -> bool:
    """Whether the text has the form of a nonce."""
    try:
        msgspec.convert(text, Nonce)
    except msgspec.ValidationError:
        return False
    return True


def signed(key: ClusterKey, heartbeat: Heartbeat) -> bytes:
    """The answer as bytes."""
    text = _text(heartbeat)
    mac = key.sign(_signed_text(_VERSION, text))
    heartbeat = msgspec.structs.replace(_without_unproven(heartbeat), mac=mac)
    proof = key.sign(_signed_text(_PROOF_VERSION, (*text, *_more(heartbeat))))
    return msgspec.json.encode(msgspec.structs.replace(heartbeat, proof=proof))


def heard(key: ClusterKey, raw: bytes, host_id: int, nonce: str) -> Heartbeat | Fault:
    """The answer to a question to `host_id`, or its fault.

    An answer of an earlier version proves only that its host lives.
    """
    try:
        heartbeat = decoded(raw, Heartbeat)
    except msgspec.MsgspecError:
        return Fault.UNREADABLE
    text = _text(heartbeat)
    if not key.accepts(_signed_text(_VERSION, text), heartbeat.mac):
        return Fault.WRONG_MAC
    if not heartbeat.proof:
        heartbeat = Heartbeat(
            heartbeat.host_id, heartbeat.boot_id, heartbeat.timestamp, heartbeat.vm, heartbeat.nonce
        )
    else:
        whole = _signed_text(_PROOF_VERSION, (*text, *_more(heartbeat)))
        if not key.accepts(whole, heartbeat.proof):
            return Fault.WRONG_MAC
    if heartbeat.host_id != host_id:
        return Fault.WRONG_HOST
    if heartbeat.nonce != nonce:
        return Fault.REPLAYED
    if heartbeat.written > heartbeat.timestamp:
        return Fault.IMPOSSIBLE
    return _without_unproven(heartbeat)


def _without_unproven(heartbeat: Heartbeat) -> Heartbeat:
    """Without the fields that no MAC covers over HTTP: whoever carries the answer can add them."""
    return msgspec.structs.replace(
        heartbeat,
        written_ago_ms=None,
        lost_ms=None,
        empty=False,
        global_maintenance=None,
        others_up=False,
    )


def _text(heartbeat: Heartbeat) -> tuple[str, ...]:
    """The fields that the first MAC covers, after its version."""
    return (
        str(heartbeat.host_id),
        heartbeat.boot_id,
        str(heartbeat.timestamp),
        heartbeat.vm.value,
        heartbeat.nonce,
    )


def _more(heartbeat: Heartbeat) -> tuple[str, ...]:
    """The further fields that the second MAC covers."""
    counts = (heartbeat.written, heartbeat.generation, heartbeat.renewed)
    return (heartbeat.cluster, heartbeat.whiteboard, heartbeat.leases, *map(str, counts))


def _signed_text(version: str, fields: tuple[str, ...]) -> bytes:
    text = "\n".join((version, *fields))
    assert text.count("\n") == len(fields), text
    return text.encode()
