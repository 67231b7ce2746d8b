# SPDX-License-Identifier: LGPL-2.1-or-later
"""What hosts of earlier versions write into their slots and understand of the others'.

    this       this version
    previous   what a host is about to do is there, but not until when it moves the VM, no port
               for heartbeats: it asks, and is asked, over HTTP; and no VM but the engine
    reference  oVirt's fields alone, no line of text behind them

Only what is on the whiteboard, and what they answer over the network, is modelled: the decisions
are this version's on every host. Neither version says anything of its storage, or signs a slot.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

import msgspec

from broker.whiteboard.errors import BadSlot
from broker.whiteboard.extra import signed_part_of_cluster
from broker.whiteboard.lines import intent_of
from broker.whiteboard.signatures import COUNTER_LINE
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import decode_slot, encode_slot
from broker.wire.limits import HOST_ID_MAX


class Metadata(StrEnum):
    """Versions of the metadata, by name."""

    THIS = "this"
    PREVIOUS = "previous"
    REFERENCE = "reference"


def of_version(slot: int, data: bytes, metadata: Metadata) -> bytes:
    """A slot as a host of that version writes it, or would read it; what is no host's slot, or no
    readable one, is the same in all."""
    if metadata is Metadata.THIS or slot > HOST_ID_MAX:
        return data
    if slot == 0:
        signed = signed_part_of_cluster(data)
        return data if signed is None else signed[0].ljust(SLOT_BYTES, b"\0")
    try:
        report = decode_slot(slot, data)
    except BadSlot:
        return data
    if report is None:
        return data
    # What is encoded anew here is not signed, as neither version signs anything.
    extra: dict[str, str] = {}
    if metadata is Metadata.PREVIOUS:
        extra = dict(report.extra)
        extra.pop(COUNTER_LINE, None)
        for several in ("speaks", "registry", "mem", "vms", "claims"):
            extra.pop(several, None)
        extra["intent"], _ = intent_of(extra.get("intent", ""), slot)
        extra.pop("heartbeat", None)
    return encode_slot(replace(report, extra=extra))


def heartbeat_of_version(answer: bytes, metadata: Metadata) -> bytes:
    """An answer over the network as a host of that version gives it."""
    if metadata is Metadata.THIS:
        return answer
    fields = msgspec.json.decode(answer, type=dict[str, str | int])
    return msgspec.json.encode({name: fields[name] for name in _EARLIER_ANSWER})


_EARLIER_ANSWER = ("host_id", "boot_id", "timestamp", "vm", "nonce", "mac")
