# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes the fence log through the broker, which alone accesses the whiteboard."""

from __future__ import annotations

from broker.client.ask import BrokerError
from broker.client.link import Link
from broker.wire.exchange import FenceNote


class BrokerFenceLog:
    """The real FenceLog."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def note(self, note: FenceNote) -> str:
        try:
            await self._link.note_fence(note)
        except BrokerError as error:
            return str(error)
        return ""
