# SPDX-License-Identifier: LGPL-2.1-or-later
"""The questions of a joining host over HTTP: which of them are answered.

Such a question costs this host a read of the storage or a connection to another host, so it must
not be open to everybody. It is answered only if it is signed with the cluster key, and one at a
time, so that many questions do not delay this host.
"""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from broker.api.answers import problem
from broker.config.cluster_key import ClusterKey


class SignedQuestion(Protocol):
    """A question of a holder of the cluster key."""

    @property
    def has_form(self) -> bool: ...

    def is_from(self, key: ClusterKey) -> bool: ...


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
