# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent score` without a file: what each host scores, and how fit it is for each VM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.commands import score_now
from agent.commands.score_now import as_text, scores
from broker.config.load import load
from broker.daemon.exit_codes import ExitCode
from tests.fakes import vms
from tests.fakes.vms import DB, SSO, WEB, WIKI, WORDS
from tests.unit import commands


def test_each_host_has_its_score_and_each_vm_of_the_registry() -> None:
    (one, two, three) = scores(vms.status())
    assert [host["score"] for host in (one, two, three)] == [3400, 3400, 3050]
    assert [part["name"] for part in three["penalties"]] == ["load"]
    for host in (one, two, three):
        assert [vm["number"] for vm in host["vms"]] == [DB, SSO, WEB, WIKI], "not the engine"
    db = [next(vm for vm in host["vms"] if vm["number"] == DB) for host in (one, two, three)]
    assert [vm["here"] for vm in db] == [False, True, False]
    assert db[1]["why"] == "up here" and [vm["place"] for vm in db] == [None, None, None]
    assert db[2]["why"] == "no, it has 2 GiB free, and 8 GiB are needed"
    assert as_text(two).splitlines()[:2] == ["host2: score 3400", "  db: up here"]


def test_while_a_vm_is_missing_the_first_in_the_row_is_number_one() -> None:
    hosts = scores(vms.status({**WORDS, 2: {}}))
    sso = [next(vm for vm in host["vms"] if vm["number"] == SSO) for host in hosts]
    assert sso[1]["place"] == 1 and sso[1]["why"].startswith("may start it, number 1: 3400 points")
    assert not any(vm["here"] for vm in sso)


def test_a_host_that_is_silent_may_take_nothing() -> None:
    (host, *_) = scores(vms.status())
    silent = {**host, "liveness": "silent"}
    assert as_text(silent).startswith("host1: score 3400 (silent)\n")


@pytest.mark.parametrize("as_json", [True, False])
def test_what_is_printed(
    as_json: bool,
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(score_now, "ask", lambda *_: vms.status())
    assert score_now.run(load(str(site)), as_json) == ExitCode.OK
    said = capsys.readouterr().out
    if as_json:
        answer: dict[str, Any] = json.loads(said)
        assert answer == {"version": 1, "hosts": scores(vms.status())}
    else:
        assert said == "\n\n".join(map(as_text, scores(vms.status()))) + "\n"


def test_without_a_broker_it_says_so(site: Path) -> None:
    done = commands.run("ha-agent", "--config", site, "score")
    assert done.returncode != ExitCode.OK and "ha-broker" in done.stderr
    assert "Traceback" not in done.stderr
