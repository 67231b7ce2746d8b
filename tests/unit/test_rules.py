# SPDX-License-Identifier: LGPL-2.1-or-later
"""The alert rules, by Debian's promtool: each fires when it should, and stays quiet when it
should; and the Grafana dashboard. What they ask for exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from broker.api.families import FAMILIES
from tests.unit.documents import GRAFANA, anchor, queries, sections

ROOT = Path(__file__).parents[2]
RULES = ROOT / "packaging" / "prometheus" / "ha-agent.rules.yml"
OPERATIONS = ROOT / "docs" / "operations.md"
RUNBOOK = "/usr/share/doc/ha-agent/operations.md"
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")

#: Two hosts of a cluster that is well: what a case does not say is as here.
WELL = {
    'build_info{instance="a"}': "1x400",
    'build_info{instance="b"}': "1x400",
    'engine_up{instance="a"}': "1x400",
    'engine_up{instance="b"}': "1x400",
    'engine_healthy{instance="a"}': "1x400",
    'engine_healthy{instance="b"}': "1x400",
    'engine_here{instance="a"}': "1x400",
    'engine_here{instance="b"}': "0x400",
    'engine_lease_held{instance="a"}': "1x400",
    'vm_reached{instance="a"}': "1x400",
    'vm_reached{instance="b"}': "1x400",
    'vm_up{instance="a",vm="engine"}': "1x400",
    'vm_up{instance="a",vm="db"}': "1x400",
    'vm_up{instance="b",vm="db"}': "1x400",
    'vm_wanted{instance="a",vm="db"}': "1x400",
    'vm_healthy{instance="a",vm="db"}': "1x400",
    'vms_without_place{instance="a"}': "0x400",
    'n_plus_1_short_bytes{instance="a",host="b"}': "0x400",
    'score{instance="a"}': "3400x400",
    'score{instance="b"}': "3400x400",
    'maintenance{instance="a",mode="global"}': "0x400",
    'maintenance{instance="a",mode="local"}': "0x400",
    'maintenance{instance="b",mode="local"}': "0x400",
    'agent_reporting{instance="a"}': "1x400",
    'agent_stopped{instance="a"}': "0x400",
    'switched_off{instance="a"}': "0x400",
    'start_held_back{instance="a"}': "0x400",
    'config_refused{instance="a"}': "0x400",
    'notify_broken{instance="a"}': "0x400",
    'penalty_points{instance="a",penalty="config"}': "0x400",
    'lease_budget_seconds{instance="a"}': "70x400",
    'lease_budget_max_seconds{instance="a"}': "80x400",
    'storage_state{instance="a",state="hung"}': "0x400",
    'fence_path_ok{instance="a",host_id="2"}': "1x400",
    'fences_total{instance="a",outcome="failed"}': "0x400",
    'fences_total{instance="a",outcome="held-back"}': "0x400",
    'peer_witness_age_seconds{instance="a",host_id="3",host="c",witness="whiteboard"}': "0x400",
    'peer_witness_age_seconds{instance="b",host_id="3",host="c",witness="whiteboard"}': "0x400",
    'peer_stopped{instance="a",host_id="3",host="c"}': "0x400",
    'peer_other_storage{instance="a",host_id="3",host="c"}': "0x400",
    'slots_not_counted{instance="a"}': "0x400",
    'peer_stopped{instance="b",host_id="3",host="c"}': "0x400",
    'peer_config_drift{instance="a",host_id="3",host="c"}': "0x400",
}
DOWN = {'engine_up{instance="a"}': "0x400", 'engine_up{instance="b"}': "0x400"}
#: No sample: that host does not know.
UNKNOWN = {f'engine_{what}{{instance="{i}"}}': "_x400" for what in ("up", "healthy") for i in "ab"}
GLOBAL = {'maintenance{instance="a",mode="global"}': "1x400"}
A = [{"instance": "a"}]
DB_DOWN = {f'vm_up{{instance="{i}",vm="db"}}': "0x400" for i in "ab"}
DB = [{"vm": "db"}]
UNANSWERED = 'peer_heartbeat_trouble{instance="a",host_id="3",host="c",code="heartbeat-unanswered"}'
ALL: list[dict[str, str]] = [{}]
STOPPED = {'peer_stopped{instance="a",host_id="3",host="c"}': "1x99"}
SILENT = {name: "0+5x99" for name in WELL if "witness=" in name}

#: Alert, what differs from WELL, when, and with which labels it fires then; None: it does not.
CASES: list[tuple[str, dict[str, str], str, list[dict[str, str]] | None]] = [
    ("HaEngineDown", DOWN, "2m", ALL),
    ("HaEngineDown", DOWN, "45s", None),
    ("HaEngineDown", DOWN | GLOBAL, "5m", None),
    ("HaEngineDown", {'engine_up{instance="b"}': "0x400"}, "5m", None),
    ("HaEngineDown", UNKNOWN, "5m", None),
    ("HaEngineDownLong", UNKNOWN, "11m", None),
    ("HaEngineUnknown", UNKNOWN, "2m", ALL),
    ("HaEngineUnknown", UNKNOWN, "45s", None),
    ("HaEngineUnknown", UNKNOWN | GLOBAL, "5m", None),
    ("HaEngineUnknown", DOWN, "5m", None),
    # One host alone does not know: its own storage fails.
    ("HaEngineUnknown", {'engine_up{instance="b"}': "_x400"}, "5m", None),
    ("HaEngineUnhealthy", UNKNOWN, "3m", None),
    ("HaEngineUnhealthy", {f'engine_healthy{{instance="{i}"}}': "_x400" for i in "ab"}, "3m", ALL),
    ("HaEngineDownLong", DOWN, "11m", ALL),
    ("HaEngineDownLong", DOWN, "9m", None),
    ("HaEngineUnhealthy", {f'engine_healthy{{instance="{i}"}}': "0x400" for i in "ab"}, "3m", ALL),
    ("HaEngineUnhealthy", {'engine_healthy{instance="a"}': "0x400"}, "3m", None),
    ("HaVmNotReached", {f'vm_reached{{instance="{i}"}}': "0x400" for i in "ab"}, "1m", ALL),
    ("HaVmNotReached", {'vm_reached{instance="a"}': "0x400"}, "1m", None),
    ("HaVmDown", DB_DOWN, "2m", DB),
    ("HaVmDown", DB_DOWN, "45s", None),
    ("HaVmDown", DB_DOWN | GLOBAL, "5m", None),
    ("HaVmDown", DB_DOWN | {'vm_wanted{instance="a",vm="db"}': "0x400"}, "5m", None),
    ("HaVmDown", {'vm_up{instance="b",vm="db"}': "0x400"}, "5m", None),
    ("HaVmDown", {'vm_up{instance="a",vm="engine"}': "0x400"}, "5m", None),
    ("HaVmUnhealthy", {'vm_healthy{instance="a",vm="db"}': "0x400"}, "6m", DB),
    ("HaVmUnhealthy", {'vm_healthy{instance="a",vm="db"}': "_x400"}, "6m", DB),
    ("HaVmUnhealthy", {'vm_healthy{instance="a",vm="db"}': "0x400"}, "4m", None),
    ("HaVmWithoutPlace", {'vms_without_place{instance="a"}': "1x400"}, "2m", ALL),
    ("HaVmWithoutPlace", {'vms_without_place{instance="a"}': "1x400"}, "45s", None),
    (
        "HaNPlusOneShort",
        {'n_plus_1_short_bytes{instance="a",host="b"}': "6442450944x400"},
        "6m",
        [{"host": "b"}],
    ),
    (
        "HaNPlusOneShort",
        {'n_plus_1_short_bytes{instance="a",host="b"}': "6442450944x400"},
        "4m",
        None,
    ),
    ("HaVmUnprotected", {'engine_lease_held{instance="a"}': "0x400"}, "1m", A),
    (
        "HaVmUnprotected",
        {'engine_lease_held{instance="a"}': "0x400", 'engine_here{instance="a"}': "0x400"},
        "1m",
        None,
    ),
    (
        "HaOtherStorage",
        {'peer_other_storage{instance="a",host_id="3",host="c"}': "1x400"},
        "15s",
        [{"instance": "a", "host_id": "3", "host": "c"}],
    ),
    ("HaSlotNotCounted", {'slots_not_counted{instance="a"}': "1x400"}, "1m", A),
    ("HaSlotNotCounted", {'slots_not_counted{instance="a"}': "1x400"}, "15s", None),
    ("HaHostSilent", SILENT, "1m", [{"host_id": "3", "host": "c"}]),
    ("HaHostSilent", SILENT, "15s", None),
    # One host alone sees it silent: that host's own storage fails.
    ("HaHostSilent", dict(list(SILENT.items())[:1]), "5m", None),
    (
        "HaHostSilent",
        SILENT | STOPPED,
        "1m",
        None,
    ),
    (
        "HaHeartbeatMissing",
        {UNANSWERED: "1x400"},
        "2m",
        [{"host_id": "3", "host": "c"}],
    ),
    ("HaHeartbeatMissing", {UNANSWERED: "1x400"}, "45s", None),
    ("HaHostWasSwitchedOff", {'switched_off{instance="a"}': "1x400"}, "15s", A),
    ("HaAgentSilent", {'agent_reporting{instance="a"}': "0x400"}, "1m", A),
    (
        "HaAgentSilent",
        {'agent_reporting{instance="a"}': "0x400", 'agent_stopped{instance="a"}': "1x400"},
        "1m",
        None,
    ),
    ("HaScoreZero", {'score{instance="a"}': "0x400"}, "16m", A),
    ("HaScoreZero", {'score{instance="a"}': "0x400"}, "14m", None),
    (
        "HaScoreZero",
        {'score{instance="a"}': "0x400", 'maintenance{instance="a",mode="local"}': "1x400"},
        "16m",
        None,
    ),
    ("HaNoStandby", {'score{instance="b"}': "0x400"}, "3m", ALL),
    ("HaNoStandby", {'score{instance="b"}': "0x400"}, "1m", None),
    ("HaNoStandby", {'score{instance="a"}': "0x400"}, "3m", None),
    (
        "HaBeatLate",
        {
            'beat_lateness_seconds_bucket{instance="a",le="0.5"}': "0x400",
            'beat_lateness_seconds_bucket{instance="a",le="1.0"}': "0+15x400",
            'beat_lateness_seconds_bucket{instance="a",le="+Inf"}': "0+15x400",
        },
        "11m",
        A,
    ),
    (
        "HaBeatLate",
        {
            'beat_lateness_seconds_bucket{instance="a",le="0.5"}': "0+15x400",
            'beat_lateness_seconds_bucket{instance="a",le="+Inf"}': "0+15x400",
        },
        "11m",
        None,
    ),
    ("HaStartHeldBack", {'start_held_back{instance="a"}': "1x400"}, "2m", A),
    ("HaConfigRefused", {'config_refused{instance="a"}': "1x400"}, "2m", A),
    (
        "HaConfigDrift",
        {'penalty_points{instance="a",penalty="config"}': "1000x400"},
        "6m",
        [{"instance": "a", "penalty": "config"}],
    ),
    (
        "HaConfigDrift",
        {'peer_config_drift{instance="a",host_id="3",host="c"}': "1x400"},
        "6m",
        [{"instance": "a", "host_id": "3", "host": "c"}],
    ),
    ("HaLeaseBudgetLow", {'lease_budget_seconds{instance="a"}': "80-1x80"}, "11m", A),
    ("HaLeaseBudgetLow", {'lease_budget_seconds{instance="a"}': "80-1x80"}, "9m", None),
    (
        "HaStorageHung",
        {'storage_state{instance="a",state="hung"}': "1x400"},
        "1m",
        [{"instance": "a", "state": "hung"}],
    ),
    (
        "HaFencePathUnproven",
        {'fence_path_ok{instance="a",host_id="2"}': "0x400"},
        "31m",
        [{"instance": "a", "host_id": "2"}],
    ),
    (
        "HaFencePathUnproven",
        {'fence_path_proven_timestamp_seconds{instance="a",host_id="2"}': "0x400"},
        "25h",
        [{"instance": "a", "host_id": "2"}],
    ),
    (
        "HaFencePathUnproven",
        {'fence_path_proven_timestamp_seconds{instance="a",host_id="2"}': "0x400"},
        "23h",
        None,
    ),
    (
        "HaFenceFailed",
        {'fences_total{instance="a",outcome="failed"}': "0 0 1x400"},
        "1m",
        [{"instance": "a", "outcome": "failed"}],
    ),
    ("HaFenceFailed", {'fences_total{instance="a",outcome="failed"}': "0 0 1x400"}, "15m", None),
    (
        "HaFenceHeldBack",
        {'fences_total{instance="a",outcome="held-back"}': "0 0 1x400"},
        "1m",
        [{"instance": "a", "outcome": "held-back"}],
    ),
    (
        "HaMaintenanceEndsSoon",
        {'maintenance_left_seconds{instance="a",mode="local"}': "900-15x60"},
        "6m",
        [{"instance": "a", "mode": "local"}],
    ),
    (
        "HaMaintenanceEndsSoon",
        {f'maintenance_left_seconds{{instance="{i}",mode="global"}}': "900-15x60" for i in "ab"},
        "6m",
        [{"mode": "global"}],
    ),
    (
        "HaMaintenanceEndsSoon",
        {'maintenance_left_seconds{instance="a",mode="local"}': "900-15x60"},
        "4m",
        None,
    ),
    ("HaGlobalMaintenanceLong", {'maintenance{instance="a",mode="global"}': "1x400"}, "9h", ALL),
    ("HaGlobalMaintenanceLong", {'maintenance{instance="a",mode="global"}': "1x400"}, "7h", None),
    (
        "HaNotificationsFailing",
        {'notify_messages_total{instance="a",transport="smtp",result="failed"}': "0 0 1 2x100"},
        "2m",
        A,
    ),
    ("HaNotificationsFailing", {'notify_broken{instance="a"}': "1x400"}, "1m", A),
]


def rules() -> dict[str, Any]:
    """The rules as promtool reads them; YAML is not in the standard library."""
    found: dict[str, Any] = {}
    for part in re.split(r"^      - ", RULES.read_text(), flags=re.MULTILINE)[1:]:
        name = re.match(r"(?:alert|record): (\S+)", part)
        assert name is not None, part
        found[name[1]] = {
            "expr": re.search(r"^        expr: (.*)$", part, re.MULTILINE)[1],  # type: ignore[index]
            "runbook": next(iter(re.findall(r"runbook_url: (\S+)", part)), None),
            "severity": next(iter(re.findall(r"severity: (\w+)", part)), None),
            "annotations": re.findall(r"^          summary: (.*)$", part, re.MULTILINE),
        }
    return found


ALERTS = [name for name in rules() if name.startswith("Ha")]


def full(series: str) -> str:
    """With the prefix and the job."""
    name, _, labels = series.partition("{")
    return f'ha_agent_{name}{{job="lab",{labels}'


@promtool
@pytest.mark.parametrize("step", ["15s", "5m"])
@pytest.mark.slow
def test_every_alert_fires_when_it_should_and_not_otherwise(tmp_path: Path, step: str) -> None:
    """`step`: minutes are looked at every 15 s, hours every 5 minutes."""
    tests = []
    for name, differs, at, fires in CASES:
        if at.endswith("h") != (step == "5m"):
            continue
        series = {full(key): value for key, value in (WELL | differs).items()}
        expected = [
            {"exp_labels": {"severity": rules()[name]["severity"], "job": "lab", **labels}}
            for labels in fires or ()
        ]
        tests.append(
            {
                "name": f"{name} {at}",
                "interval": step,
                "input_series": [{"series": k, "values": v} for k, v in series.items()],
                "alert_rule_test": [{"eval_time": at, "alertname": name, "exp_alerts": expected}],
            }
        )
    file = tmp_path / "tests.yml"
    rule_files = [str(_without_annotations(tmp_path))]
    # JSON is YAML.
    file.write_text(
        json.dumps({"rule_files": rule_files, "evaluation_interval": step, "tests": tests})
    )
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _without_annotations(tmp_path: Path) -> Path:
    """The rules without annotations, which promtool would compare; a test below holds those."""
    text = re.sub(
        r"^        annotations:\n(          .*\n)+", "", RULES.read_text(), flags=re.MULTILINE
    )
    path = tmp_path / "rules.yml"
    path.write_text(text)
    return path


def test_each_alert_has_a_case_in_which_it_fires_and_well_fires_none() -> None:
    assert {case[0] for case in CASES if case[3]} == set(ALERTS)


@promtool
def test_a_cluster_that_is_well_fires_nothing(tmp_path: Path) -> None:
    series = [{"series": full(key), "values": value} for key, value in WELL.items()]
    asked = [{"eval_time": "30m", "alertname": name, "exp_alerts": []} for name in ALERTS]
    tests = [{"interval": "15s", "input_series": series, "alert_rule_test": asked}]
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_promtool_has_nothing_to_complain_about() -> None:
    done = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_its_section_in_the_operations_page(alert: str) -> None:
    assert rules()[alert]["runbook"] == f"{RUNBOOK}#alert-{alert.lower()}"
    assert rules()[alert]["severity"] in ("critical", "warning")
    assert rules()[alert]["annotations"]
    assert f"alert-{alert.lower()}" in {anchor(title) for title in sections(OPERATIONS)}


def test_no_section_is_of_an_alert_that_does_not_exist() -> None:
    described = re.findall(r"^### Alert (\w+)$", OPERATIONS.read_text(), re.MULTILINE)
    assert sorted(described) == sorted(ALERTS)


KNOWN = {family.shown_name for family in FAMILIES} | {
    f"{family.name}_{part}"
    for family in FAMILIES
    for part in ("bucket", "count", "sum")
    if family.kind.__name__.startswith("Histogram")
}


def unknown_names(expression: str) -> set[str]:
    """Metrics of ours that an expression asks for and nobody has."""
    asked = set(re.findall(r"(?<![:\w])ha_agent_\w+(?![:\w])", expression))
    recorded = set(re.findall(r"\w+:ha_agent_\w+:\w+", expression))
    return (asked - KNOWN) | (recorded - set(rules()))


@pytest.mark.parametrize("name", rules())
def test_a_rule_asks_for_what_there_is(name: str) -> None:
    assert not unknown_names(rules()[name]["expr"])


# --- Grafana -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("panel", "query"), queries())
def test_the_grafana_dashboard_asks_for_what_there_is(panel: str, query: str) -> None:
    assert not unknown_names(query)
    assert 'job="$job"' in query, "of one cluster, not of all"


def test_the_panels_have_names_of_their_own_and_do_not_lie_over_each_other() -> None:
    panels = json.loads(GRAFANA.read_text())["panels"]
    assert len({panel["title"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken and x < 24, panel["title"]
                taken.add((x, y))
