# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why a request is not answered as it was asked."""

from __future__ import annotations

from broker.daemon.errors import HaError


class RequestError(HaError):
    """The request is refused: it does not fit, or too many come."""


class BadQuery(RequestError):
    """A parameter of the query is invalid."""


class Busy(RequestError):
    """The pool of this purpose is full."""
