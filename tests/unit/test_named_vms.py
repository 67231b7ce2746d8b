# SPDX-License-Identifier: LGPL-2.1-or-later
"""With several VMs each sentence says which VM and which host it is about, by name."""

from __future__ import annotations

import re

import pytest

from scoring.observation import Order, OrderKind
from scoring.vm_facts import ENGINE, THE_VM, VmSpec, called
from tests.fakes.hosts import Hosts

DB = VmSpec(2, "db", 1024)


@pytest.mark.parametrize(
    ("number", "specs", "name"),
    [
        (ENGINE, (), THE_VM),
        (ENGINE, (VmSpec(ENGINE, "engine", 64),), THE_VM),
        (ENGINE, (DB,), "the engine"),
        (2, (DB,), "db"),
        (3, (DB,), "VM 3"),
    ],
)
def test_what_a_sentence_calls_a_vm(number: int, specs: tuple[VmSpec, ...], name: str) -> None:
    assert called(number, specs) == name


def test_the_answer_to_an_order_and_each_reason_name_the_vm() -> None:
    hosts = Hosts((DB,), {1: 8192, 2: 8192})
    hosts.put(ENGINE, 1)
    hosts.put(2, 1)
    said: set[str] = set()

    def run(beats: int) -> None:
        for _ in range(beats):
            hosts.run(1)
            for host in hosts.hosts.values():
                assert host.last is not None
                said.update(reason.text for reason in host.last.reasons)

    run(5)
    assert "db is up and healthy here" in said and "the engine is up and healthy here" in said
    hosts.hosts[1].order = Order(7, OrderKind.MIGRATE, 2, 2)
    run(20)
    answers = hosts.hosts[1].state.vms[2].answers
    assert [answer.text for answer in answers] == ["db runs on host 2 now"]
    hosts.die(2)
    run(200)
    assert 2 in {vm for _, vm, host in hosts.starts if host == 1}
    assert [text for text in said if re.search(r"\bthe VM\b", text)] == []
