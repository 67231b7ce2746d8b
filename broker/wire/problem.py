# SPDX-License-Identifier: LGPL-2.1-or-later
"""The error of an answer that did not succeed (RFC 9457)."""

from __future__ import annotations

from msgspec import Struct


class Problem(Struct, frozen=True):
    """An error in the API's answer (RFC 9457)."""

    title: str
    status: int
    detail: str = ""
    type: str = "about:blank"
