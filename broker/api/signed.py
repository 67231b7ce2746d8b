# SPDX-License-Identifier: LGPL-2.1-or-later
"""The questions of a joining host over HTTP: which of them are answered.

Such a question costs this host a read of the storage or a connection to another host, so it must
not be open to everybody. It is answered only if it is signed with the cluster key, and one at a
time, so that many questions do not delay this host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from aiohttp import web

from broker.api.answers import problem
from broker.api.served import Served
from broker.config.cluster_key import ClusterKey


class SignedQuestion(Protocol):
    """A question of a holder of the cluster key."""

    @property
    def has_form(self) -> bool: ...

    def is_from(self, key: ClusterKey) -> bool: ...


Asked = TypeVar("Asked", bound=SignedQuestion)


class SignedRoute(Generic[Asked]):
    """A route for one kind of such questions. `path`, and what a good question `needs`: of the
    kind."""

    path: str
    needs: str

    def __init__(self, broker: Served) -> None:
        self._broker = broker
        self._is_busy = False

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the route."""
        router.add_get(self.path, self._get, allow_head=False)

    async def _get(self, request: web.Request) -> web.Response:
        key = self._broker.heartbeats.key
        if key is None:
            return no_key()
        question = self.question_in(request.query)
        if (refused := refusal(question, key, self.needs)) is not None:
            return refused
        if self._is_busy:
            return busy()
        self._is_busy = True
        try:
            return await self.answer_to(question, key)
        finally:
            self._is_busy = False

    def question_in(self, given: Mapping[str, str]) -> Asked:
        """The question in a request's query; it may lack its form."""
        raise NotImplementedError

    async def answer_to(self, question: Asked, key: ClusterKey) -> web.Response:
        """The answer to a question that has its form and is signed."""
        raise NotImplementedError


def no_key() -> web.Response:
    """The answer of a host without a cluster key."""
    return problem(404, "no cluster key", "this host has none in its secrets file")


def refusal(question: SignedQuestion, key: ClusterKey, needs: str) -> web.Response | None:
    """Why the question is not answered; None: it is. `needs`: what a good question has."""
    if not question.has_form:
        return problem(400, f"needs {needs}")
    if not question.is_from(key):
        return problem(403, "not signed with this cluster's key")
    return None


def busy() -> web.Response:
    """The answer while another such question is answered."""
    return problem(503, "busy with such a question", "ask again")
