# SPDX-License-Identifier: LGPL-2.1-or-later
"""The monitors' latest samples as the status shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.monitors.network_verdict import TargetResult
from broker.monitors.runner import Sample
from broker.wire.status import MonitorStatus
from scoring.vm_facts import EngineStatus


def shown_monitors(latest: Mapping[str, Sample], now_s: float) -> dict[str, MonitorStatus]:
    """Each monitor by name, in order."""
    return {
        name: MonitorStatus(
            value=_plain(sample.value),
            unit=sample.unit,
            age_s=now_s - sample.taken_s,
            took_s=sample.took_s,
            verdict=sample.verdict.value,
            problem=sample.problem,
            interval_s=sample.interval_s,
        )
        for name, sample in sorted(latest.items())
    }


def _plain(value: Any) -> bool | float | str | dict[str, float] | None:
    """A value as JSON has it."""
    if isinstance(value, EngineStatus):
        return f"{value.vm.value}/{value.health.value}"
    if isinstance(value, tuple) and all(isinstance(each, TargetResult) for each in value):
        return {each.target: each.last for each in value}
    if value is None or isinstance(value, bool | int | float | str | dict):
        return value
    return str(value)
