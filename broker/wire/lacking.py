# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a cluster was never given, so that it is slower or loses more than it could."""

from __future__ import annotations

from msgspec import Struct


class LackingStatus(Struct, frozen=True):
    """Host ids, in order; empty in a cluster of one. `fence_device`: no device is configured that
    could switch this host off. `heartbeat`: it publishes no address at which it could say that it
    lives. `migration`: nothing is configured there by which the VM could leave it while it runs;
    known of this host alone."""

    fence_device: tuple[int, ...] = ()
    heartbeat: tuple[int, ...] = ()
    migration: tuple[int, ...] = ()
