# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which definitions of the shared storage a host starts, and which it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config.sections import EMULATORS
from broker.vm.admitted import SIZE_MAX, Allowed, Identity, Lease, refusal

UUID = "00000000-1111-2222-3333-444444444444"
LEASE = Lease("ha", "vm-0", "/shared/leases", 16 << 20)
WANTED = Identity("db", UUID, 1024, (LEASE,))
ALLOWED, ALL = Allowed(EMULATORS), Allowed(EMULATORS, passthrough=True)
LEASE_XML = (
    "<lease><lockspace>ha</lockspace><key>vm-0</key>"
    "<target path='/shared/leases' offset='16777216'/></lease>"
)
QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


def xml(devices: str = "", head: str = "", root: str = "", lease: str = LEASE_XML) -> str:
    return (
        f"<domain type='kvm' {root}><name>db</name><uuid>{UUID}</uuid>"
        f"<memory unit='GiB'>1</memory>{head}<devices>{lease}{devices}</devices></domain>"
    )


GOOD = xml(
    "<emulator>/usr/libexec/qemu-kvm</emulator>"
    "<disk type='file'><source file='/shared/db.img'/><target dev='vda'/></disk>"
    "<interface type='bridge'><source bridge='br0'/></interface>"
    "<serial type='pty'/><console type='pty'/><channel type='unix'/>"
    "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"
    "<graphics type='vnc' port='-1'/><tpm><backend type='emulator' version='2.0'/></tpm>",
    head="<metadata><x:y xmlns:x='urn:any' x:z='1'><script/></x:y></metadata>"
    "<cpu mode='host-passthrough'/><os><type>hvm</type></os>",
)


def test_an_ordinary_definition_is_started() -> None:
    assert refusal(GOOD, WANTED, ALLOWED) == ""
    assert refusal(xml(), WANTED, ALLOWED) == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<domain", "is not XML"),
        (" " * (SIZE_MAX + 1), f"{SIZE_MAX} may be"),
        ("<!DOCTYPE d [<!ENTITY a 'b'>]><network/>", "not a libvirt <domain>"),
        (xml().replace("<name>db", "<name>other"), "the name other, and its record db"),
        (xml().replace(UUID, "0" * 8), f"the uuid 00000000, and its record {UUID}"),
        (xml().replace(">1<", ">2<"), "has 2048 MiB, and its record 1024 MiB"),
        (xml().replace("<memory unit='GiB'>1</memory>", ""), "has no memory"),
        (xml(lease=""), "exactly one lease, vm-0 in /shared/leases"),
        (xml(LEASE_XML), "exactly one lease"),
        (xml(lease=LEASE_XML.replace("vm-0", "vm-1")), "exactly one lease"),
        (xml(lease=LEASE_XML.replace("16777216", "1048576")), "exactly one lease"),
        (xml(lease=LEASE_XML.replace("'16777216'", "'x'")), "exactly one lease"),
        (xml(lease="<lease/>"), "exactly one lease"),
        (xml("<emulator>/tmp/x</emulator>"), "its emulator /tmp/x is not in libvirt.emulators"),
    ],
)
def test_what_is_not_that_vm_is_refused(text: str, why: str) -> None:
    for allowed in (ALLOWED, ALL):
        assert why in refusal(text, WANTED, allowed)


@pytest.mark.parametrize(
    "text",
    [
        xml(root=QEMU, head="<qemu:commandline><qemu:arg value='-x'/></qemu:commandline>"),
        xml("<disk><x:y xmlns:x='urn:any'/></disk>"),
        xml("<disk x:y='1' xmlns:x='urn:any'/>"),
        xml("<interface type='ethernet'><script path='/tmp/up'/></interface>"),
        xml("<interface type='ethernet'><downscript path='/tmp/down'/></interface>"),
        xml("<filesystem><binary path='/tmp/virtiofsd'/></filesystem>"),
        xml("<filesystem type='mount'><source dir='/'/></filesystem>"),
        xml("<serial type='file'><source path='/etc/cron.d/x'/></serial>"),
        xml("<console type='pipe'><source path='/x'/></console>"),
        xml("<serial type='pty'><log file='/etc/cron.d/x'/></serial>"),
        xml(head="<seclabel type='none'/>"),
        xml("<disk><source file='/d'><seclabel relabel='no'/></source></disk>"),
        xml(head="<bootloader>/tmp/x</bootloader>"),
    ],
)
def test_what_reaches_out_of_the_vm_needs_the_hosts_own_word(text: str) -> None:
    assert "libvirt.passthrough is off on this host" in refusal(text, WANTED, ALLOWED)
    assert refusal(text, WANTED, ALL) == ""


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    assert refusal(text, WANTED, ALLOWED) != ""
