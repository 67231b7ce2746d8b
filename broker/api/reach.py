# SPDX-License-Identifier: LGPL-2.1-or-later
"""Answers whether this host reaches another one's libvirt, for a host that is joining.

The question is `GET /libvirt-reach`, and only a holder of the cluster key may ask it
(broker/peers/reach_question.py). The broker's user connects to the address that a migration would
use: `libvirt.migration-uri`. One question at a time, with a deadline: many questions do not
delay this host.
"""

from __future__ import annotations

import libvirt
from aiohttp import web

from broker.api.answers import problem
from broker.api.served import Served
from broker.api.signed import busy, no_key, refusal
from broker.config.addresses import in_uri
from broker.daemon.foreign import sentence
from broker.daemon.worker import Hung, Worker
from broker.peers.libvirt_reach import ask_libvirt
from broker.peers.reach_question import DEADLINE_S, PATH, Question, answer


class Reacher:
    """Answers for one broker, by its present configuration."""

    def __init__(self, broker: Served) -> None:
        self._broker = broker
        self._worker = Worker("libvirt of another host")
        self._is_busy = False

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the route."""
        router.add_get(PATH, self._get, allow_head=False)

    async def _get(self, request: web.Request) -> web.Response:
        key = self._broker.heartbeats.key
        if key is None:
            return no_key()
        given = request.query
        question = Question(given.get("name", ""), given.get("nonce", ""), given.get("mac", ""))
        needs = "name, a host's, and nonce, 32 hexadecimal digits"
        if (refused := refusal(question, key, needs)) is not None:
            return refused
        uri = self._broker.config.libvirt.migration_uri
        if not uri:
            return problem(409, "no migration", "libvirt.migration-uri is not set on this host")
        if self._is_busy:
            return busy()
        self._is_busy = True
        try:
            said = await self._reach(uri.format(host=in_uri(question.name)))
        finally:
            self._is_busy = False
        return web.Response(body=answer(key, question, said), content_type="application/json")

    async def _reach(self, uri: str) -> str:
        """Why libvirt there is not reached; empty: it is."""
        try:
            await self._worker.call("asking it", DEADLINE_S, ask_libvirt, uri)
        except (libvirt.libvirtError, Hung) as error:
            return f"{uri}: {sentence(error)}"
        return ""
