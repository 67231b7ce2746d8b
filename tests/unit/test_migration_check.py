# SPDX-License-Identifier: LGPL-2.1-or-later
"""What would make a migration fail, asked of two libvirts beforehand: they are two answers to the
calls that are asked, with errors that have libvirt's own codes."""

from __future__ import annotations

from typing import Any

import libvirt
import pytest

from agent.vm.migration_check import Refusal, ask_target, host_devices, is_lasting, problems
from tests.fakes.libvirt_errors import libvirt_error

UUID = "11111111-2222-3333-4444-555555555555"
XML = """<domain type='kvm'><os><type arch='x86_64' machine='pc-q35-9.9'>hvm</type></os>
<vcpu>2</vcpu><memory>1024</memory><devices><emulator>/usr/bin/qemu</emulator></devices>
<cpu mode='custom' match='exact' check='full'><model>EPYC-Milan</model></cpu></domain>"""


def error(code: int, domain: int, text: str = "libvirt's own words") -> libvirt.libvirtError:
    return libvirt_error(text, code, domain)


class Libvirt:
    """A libvirt on a host called `host` with that machine UUID, which refuses by `refuses`."""

    def __init__(self, host: str, uuid: str = "", **refuses: libvirt.libvirtError) -> None:
        self.host, self.uuid, self.refuses = host, uuid, refuses
        self.is_closed = False

    def _answer(self, call: str, text: str) -> str:
        if call in self.refuses:
            raise self.refuses[call]
        return text

    def getLibVersion(self) -> int:  # noqa: N802
        self._answer("version", "")
        return 9_000_000

    def getCapabilities(self) -> str:  # noqa: N802
        uuid = f"<uuid>{self.uuid}</uuid>" if self.uuid else ""
        return self._answer("capabilities", f"<capabilities><host>{uuid}</host></capabilities>")

    def getHostname(self) -> str:  # noqa: N802
        return self._answer("name", self.host)

    def getDomainCapabilities(self, *_: Any) -> str:  # noqa: N802
        return self._answer("domain", "<domainCapabilities/>")

    def compareHypervisorCPU(self, *_: Any) -> int:  # noqa: N802
        self._answer("cpu", "")
        return int(libvirt.VIR_CPU_COMPARE_IDENTICAL)

    def close(self) -> None:
        self.is_closed = True


OWN = Libvirt("host1", UUID)


def found(there: Libvirt, own: Libvirt = OWN, xml: str = XML) -> list[str]:
    return list(problems(own, there, xml))


def test_two_hosts_that_differ_have_no_problem() -> None:
    assert found(Libvirt("host2", UUID.replace("1", "7"))) == []
    assert found(Libvirt("host2")) == [], "one that names none is not the same machine"


def test_two_machines_with_one_uuid_are_one_host_for_libvirt() -> None:
    (said,) = found(Libvirt("host2", UUID.upper()))
    assert UUID in said and "host_uuid in libvirtd.conf" in said


def test_so_are_two_hosts_with_one_name() -> None:
    (said,) = found(Libvirt("host1"))
    assert said == "it calls itself host1 as this host does, which for libvirt is one host"


def test_a_cpu_or_machine_that_the_target_has_not() -> None:
    cpu = error(libvirt.VIR_ERR_CPU_INCOMPATIBLE, libvirt.VIR_FROM_CPU, "no EPYC-Milan")
    assert found(Libvirt("host2", cpu=cpu)) == ["the VM's CPU cannot be had there: no EPYC-Milan"]
    machine = error(libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_FROM_QEMU, "no pc-q35-9.9")
    assert found(Libvirt("host2", domain=machine)) == ["libvirt: no pc-q35-9.9"]


@pytest.mark.parametrize("call", ["capabilities", "name", "domain", "cpu"])
def test_a_question_that_is_not_answered_is_no_problem(call: str) -> None:
    lost = error(libvirt.VIR_ERR_RPC, libvirt.VIR_FROM_RPC)
    assert found(Libvirt("host2", **{call: lost})) == []


@pytest.mark.parametrize("xml", ["", "<pool/>", "<domain"])
def test_of_a_text_that_is_no_domain_nothing_is_asked(xml: str) -> None:
    cpu = error(libvirt.VIR_ERR_CPU_INCOMPATIBLE, libvirt.VIR_FROM_CPU)
    assert found(Libvirt("host2", cpu=cpu), xml=xml) == []


def test_capabilities_that_cannot_be_read_name_no_machine() -> None:
    class Garbled(Libvirt):
        def getCapabilities(self) -> str:  # noqa: N802
            return "<capa"

    assert found(Garbled("host2")) == []


def test_what_is_known_of_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    same = Libvirt("host2", UUID)
    monkeypatch.setattr(libvirt, "open", lambda uri: same)
    refusal = ask_target("qemu+tls://host2/system", OWN, XML)
    assert refusal.lasting and UUID in refusal.text and same.is_closed
    other = Libvirt("host2")
    monkeypatch.setattr(libvirt, "open", lambda uri: other)
    assert ask_target("qemu+tls://host2/system", OWN, XML) == Refusal()
    away = Libvirt("host2", version=error(libvirt.VIR_ERR_RPC, libvirt.VIR_FROM_RPC))
    monkeypatch.setattr(libvirt, "open", lambda uri: away)
    with pytest.raises(libvirt.libvirtError):
        ask_target("qemu+tls://host2/system", OWN, XML)
    assert away.is_closed


@pytest.mark.parametrize(
    ("code", "lasting"),
    [
        (libvirt.VIR_ERR_OPERATION_UNSUPPORTED, True),
        (libvirt.VIR_ERR_MIGRATE_UNSAFE, True),
        (libvirt.VIR_ERR_CPU_INCOMPATIBLE, True),
        (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, True),
        (libvirt.VIR_ERR_INTERNAL_ERROR, False),
        (libvirt.VIR_ERR_OPERATION_INVALID, False),
        (libvirt.VIR_ERR_OPERATION_FAILED, False),
    ],
)
def test_which_errors_come_again(code: int, lasting: bool) -> None:
    assert is_lasting(error(code, libvirt.VIR_FROM_QEMU)) is lasting


@pytest.mark.parametrize(
    ("devices", "kinds"),
    [
        ("", []),
        ("<hostdev mode='subsystem' type='usb'/>", []),
        ("<hostdev mode='subsystem' type='pci'><teaming type='transient'/></hostdev>", []),
        ("<hostdev mode='subsystem' type='pci'/><hostdev mode='subsystem' type='pci'/>", ["pci"]),
        ("<hostdev mode='capabilities'/>", ["capabilities"]),
        ("<interface type='hostdev'/>", ["network card"]),
        ("<interface type='hostdev'><teaming type='transient'/></interface>", []),
        ("<interface type='bridge'/>", []),
    ],
)
def test_the_host_devices_that_may_keep_it(devices: str, kinds: list[str]) -> None:
    assert host_devices(f"<domain><devices>{devices}</devices></domain>") == kinds


def test_a_text_that_cannot_be_read_has_no_host_devices() -> None:
    assert host_devices("<domain") == []
