# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM leaves the registry only when no host can still be starting it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.registry import not_started
from agent.terminal.errors import CommandError
from broker.client.ask import BrokerDown
from broker.wire.status import Status
from broker.wire.vms import VmWord
from scoring.vm_facts import ENGINE, Want
from tests.fakes import vms
from tests.fakes.broker import record
from tests.fakes.definitions import config
from tests.fakes.vms import DB, up

STOPPED = msgspec.structs.replace(record(DB, "db"), want=Want.DOWN, generation=7)


def seen(state: VmWord = VmWord.OFF, knows: int = 7, **of_host: object) -> Status:
    """The status in which VM db is so, and host 2 knows that generation of the registry."""
    made = vms.status({1: {ENGINE: up()}, 2: {}, 3: {}}, n_plus_1=())
    hosts = {
        host_id: msgspec.structs.replace(host, registry=7) for host_id, host in made.hosts.items()
    }
    hosts[2] = msgspec.structs.replace(hosts[2], registry=knows, **of_host)
    its = (
        msgspec.structs.replace(vm, state=state, hostname="host2") if vm.number == DB else vm
        for vm in made.vms
    )
    return msgspec.structs.replace(made, hosts=hosts, vms=tuple(its))


def wait(folder: Path, monkeypatch: pytest.MonkeyPatch, *answers: Status | BrokerDown) -> None:
    """Wait while the broker answers so; the last answer stays."""
    given: Iterator[Status | BrokerDown] = iter(answers)

    def ask(*_: object) -> Status:
        answer = next(given, answers[-1])
        if isinstance(answer, BrokerDown):
            raise answer
        return answer

    monkeypatch.setattr(not_started, "ask", ask)
    monkeypatch.setattr(not_started, "LOOK_S", 0.0)
    not_started.wait_until_down(config(folder), STOPPED)


@pytest.mark.parametrize(
    "answers",
    [
        (seen(),),
        (seen(knows=6), seen(VmWord.STOPPING), seen(VmWord.STARTING), seen()),
        (seen(knows=6, liveness="silent"),),  # its death is the lease's matter
        (seen(knows=0, engine_only=True),),
        (BrokerDown("no answer"),),
    ],
)
def test_it_is_waited_for_until_no_host_may_start_it(
    answers: tuple[Status | BrokerDown, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait(tmp_path, monkeypatch, *answers)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (seen(knows=6), "host2 has not read yet that db is wanted down; try it again in a moment"),
        (seen(VmWord.STARTING), "db is not down: starting on host2; try it again in a moment"),
        (seen(VmWord.UNKNOWN), "db is not down: unknown on host2; try it again in a moment"),
    ],
)
def test_a_vm_that_a_host_may_start_is_not_removed(
    answer: Status, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(not_started, "PATIENCE_S", 0.0)
    with pytest.raises(CommandError) as raised:
        wait(tmp_path, monkeypatch, answer)
    assert str(raised.value) == why
