# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `ha-agent doctor` says of a start without the agent: libvirt's own test driver plays
the hypervisor, as far as it goes."""

from __future__ import annotations

from typing import Any

import libvirt
import pytest

from agent.doctor.vm import libvirt_guests_found, vm_domain
from agent.setup.beside import libvirt_guests_beside
from agent.vm import libvirt_guests
from broker.config.sections import Config, HostSection, LibvirtSection, StorageSection, VmSection
from tests.fakes.libvirt_errors import libvirt_error

CONFIG = Config(
    host=HostSection(id=1),
    storage=StorageSection(whiteboard="/w", leases="/l"),
    vm=VmSection(name="test"),
    libvirt=LibvirtSection(uri="test:///default"),
)


def test_a_memory_image_and_autostart_are_named_with_what_to_type() -> None:
    assert [verdict for verdict, _, _ in vm_domain(CONFIG)] == ["ok"]
    connection = libvirt.open("test:///default")
    domain = connection.lookupByName("test")
    domain.setAutostart(True)
    domain.managedSave()
    try:
        found = list(vm_domain(CONFIG))
        assert [verdict for verdict, _, _ in found] == ["warn", "warn"]
        assert [fix for _, _, fix in found] == [
            "virsh managedsave-remove test",
            "virsh autostart --disable test",
        ]
    finally:
        domain.managedSaveRemove()
        domain.setAutostart(False)
        domain.create()
        connection.close()


def test_nothing_is_said_where_libvirt_does_not_know_it_or_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = VmSection(name="another")
    unknown = Config(host=CONFIG.host, storage=CONFIG.storage, vm=other, libvirt=CONFIG.libvirt)
    assert list(vm_domain(unknown)) == []

    def away(uri: str) -> Any:
        raise libvirt_error("away")

    monkeypatch.setattr(libvirt, "open", away)
    assert list(vm_domain(CONFIG)) == []


def test_libvirt_guests_is_told_by_doctor_and_by_the_set_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreadable() -> tuple[str, str]:
        raise PermissionError(13, "Permission denied", "/etc/default/libvirt-guests")

    cases: list[tuple[Any, str, str, int]] = [
        (lambda: ("", ""), "ok", "", 0),
        (lambda: ("it saves the VM", "printf it"), "warn", "printf it", 1),
        (unreadable, "warn", "run it as root", 1),
    ]
    for problem, verdict, fix, warnings in cases:
        monkeypatch.setattr(libvirt_guests, "problem", problem)
        ((found, _, told),) = libvirt_guests_found(CONFIG)
        assert (found, told) == (verdict, fix)
        beside = libvirt_guests_beside()
        assert len(beside) == warnings
        assert all(each.verdict == "warning" and fix in each.text for each in beside)
