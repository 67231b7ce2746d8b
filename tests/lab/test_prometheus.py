# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real Prometheus scrapes three hosts through a power cut: the alerts that should fire do and
resolve, the others stay quiet, and every query of the Grafana dashboard is answered."""

from __future__ import annotations

import shutil

import pytest

from tests.unit.documents import queries

from . import ask, prometheus
from .cluster import Cluster

#: What the lab has nothing of: no way out for notices is configured, and its load is not yet
#: known in the first 15 minutes.
EMPTY_IN_THE_LAB = ("ha_agent_notify_messages_total", 'monitor="cpu_load"')
#: Alerts about what does not happen here.
QUIET = {
    "HaEngineDown",
    "HaEngineDownLong",
    "HaEngineUnknown",
    "HaVmUnprotected",
    "HaNoStandby",
    "HaAgentSilent",
    "HaFenceFailed",
    "HaFenceHeldBack",
    "HaStorageHung",
    "HaConfigRefused",
}


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_alerts_fire_and_resolve_through_a_failover(lab: Cluster) -> None:
    victim = lab.wait_healthy(60.0)
    number = int(victim.removeprefix("host"))
    with prometheus.running(lab) as asked:
        ask.until(
            "it runs there", 15, lambda: asked.value("max(ha_agent_engine_host_id)") == number
        )
        assert "HaHostSilent" not in asked.firing()
        # Only hosts that stay: what the victim has counted goes with it.
        address = lab.layout.host(number).address
        counted = f'sum(ha_agent_failovers_total{{instance!~"{address.replace(".", "[.]")}:.*"}})'
        before = asked.value(counted)
        lab.cut(victim)
        ask.until("its silence is an alert", 30, lambda: "HaHostSilent" in asked.firing())
        (silent,) = asked.query('ALERTS{alertname="HaHostSilent",alertstate="firing"}')
        assert silent["metric"]["host"] == victim
        heir = lab.wait_healthy(60.0)
        ask.until(
            "the takeover is counted",
            20,
            lambda: asked.value(counted) == (before or 0.0) + 1,
        )
        assert asked.value("max(ha_agent_engine_host_id)") == int(heir.removeprefix("host"))
        phases = asked.query("sum by (phase) (ha_agent_failover_seconds_count) >= 1")
        assert {each["metric"]["phase"] for each in phases} == {"away", "start", "boot", "total"}
        lab.power_on(victim)
        ask.until("the alert is over", 60, lambda: "HaHostSilent" not in asked.firing())
        ask.until("the host tells", 30, lambda: "HaHostWasSwitchedOff" in asked.firing())
        fired = asked.query('count by (alertname) (ALERTS{alertstate="firing"})')
        print("fire at the end:", sorted(each["metric"]["alertname"] for each in fired))
        for alert in sorted(QUIET):
            ever = f'max_over_time(ALERTS{{alertname="{alert}",alertstate="firing"}}[5m])'
            assert asked.query(ever) == [], alert
        for panel, query in queries():
            text = query.replace("$job", prometheus.JOB).replace("$__rate_interval", "30s")
            found = asked.query(text)
            if not any(word in query for word in EMPTY_IN_THE_LAB) and "> 0" not in query:
                assert found, (panel, query)
    lab.wait_booted(victim)
