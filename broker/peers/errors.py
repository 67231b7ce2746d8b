# SPDX-License-Identifier: LGPL-2.1-or-later
"""What other hosts send, and cannot be used."""

from __future__ import annotations

from broker.daemon.errors import HaError


class PeerError(HaError):
    """What came over the network is not what a member sends."""


class BadAnswer(PeerError):
    """An answer that is none to this question by a holder of the cluster key: why."""
