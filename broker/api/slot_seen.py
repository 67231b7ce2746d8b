# SPDX-License-Identifier: LGPL-2.1-or-later
"""Answers whether this host reads what a joining host has written to its slot: `GET /slot-seen`,
for holders of the cluster key only (broker/peers/slot_question.py). One read of one slot at a
time."""

from __future__ import annotations

from aiohttp import web

from broker.api.served import Served
from broker.api.signed import busy, no_key, refusal
from broker.peers.slot_question import PATH, Seen, SlotQuestion, answer, digest_of
from broker.whiteboard.store import StorageTrouble


class SlotSeer:
    """Answers for one broker."""

    def __init__(self, broker: Served) -> None:
        self._broker = broker
        self._is_busy = False

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the route."""
        router.add_get(PATH, self._get, allow_head=False)

    async def _get(self, request: web.Request) -> web.Response:
        key = self._broker.heartbeats.key
        if key is None:
            return no_key()
        given = request.query
        number = given.get("id", "")
        host_id = int(number) if number.isascii() and number.isdigit() and len(number) < 5 else 0
        question = SlotQuestion(
            host_id, given.get("digest", ""), given.get("nonce", ""), given.get("mac", "")
        )
        needs = "id, a host's, digest, 64 hexadecimal digits, and nonce, 32"
        if (refused := refusal(question, key, needs)) is not None:
            return refused
        if self._is_busy:
            return busy()
        self._is_busy = True
        try:
            slot = await self._broker.board.read_slot(host_id)
            said = answer(
                key, question, Seen.YES if digest_of(slot) == question.digest else Seen.NO
            )
        except StorageTrouble as error:
            said = answer(key, question, Seen.UNKNOWN, str(error))
        finally:
            self._is_busy = False
        return web.Response(body=said, content_type="application/json")
