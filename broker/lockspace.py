# SPDX-License-Identifier: LGPL-2.1-or-later
"""Port to the lockspace: this host's id, joined once and kept for as long as the host lives."""

from __future__ import annotations

from typing import Protocol


class LockspaceError(Exception):
    """The lockspace cannot be joined, and trying again will not help: what and why."""


class Lockspace(Protocol):
    """Port to the lockspace."""

    joined: bool | None
    problem: str

    async def run(self) -> None:
        """Keep the id joined for ever; LockspaceError where only a person can help."""
