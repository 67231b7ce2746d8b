# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM by this host's own monitor: the slot publishes this, never the agent's word."""

from __future__ import annotations

from broker.monitors.watched import Watched
from broker.wire.status import MigrationStatus
from scoring.vm_facts import DETAIL_MIGRATION_SOURCE, DomainHere, EngineStatus, Health, VmStatus

#: An older sample counts as unknown.
SAMPLE_OLD_S = 15.0


class VmSample:
    """The monitor's last sample, unless it is old."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched

    def status(self, now_s: float) -> tuple[EngineStatus, float]:
        """The VM's status on this host, and when it was sampled."""
        sample = self.watched.runner.latest.get("engine")
        if sample is None:
            reason = "not sampled yet"
        elif sample.value is None:
            reason = sample.problem or "no answer"
        elif now_s - sample.taken_s > SAMPLE_OLD_S:
            reason = f"the last sample is {now_s - sample.taken_s:.0f} s old"
        else:
            assert isinstance(sample.value, EngineStatus)
            return sample.value, sample.taken_s
        return EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN, "unknown", reason), now_s

    def owns(self, now_s: float) -> bool:
        """Whether the VM is up here under its lease, and not about to leave."""
        engine, _ = self.status(now_s)
        is_leaving = engine.detail == DETAIL_MIGRATION_SOURCE
        return engine.vm is VmStatus.UP and self.lease_held is True and not is_leaving

    @property
    def lease_held(self) -> bool | None:
        """Whether the VM's process here holds the engine lease; None: unknown."""
        return self.watched.vm.lease_held

    @property
    def migration(self) -> MigrationStatus | None:
        """The progress of its migration; None: there is none."""
        return self.watched.vm.migration

    @property
    def facts(self) -> DomainHere:
        """The other facts of its domain here."""
        return self.watched.vm.facts
