# SPDX-License-Identifier: LGPL-2.1-or-later
"""The management bridge, with real interfaces and with made-up ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from broker.monitors.bridge import BridgeMonitor, LinkEvents
from broker.monitors.runner import MonitorRunner, Sample, Unknown, Verdict
from tests.fakes.waiting import until_now
from tests.unit.namespace import BRIDGE, card, ip, made

UPLINK, FAR = "uplink", "far"


def sample(monitor: BridgeMonitor) -> tuple[bool, str]:
    value = asyncio.run(monitor.sample())
    return value, monitor.judge(value)


def settled(monitor: BridgeMonitor, wanted: bool) -> tuple[bool, str]:
    """The kernel tells a bridge of its ports' carrier a moment later."""
    until_now(lambda: sample(monitor)[0] is wanted)
    return sample(monitor)


def test_a_bridge_through_its_life(net: Path) -> None:
    monitor = BridgeMonitor(BRIDGE, net=net)
    value, why = sample(monitor)
    assert not value and "administratively down" in why
    ip("link", "add", UPLINK, "type", "veth", "peer", "name", FAR)
    ip("link", "set", UPLINK, "master", BRIDGE, "up")
    ip("link", "set", BRIDGE, "up")
    value, why = sample(monitor)
    assert not value and why == f"{BRIDGE}: no carrier on {UPLINK}"
    ip("link", "set", FAR, "up")
    assert settled(monitor, True) == (True, "")
    ip("link", "set", FAR, "down")
    assert not settled(monitor, False)[0]
    ip("link", "del", UPLINK)
    ip("link", "del", BRIDGE)
    value, why = sample(monitor)
    assert not value and why == f"{BRIDGE} is not there"
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("link", "set", BRIDGE, "up")
    why = sample(monitor)[1]
    assert why in ("", f"{BRIDGE} is down"), "to have no uplink is no fault by itself"


def test_a_change_wakes_the_monitor(net: Path) -> None:
    """Long before its interval is over."""

    async def run() -> None:
        runner = MonitorRunner([BridgeMonitor(BRIDGE, 3600.0, net)])
        changed = asyncio.Event()
        runner.on_change = lambda name: changed.set()
        events = LinkEvents(lambda: runner.wake("bridge"))
        task = asyncio.create_task(runner.run())
        try:
            async with asyncio.timeout(10.0):
                await changed.wait()
                assert runner.value("bridge") is False
                for words in (
                    ("add", UPLINK, "type", "veth", "peer", "name", FAR),
                    ("set", UPLINK, "master", BRIDGE, "up"),
                    ("set", FAR, "up"),
                    ("set", BRIDGE, "up"),
                ):
                    await asyncio.to_thread(ip, "link", *words)
                while runner.value("bridge") is not True:
                    changed.clear()
                    await changed.wait()
        finally:
            task.cancel()
            events.close()
        latest: Sample = runner.latest["bridge"]
        assert latest.verdict is Verdict.OK and latest.problem == ""

    asyncio.run(run())


def test_no_bridge_is_configured() -> None:
    with pytest.raises(Unknown, match=r"network\.bridge"):
        asyncio.run(BridgeMonitor("").sample())


def test_taps_and_veths_are_no_way_out_where_there_is_a_card(tmp_path: Path) -> None:
    net = made(tmp_path)
    card(net, "bond0", "br0", kind="bond", carrier="0")
    card(net, "vnet0", "br0")
    (net / "vnet0" / "tun_flags").write_text("0x1002")
    card(net, "veth0", "br0")
    assert sample(BridgeMonitor("br0", net=net)) == (False, "br0: no carrier on bond0")
    (net / "bond0" / "carrier").write_text("1\n")
    assert sample(BridgeMonitor("br0", net=net)) == (True, "")


def stand_on(net: Path, upper: str, *lower: str) -> None:
    """Interfaces below an interface, cards all of them."""
    (net / upper).mkdir(parents=True, exist_ok=True)
    for name in lower:
        (net / name / "device").mkdir(parents=True)
        (net / name / "carrier").write_text("1\n")
        (net / upper / f"lower_{name}").symlink_to(net / name)


@pytest.mark.parametrize("kind", ["", "vxlan"])
def test_a_team_or_vxlan_beside_a_container_is_the_way_out(tmp_path: Path, kind: str) -> None:
    """The container's interface kept the bridge up when the cable was out."""
    net = made(tmp_path)
    card(net, "out0", "br0", kind=kind)
    stand_on(net, "out0", "eth0", "eth1")
    card(net, "veth0", "br0")
    assert sample(BridgeMonitor("br0", net=net)) == (True, "")
    (net / "eth0" / "carrier").write_text("0\n")
    assert sample(BridgeMonitor("br0", net=net)) == (True, ""), "the other cable is in"
    (net / "eth1" / "carrier").write_text("0\n")
    assert sample(BridgeMonitor("br0", net=net)) == (False, "br0: no carrier on out0")


def test_a_vxlan_whose_card_is_not_told_counts_by_itself(tmp_path: Path) -> None:
    net = made(tmp_path)
    card(net, "vx0", "br0", kind="vxlan", carrier="0")
    card(net, "veth0", "br0")
    assert sample(BridgeMonitor("br0", net=net)) == (False, "br0: no carrier on vx0")


def test_a_bridge_of_open_vswitch_has_the_cards_of_the_switch(tmp_path: Path) -> None:
    net = made(tmp_path)
    (net / "br0" / "uevent").write_text("DEVTYPE=openvswitch\n")
    stand_on(net, "ovs-system", "eth0")
    (net / "ovs-system" / "lower_br0").symlink_to(net / "br0")
    assert sample(BridgeMonitor("br0", net=net)) == (True, "")
    (net / "eth0" / "carrier").write_text("0\n")
    assert sample(BridgeMonitor("br0", net=net)) == (False, "br0: no carrier on eth0")


def test_interfaces_that_stand_on_each_other_are_looked_at_so_deep(tmp_path: Path) -> None:
    net = made(tmp_path)
    card(net, "a0", "br0")
    (net / "a0" / "lower_a0").symlink_to(net / "a0")
    assert sample(BridgeMonitor("br0", net=net)) == (True, "")


def test_a_bridge_with_only_taps_has_no_uplink_to_lose(tmp_path: Path) -> None:
    net = made(tmp_path)
    card(net, "vnet0", "br0", carrier="0")
    (net / "vnet0" / "tun_flags").write_text("0x1002")
    assert sample(BridgeMonitor("br0", net=net)) == (True, "")


@pytest.mark.parametrize("flags", ["", "zz", "0x"])
def test_garbage_is_a_bridge_that_goes_away(tmp_path: Path, flags: str) -> None:
    net = made(tmp_path)
    (net / "br0" / "flags").write_text(flags)
    assert sample(BridgeMonitor("br0", net=net)) == (False, "br0 is going away")
