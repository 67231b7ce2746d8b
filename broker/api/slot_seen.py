# SPDX-License-Identifier: LGPL-2.1-or-later
"""Answers whether this host reads what a joining host has written to its slot: `GET /slot-seen`,
for holders of the cluster key only (broker/peers/slot_question.py). One read of one slot at a
time."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from broker.api.signed import SignedRoute
from broker.config.cluster_key import ClusterKey
from broker.peers.slot_question import PATH, Seen, SlotQuestion, answer, digest_of
from broker.whiteboard.store import StorageTrouble


class SlotSeenRoute(SignedRoute[SlotQuestion]):
    """Answers for one broker."""

    path = PATH
    needs = "id, a host's, digest, 64 hexadecimal digits, and nonce, 32"

    def question_in(self, given: Mapping[str, str]) -> SlotQuestion:
        number = given.get("id", "")
        host_id = int(number) if number.isascii() and number.isdigit() and len(number) < 5 else 0
        return SlotQuestion(
            host_id, given.get("digest", ""), given.get("nonce", ""), given.get("mac", "")
        )

    async def answer_to(self, question: SlotQuestion, key: ClusterKey) -> web.Response:
        try:
            slot = await self._broker.board.read_slot(question.host_id)
            said = answer(
                key, question, Seen.YES if digest_of(slot) == question.digest else Seen.NO
            )
        except StorageTrouble as error:
            said = answer(key, question, Seen.UNKNOWN, str(error))
        return web.Response(body=said, content_type="application/json")
