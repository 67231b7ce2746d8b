# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the engine is up, and since when it is there and as healthy as it is. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from broker.since import Since
from broker.wire import EngineSummary, HostStatus
from scoring.liveness import Liveness
from scoring.observation import Health, VmStatus


def engine_of(hosts: Iterable[HostStatus]) -> HostStatus | None:
    """The host where it is up, best of all well; None: nowhere."""
    up = [
        host
        for host in hosts
        if host.engine_status.vm is VmStatus.UP and host.liveness != Liveness.SILENT.value
    ]
    return next(filter(_is_well, up), up[0] if up else None)


def _is_well(host: HostStatus) -> bool:
    return host.engine_status.health is Health.GOOD


class EnginePlace:
    """Is shown the engine's host again and again, and tells since when."""

    def __init__(self) -> None:
        self._place, self._health = Since(), Since()

    def look(self, host_id: int | None, healthy: bool, now_s: float) -> None:
        """Where it is now; None: nowhere."""
        self._place.look(host_id, now_s)
        self._health.look((host_id, healthy), now_s)

    def summary(self, where: HostStatus | None, last_up: str | None, now_s: float) -> EngineSummary:
        """`where`: its host as it is shown. `last_up`: where it was seen last."""
        place = where.host_id if where is not None else None
        healthy = where is not None and _is_well(where)
        return EngineSummary(
            up=where is not None,
            healthy=healthy,
            host=place,
            hostname=where.hostname if where is not None else None,
            for_s=self._place.for_s(place, now_s),
            at_least=self._place.at_least,
            health_for_s=self._health.for_s((place, healthy), now_s),
            health_at_least=self._health.at_least,
            last_up=last_up if where is None else None,
        )
