# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the hosts must be configured alike: published within its bound, compared, shown."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config.agreement import (
    SHOWN_MAX,
    VALUES_BYTES_MAX,
    agreed,
    defaults,
    differences,
    published,
)
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.whiteboard.slot import SlotReport, decode_slot, encode_slot
from broker.whiteboard.volume import Volume
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.unit import commands

VOLUMES = {"whiteboard": "/s/whiteboard", "leases": "/s/leases"}
BASE = {"host": {"id": 1}, "storage": VOLUMES}
DEVICE = {"host": 1, "address": "10.0.0.1", "username": "u"}


def config(**tables: Any) -> Config:
    return msgspec.convert({**BASE, **tables}, Config)


def compared(here: Config, there: Config) -> list[str]:
    """The differences, after a way through a slot of the whiteboard."""
    engine = EngineStatus(VmStatus.DOWN, Health.BAD)
    slot = encode_slot(SlotReport(2, 1, 0, engine, "host2", extra=published(there)))
    report = decode_slot(2, slot)
    assert report is not None and report.extra_trusted
    return [str(d) for d in differences(agreed(here), published(here), report.extra)]


def test_a_key_that_an_earlier_version_does_not_know_is_no_difference_until_it_is_used() -> None:
    here, there = config(), config(storage={**VOLUMES, "registry": "/s/registry"})
    later = ("storage.registry", "vm.balance")
    earlier = {key: value for key, value in agreed(here).items() if key not in later}
    digest = hashlib.sha256(json.dumps(earlier, sort_keys=True).encode()).hexdigest()[:8]
    assert published(here)["config-digest"] == digest
    assert compared(here, there) == ['storage.registry is "/s/registry" there, "" here']


def test_hosts_that_balance_and_hosts_that_do_not_are_named() -> None:
    here, there = config(), config(vm={"balance": True})
    assert compared(here, there) == ["vm.balance is true there, false here"]


def test_what_differs_from_the_own_values_is_told_with_both() -> None:
    here = config(score={"base-score": 3000}, timing={"suspect-after": 5.0})
    there = config(timing={"suspect-after": 4.0}, fence={"power-off": False, "device": [DEVICE]})
    told = compared(here, there)
    assert told[:3] == [
        "score.base-score is 3400 there, 3000 here",
        "timing.suspect-after is 4.0 there, 5.0 here",
        "fence.power-off is false there, true here",
    ]
    assert told[3].startswith('fence.device is "') and told[3].endswith('" there, "none" here')
    assert "10.0.0.1" not in json.dumps(published(there)), "nobody needs a device's address"


@pytest.mark.parametrize(
    "tables",
    [
        {"host": {"id": 2, "name": "other"}},
        {"network": {"targets": ["10.0.0.9"]}, "api": {"listen": ["0.0.0.0:1"]}},
        {"timing": {"beat": 1}},
    ],
)
def test_what_may_differ_and_a_default_that_is_said_are_no_difference(
    tables: dict[str, Any],
) -> None:
    assert compared(config(), config(**tables)) == []


def test_the_defaults_are_the_codes() -> None:
    values = agreed(config())
    assert {key: values[key] for key in defaults()} == defaults()
    assert set(values) - set(defaults()) == {"storage.whiteboard", "storage.leases", "fence.device"}


def test_what_a_host_s_own_power_supply_asks_for_may_differ() -> None:
    there = config(timing={"host-shutdown-move": 60, "host-shutdown-grace": 30})
    assert agreed(there) == agreed(config())


def test_however_much_differs_the_line_is_bounded_and_the_rest_is_known_to_differ() -> None:
    weights: dict[str, float] = {}
    weights.update(dict.fromkeys(msgspec.to_builtins(config().score), 9999))
    weights |= {"cpu-load-penalty-min": 0.123456789, "cpu-load-penalty-max": 0.987654321}
    timing = dict.fromkeys(msgspec.to_builtins(config().timing_rules()), 77.123456789)
    timing = {key.replace("_", "-"): value for key, value in timing.items()}
    timing |= {"suspect-after": 200.0, "fence-after": 300.0, "isolation-after": 300.123}
    long = "/" + 800 * "x"
    there = config(
        score=weights, timing=timing, storage={"whiteboard": long, "leases": "/s/leases"}
    )
    assert len(published(there)["config"]) <= VALUES_BYTES_MAX
    assert 1 <= len(compared(config(), there)) <= SHOWN_MAX


def test_what_has_no_room_still_shows_as_a_difference() -> None:
    there = published(config(score={"base-score": 1})) | {"config": "{}"}
    (only,) = differences(agreed(config()), published(config()), there)
    assert "differs in something" in str(only)


@pytest.mark.parametrize("keys", [{}, {"config-keys": "00000000"}])
def test_of_a_version_with_other_keys_the_values_count(keys: dict[str, str]) -> None:
    """Each host of a rolling upgrade was CONFIG DRIFT, "in something that its slot has no room
    for", though nobody had changed a value."""
    here = config()
    there = published(here) | {"config-digest": "01b6e2a9"}
    del there["config-keys"]
    assert differences(agreed(here), published(here), there | keys) == ()
    other = published(config(score={"base-score": 1})) | {"config-digest": "01b6e2a9"}
    del other["config-keys"]
    (only,) = differences(agreed(here), published(here), other | keys)
    assert str(only) == "score.base-score is 1 there, 3400 here"


@given(
    st.dictionaries(
        st.sampled_from(["config", "config-digest", "config-keys"]), st.binary(max_size=60)
    )
)
def test_whatever_a_slot_says_is_survived(raw: dict[str, bytes]) -> None:
    lines = {key: value.decode("latin-1") for key, value in raw.items()}
    differences(agreed(config()), published(config()), lines)


def test_show_and_diff_as_a_user_runs_them(tmp_path: Path) -> None:
    file = tmp_path / "ha-agent.toml"
    file.write_text(
        f'[host]\nid = 1\n[storage]\nwhiteboard = "{tmp_path}/w"\nleases = "/s/leases"\n'
        '[score]\nbase-score = 3000\n[[fence.device]]\nhost = 2\naddress = "h"\nusername = "u"\n'
    )
    (tmp_path / "w").write_bytes(bytes(4096 * 16))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return commands.run("ha-agent", "--config", file, "config", *words)

    shown = run("show")
    again = msgspec.convert(tomllib.loads(shown.stdout), Config)
    assert (again.score.base_score, again.fence.device[0].address) == (3000, "h")
    assert again.timing.beat == 1.0, "defaults are shown"
    assert json.loads(run("show", "--json").stdout)["config"]["score"]["base-score"] == 3000

    assert "no host '7'" in run("diff", "7").stderr
    engine = EngineStatus(VmStatus.DOWN, Health.BAD)
    theirs = msgspec.convert(
        tomllib.loads(file.read_text().replace("base-score = 3000", "")), Config
    )
    with Volume(tmp_path / "w") as volume:
        volume.write_slot(2, encode_slot(SlotReport(2, 1, 0, engine, "b", extra=published(theirs))))
        volume.write_slot(3, encode_slot(SlotReport(3, 1, 0, engine, "old")))
    found = run("diff", "b")
    assert found.returncode == ExitCode.FAILED
    assert found.stdout == "score.base-score is 3400 there, 3000 here\n"
    assert json.loads(run("diff", "2", "--json").stdout)["differences"][0]["there"] == "3400"
    assert "publishes no configuration" in run("diff", "3").stderr
