# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent vm adopt` and `vm keep`: what they ask of the broker, and what they write here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.commands import adopt
from agent.terminal.errors import CommandError
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.wire.status import Decision, DifferenceStatus, EngineSummary, WhatRanStatus
from tests.fakes.definitions import TWO, XML, Shared, config, vcpus

VCPUS = DifferenceStatus("vcpus-differ", "libvirt", "vCPUs", "1", "2", "vCPUs: recorded 1, found 2")
DISK = DifferenceStatus("disks-differ", "running", "vda", "/srv/base", "/srv/over", "vda: …")
NOTHING = WhatRanStatus(1, 1, "host1", 0.0, {}, "", 0, "")


class Broker:
    """The broker's two answers."""

    def __init__(
        self,
        *differences: DifferenceStatus,
        record: WhatRanStatus = NOTHING,
        up_on: int | None = 1,
    ) -> None:
        self.differences, self.record, self.up_on = differences, record, up_on
        self.asked: list[str] = []

    def ask(self, path: str, method: str, route: str, kind: Any, body: Any = None) -> Any:
        if route == "/v1/what-ran":
            assert isinstance(body, Decision)
            self.asked.append(body.decision)
            return self.record

        class Shown:
            host_id = 1
            engine = EngineSummary(self.up_on is not None, False, self.up_on)
            differences = self.differences
            what_ran = None
            what_ran_problem = ""

        return Shown


def run(
    given: Config,
    what: bool,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
    as_json: bool = False,
) -> int:
    monkeypatch.setattr(adopt, "ask", broker.ask)
    return adopt.run(given, what, as_json)


def test_where_nothing_differs_there_is_nothing_to_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker()
    with pytest.raises(CommandError, match="nothing differs here") as caught:
        run(config(tmp_path), True, broker, monkeypatch)
    assert caught.value.code is ExitCode.REFUSED and broker.asked == []


def test_adopted_the_definition_takes_over_libvirt_s_and_the_old_one_is_kept(
    connection: Shared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = config(tmp_path)
    connection.defineXML(TWO)
    path = Path(given.vm.definition)
    path.chmod(0o640)
    assert run(given, True, Broker(VCPUS, DISK), monkeypatch) == ExitCode.OK
    assert ">2</vcpu>" in path.read_text() and "<lease>" in path.read_text()
    assert "/srv/base" in path.read_text(), "the record has the disks that run"
    old = path.with_name("engine.xml.old")
    assert old.read_text() == XML
    assert (path.stat().st_mode & 0o777, old.stat().st_mode & 0o777) == (0o640, 0o640)
    assert "takes over vcpus-differ" in capsys.readouterr().out


def test_kept_libvirt_s_own_definition_is_the_cluster_s_again(
    connection: Shared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    connection.defineXML(TWO)
    broker = Broker(VCPUS, DISK)
    assert run(config(tmp_path), False, broker, monkeypatch) == ExitCode.OK
    assert broker.asked == ["keep"] and vcpus(connection) == 1
    out = capsys.readouterr().out
    assert "libvirt's own definition is that of" in out and "the VM runs on as it is" in out


def test_where_the_vm_runs_elsewhere_only_libvirt_s_own_definition_is_decided_about(
    connection: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen in the lab: the broker refused it all, for what runs is the other host's."""
    connection.defineXML(TWO)
    broker = Broker(VCPUS, up_on=2)
    assert run(config(tmp_path), False, broker, monkeypatch) == ExitCode.OK
    assert broker.asked == [] and vcpus(connection) == 1
    broker = Broker(DISK, up_on=2)
    run(config(tmp_path), False, broker, monkeypatch)
    assert broker.asked == ["keep"], "and what is no libvirt's is asked, and refused, there"


def test_what_is_started_from_now_on_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = msgspec.structs.replace(NOTHING, disks={"vda": "/srv/over (qcow2)"})
    run(config(tmp_path), True, Broker(DISK, record=record), monkeypatch)
    assert capsys.readouterr().out == "disks: every host starts vda from /srv/over (qcow2)\n"
    run(config(tmp_path), True, Broker(DISK), monkeypatch, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["done"] == ["disks: what ran last are those of the definition"]
    assert shown["what_ran"]["generation"] == 1


@pytest.mark.parametrize("what", [True, False])
def test_what_cannot_be_done_names_the_file_or_libvirt(
    what: bool, connection: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(tmp_path)
    if what:  # libvirt does not know the VM
        with pytest.raises(CommandError, match="libvirt") as caught:
            run(given, what, Broker(VCPUS), monkeypatch)
    else:
        Path(given.vm.definition).write_text("<domain type='test'/>")
        with pytest.raises(CommandError, match="libvirt rejects it") as caught:
            run(given, what, Broker(VCPUS), monkeypatch)
    assert caught.value.code is ExitCode.FAILED
    Path(given.vm.definition).unlink()
    with pytest.raises(CommandError, match=r"engine\.xml") as caught:
        run(given, what, Broker(VCPUS), monkeypatch)
    assert caught.value.code is ExitCode.FILE
