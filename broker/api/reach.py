# SPDX-License-Identifier: LGPL-2.1-or-later
"""Answers whether this host reaches another one's libvirt, for a host that is joining.

The question is `GET /libvirt-reach`, and only a holder of the cluster key may ask it
(broker/peers/reach_question.py). The broker's user connects to the address that a migration would
use: `libvirt.migration-uri`. One question at a time, with a deadline: many questions do not
delay this host.
"""

from __future__ import annotations

from collections.abc import Mapping

import libvirt
from aiohttp import web

from broker.api.answers import problem
from broker.api.served import Served
from broker.api.signed import SignedRoute
from broker.config.addresses import in_uri
from broker.config.cluster_key import ClusterKey
from broker.daemon.foreign import sentence
from broker.daemon.worker import Hung, Worker
from broker.peers.libvirt_reach import ask_libvirt
from broker.peers.reach_question import DEADLINE_S, PATH, Question, answer


class LibvirtReachRoute(SignedRoute[Question]):
    """Answers for one broker, by its present configuration."""

    path = PATH
    needs = "name, a host's, and nonce, 32 hexadecimal digits"

    def __init__(self, broker: Served) -> None:
        super().__init__(broker)
        self._worker = Worker("libvirt of another host")

    def question_in(self, given: Mapping[str, str]) -> Question:
        return Question(given.get("name", ""), given.get("nonce", ""), given.get("mac", ""))

    async def answer_to(self, question: Question, key: ClusterKey) -> web.Response:
        uri = self._broker.config.libvirt.migration_uri
        if not uri:
            return problem(409, "no migration", "libvirt.migration-uri is not set on this host")
        said = await self._reach(uri.format(host=in_uri(question.name)))
        return web.Response(body=answer(key, question, said), content_type="application/json")

    async def _reach(self, uri: str) -> str:
        """Why libvirt there is not reached; empty: it is."""
        try:
            await self._worker.call("asking it", DEADLINE_S, ask_libvirt, uri)
        except (libvirt.libvirtError, Hung) as error:
            return f"{uri}: {sentence(error)}"
        return ""
