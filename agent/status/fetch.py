# SPDX-License-Identifier: LGPL-2.1-or-later
"""The status as the broker answers it, decoded and made into text.

A module that the answer does not need is not imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.status.read import Lacking, read
from agent.status.text import as_text
from broker.client.quick import get

if TYPE_CHECKING:
    from broker.client.ask import BrokerRefused
    from broker.wire.status import Status

#: A longer answer is decoded faster by msgspec, even with its import.
SHORT_BYTES = 128 * 1024


def fetch(socket: str) -> bytes:
    """The status as JSON. Raises as `ask` does."""
    code, raw = get(socket, "/v1/status")
    if code != 200:
        from broker.client.ask import BrokerRefused, refusal

        raise BrokerRefused(refusal(code, raw), code)
    return raw


def shown(raw: bytes, width: int | None, colour: bool) -> tuple[str, Status]:
    """The text, and the status that it was made from."""
    try:
        status = read(raw)
        return as_text(status, width, colour), status
    except (Lacking, ValueError, TypeError, AttributeError, RecursionError):
        status = _decoded(raw)
        return as_text(status, width, colour), status


def _decoded(raw: bytes) -> Status:
    """The decoded answer; BrokerRefused where it has another form."""
    import msgspec

    from broker.client.ask import BrokerRefused
    from broker.daemon.foreign_json import decoded
    from broker.wire.status import Status

    try:
        return decoded(raw, Status)
    except msgspec.MsgspecError as error:
        raise BrokerRefused(f"an answer that does not fit: {error}") from None


def does_not_fit(raw: bytes) -> BrokerRefused:
    """The refusal of an answer that is no status."""
    from broker.client.ask import BrokerRefused

    try:
        _decoded(raw)
    except BrokerRefused as error:
        return error
    return BrokerRefused("an answer that does not fit: it has no engine that is up or not")
