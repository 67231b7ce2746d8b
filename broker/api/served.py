# SPDX-License-Identifier: LGPL-2.1-or-later
"""The part of the broker that the API serves, each object from its own room."""

from __future__ import annotations

from typing import Protocol

from broker.config.sections import Config
from broker.daemon.histogram import Histogram
from broker.daemon.news import News
from broker.events.availability import Availability
from broker.events.counts import EventCounts
from broker.events.history import History
from broker.events.ring import Events
from broker.exchange.asked import Asked
from broker.exchange.view import Exchange
from broker.maintenance.keeper import Keeper
from broker.notify.notices import Notices
from broker.peers.asker import Heartbeats
from broker.peers.question_gate import QuestionGate
from broker.registry.cache import RegistryCache
from broker.status.of_cluster import ClusterStatus
from broker.status.vms_now import VmsNow
from broker.this_host.facts import ThisHost
from broker.this_host.sign_of_life import SignOfLife
from broker.whiteboard.board import Board
from broker.wire.acknowledged import Acknowledged


class Served(Protocol):
    """`lateness`, `durations`: of the beats."""

    board: Board
    heartbeats: Heartbeats
    gate: QuestionGate
    sign_of_life: SignOfLife
    this_host: ThisHost
    shown: ClusterStatus
    vms_now: VmsNow
    exchange: Exchange
    asked: Asked
    keeper: Keeper
    events: Events
    counts: EventCounts
    history: History
    availability: Availability
    notices: Notices
    registry: RegistryCache
    news: News
    lateness: Histogram
    durations: Histogram

    @property
    def config(self) -> Config:
        """The configuration in force."""

    def acknowledge(self) -> Acknowledged:
        """Somebody has read why this host was switched off; OSError."""
