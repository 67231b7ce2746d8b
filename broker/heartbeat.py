# SPDX-License-Identifier: LGPL-2.1-or-later
"""A sign of life over the network: the answer to a question, signed with the cluster key. Pure.

Rules of this file:

1. Who asks makes a nonce that nobody can know before. An answer that carries it was made after
   the question, so it proves life since then; no clock is compared.
2. The MAC covers every field of the answer and the version of this text:

       ha-agent heartbeat 1 \\n host id \\n boot id \\n timestamp \\n vm \\n nonce

   No field can hold a newline. HMAC-SHA256, in hexadecimal.
3. Whatever is wrong with an answer, it is no sign of life.
"""

from __future__ import annotations

import hmac
import secrets
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from scoring.observation import VmStatus

NONCE_BYTES = 16
#: Longer answers are not read to their end.
ANSWER_BYTES_MAX = 1024
#: HMAC keys below its output's length weaken it (RFC 2104, 3).
KEY_BYTES_MIN = 32

_VERSION = "ha-agent heartbeat 1"

# \Z: $ would also match before a last newline.
Nonce = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]


class Heartbeat(Struct, frozen=True):
    """An answer. `timestamp`: of the host's last slot; `vm`: its own word on the engine VM."""

    host_id: int
    boot_id: Annotated[str, Meta(pattern=r"^[!-~]{0,64}\Z")]
    timestamp: int
    vm: VmStatus
    nonce: Nonce
    mac: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")] = ""


class Fault(StrEnum):
    """Why an answer is no sign of life. The values are stable: they go into JSON and metrics."""

    UNREADABLE = "unreadable"
    WRONG_MAC = "wrong-mac"
    WRONG_HOST = "wrong-host"
    REPLAYED = "replayed"


def new_nonce() -> str:
    """One that was never used and cannot be guessed."""
    return secrets.token_hex(NONCE_BYTES)


def is_nonce(text: str) -> bool:
    """Whether it has the form of one."""
    try:
        msgspec.convert(text, Nonce)
    except msgspec.ValidationError:
        return False
    return True


def signed(key: bytes, heartbeat: Heartbeat) -> bytes:
    """The answer as it goes over the wire."""
    return msgspec.json.encode(msgspec.structs.replace(heartbeat, mac=_mac(key, heartbeat)))


def fault_of(key: bytes, raw: bytes, host_id: int, nonce: str) -> Fault | None:
    """What is wrong with this answer to a question to `host_id`; None: nothing."""
    try:
        heartbeat = msgspec.json.decode(raw, type=Heartbeat)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Fault.UNREADABLE
    if not hmac.compare_digest(_mac(key, heartbeat), heartbeat.mac):
        return Fault.WRONG_MAC
    if heartbeat.host_id != host_id:
        return Fault.WRONG_HOST
    return None if heartbeat.nonce == nonce else Fault.REPLAYED


def vm_of(raw: bytes) -> VmStatus:
    """What an answer without a fault says of the VM on the host that gave it."""
    return msgspec.json.decode(raw, type=Heartbeat).vm


def _mac(key: bytes, heartbeat: Heartbeat) -> str:
    fields = (
        _VERSION,
        str(heartbeat.host_id),
        heartbeat.boot_id,
        str(heartbeat.timestamp),
        heartbeat.vm.value,
        heartbeat.nonce,
    )
    text = "\n".join(fields)
    assert text.count("\n") == len(fields) - 1, text
    return hmac.digest(key, text.encode(), "sha256").hex()
