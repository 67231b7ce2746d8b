# SPDX-License-Identifier: LGPL-2.1-or-later
"""What two VMs have in common and must not have: disks that both write to, nvram, MACs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.registry.in_common import same_macs, written_by_both
from agent.vm.imported import with_macs
from broker.vm.domain_facts import parse

DOMAIN = """<domain type='kvm'><name>x</name><uuid>{uuid}</uuid><os>{os}</os>
<devices>{devices}</devices></domain>"""
UUID = "00000000-1111-2222-3333-444444444444"


def domain(*devices: str, os: str = "", uuid: str = UUID) -> str:
    return DOMAIN.format(uuid=uuid, os=os, devices="".join(devices))


def disk(path: str, more: str = "", below: str = "", dev: str = "vda") -> str:
    chain = f"<backingStore type='file'><format type='raw'/><source file='{below}'/></backingStore>"
    return (
        f"<disk type='file' device='disk'><source file='{path}'/><target dev='{dev}'/>"
        f"{chain if below else ''}{more}</disk>"
    )


def block(path: str) -> str:
    return f"<disk type='block' device='disk'><source dev='{path}'/><target dev='vdb'/></disk>"


def network(name: str) -> str:
    host = "<host name='ceph1' port='6789'/>"
    source = f"<source protocol='rbd' name='{name}'>{host}</source>"
    return f"<disk type='network' device='disk'>{source}<target dev='vda'/></disk>"


SHARED, READ_ONLY = "<shareable/>", "<readonly/>"
NVRAM = "<nvram>/s/vars.fd</nvram>"


@pytest.mark.parametrize(
    ("mine", "its", "said"),
    [
        (domain(disk("/s/a")), domain(disk("/s/a")), "disk vda is /s/a, which db uses too"),
        (domain(block("/dev/vg/a")), domain(block("/dev/vg/a")), "disk vdb is /dev/vg/a"),
        (domain(network("p/a")), domain(network("p/a")), "which db uses too (its disk vda)"),
        # One who writes below what another one reads changes it, whichever of them is new.
        (domain(disk("/s/base")), domain(disk("/s/b", below="/s/base")), "/s/base"),
        (domain(disk("/s/b", below="/s/base")), domain(disk("/s/base")), "/s/base"),
        (domain(disk("/s/a", READ_ONLY)), domain(disk("/s/a")), "/s/a"),
        (domain(disk("/s/a", SHARED)), domain(disk("/s/a")), "/s/a"),
        (domain(os=NVRAM), domain(os=NVRAM), "firmware nvram is /s/vars.fd"),
    ],
)
def test_what_two_vms_would_destroy(mine: str, its: str, said: str) -> None:
    (found,) = written_by_both(mine, [("db", its)])
    assert said in found and "db uses too" in found


@pytest.mark.parametrize(
    ("mine", "its"),
    [
        (domain(disk("/s/a")), domain(disk("/s/b"))),
        (domain(disk("/s/a", SHARED)), domain(disk("/s/a", SHARED))),
        (domain(disk("/s/a", READ_ONLY)), domain(disk("/s/a", READ_ONLY))),
        (domain(disk("/s/a", below="/s/base")), domain(disk("/s/b", below="/s/base"))),
        (domain(network("p/a")), domain(network("p/b"))),
        (domain(disk("")), domain(disk(""))),
        (
            domain("<disk type='file' device='cdrom'><source file='/s/iso'/></disk>"),
            domain("<disk type='file' device='cdrom'><source file='/s/iso'/></disk>"),
        ),
        (domain(disk("/s/a")), "<domain"),
    ],
)
def test_what_two_vms_may_share(mine: str, its: str) -> None:
    assert written_by_both(mine, [("db", its)]) == []


def test_a_link_leads_to_the_same_disk(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    (tmp_path / "link").symlink_to("a")
    mine, its = domain(disk(f"{tmp_path}/link")), domain(disk(f"{tmp_path}/a"))
    assert len(written_by_both(mine, [("db", its)])) == 1


def interface(mac: str = "") -> str:
    text = f"<mac address='{mac}'/>" if mac else ""
    return f"<interface type='bridge'>{text}<source bridge='br0'/></interface>"


def test_a_mac_of_another_vm_is_said() -> None:
    mine = domain(interface("52:54:00:AA:00:01"), interface("52:54:00:aa:00:02"))
    its = domain(interface("52:54:00:aa:00:01"), interface())
    assert same_macs(mine, [("db", its), ("torn", "<")]) == [
        "db has the MAC 52:54:00:aa:00:01 too: while both run, the network mixes them up"
    ]
    assert same_macs(domain(interface()), [("db", domain(interface()))]) == []


def test_an_interface_without_a_mac_gets_one_that_stays() -> None:
    """libvirt makes up another one at each start."""
    text = domain(interface(), interface("52:54:00:aa:00:02"), interface())
    root = parse(text)
    notes = with_macs(root)
    macs = [mac.get("address", "") for mac in root.iterfind("devices/interface/mac")]
    assert len(set(macs)) == 3 and macs[1] == "52:54:00:aa:00:02"
    assert all(re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", mac) for mac in macs)
    assert notes == [
        f"interface {number} had no <mac>, it gets {macs[number - 1]}" for number in (1, 3)
    ]
    assert with_macs(root) == []
    again = parse(text)
    with_macs(again)
    assert [mac.get("address") for mac in again.iterfind("devices/interface/mac")] == macs
    other = parse(domain(interface(), uuid=UUID.replace("0", "1")))
    with_macs(other)
    (theirs,) = [mac.get("address") for mac in other.iterfind("devices/interface/mac")]
    assert theirs not in macs
