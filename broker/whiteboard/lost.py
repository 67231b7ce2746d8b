# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether this host has lost the whiteboard: its reads and its writes, or its writes alone."""

from __future__ import annotations

from broker.whiteboard.board import Board


def lost_since_s(board: Board) -> float | None:
    """Since when nothing that was read or written has come back; None: something does."""
    if not (board.read_problem and board.write_problem):
        return None
    done_s = [at_s for at_s in (board.last_read_s, board.last_write_s) if at_s is not None]
    return max(done_s, default=board.trouble_since_s)


def unwritten_since_s(board: Board) -> float | None:
    """Since when no write of this host's own slot has succeeded; None: the last one did."""
    if not board.write_problem:
        return None
    return board.trouble_since_s if board.last_write_s is None else board.last_write_s
