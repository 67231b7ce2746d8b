# SPDX-License-Identifier: LGPL-2.1-or-later
"""A standby that cannot start the VM: proven beforehand with the real libvirt, and where it is
found out only by trying, shown in libvirt's own words. A lab of its own: hosts get broken here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from . import ask, ready
from .cluster import Cluster
from .conftest import law_1, new_cluster
from .layout import HOST_BRIDGE, host_id_of

TAKEOVER_S = 60.0
NO_BRIDGE = "Cannot get interface MTU on 'br-vlan20': No such device"
REJECTED = "libvirt rejects it"


@pytest.fixture(scope="module")
def pair(able: None) -> Iterator[Cluster]:
    with new_cluster() as cluster:
        cluster.up(2)
        with law_1(cluster):
            yield cluster


def own(lab: Cluster, host: str) -> dict[str, Any]:
    found: dict[str, Any] = ask.status(lab, host).get("hosts", {}).get(str(host_id_of(host)), {})
    return found


def penalties(lab: Cluster, host: str) -> dict[str, str]:
    return {part["name"]: part["why"] for part in own(lab, host).get("penalties", ())}


def proof(lab: Cluster, host: str) -> list[tuple[str, str]]:
    """What `ha-agent doctor` says of it."""
    checks = json.loads(lab.sh(host, ["ha-agent", "doctor", "--json"]).stdout)["checks"]
    return [(one["verdict"], one["text"]) for one in checks if one["name"] == "can-start"]


def test_each_host_of_the_lab_proves_that_it_could(pair: Cluster) -> None:
    pair.wait_healthy(TAKEOVER_S)
    for host in pair.hosts:
        assert [verdict for verdict, _ in proof(pair, host)] == ["ok"]
        monitor = ask.status(pair, host)["monitors"]["can_start"]
        assert monitor["value"] is True, monitor
        print(f"{host}: the proof took {1000 * monitor['took_s']:.0f} ms")


def changed(pair: Cluster, host: str, old: str, new: str) -> list[tuple[str, str]]:
    """The doctor's proof of a definition with something changed in it."""
    path = pair.layout.host(host_id_of(host)).definition
    good = path.read_text()
    assert old in good
    try:
        path.write_text(good.replace(old, new, 1))
        return proof(pair, host)
    finally:
        path.write_text(good)


def test_what_the_real_libvirt_refuses_and_what_it_starts(pair: Cluster) -> None:
    host = pair.hosts[0]
    devices = "</devices>"
    for old, new, said in (
        ("<devices>", "<devices><emulator>/no/qemu</emulator>", "the emulator: /no/qemu cannot be"),
        (devices, f"<video><model type='no'/></video>{devices}", "unknown video model 'no'"),
        (devices, f"<disk type='no'/>{devices}", "Invalid value for attribute 'type'"),
        (devices, f"<interface type='network'><source network='no'/></interface>{devices}", "'no'"),
        ("<os>", "<os firmware='efi'>", "firmware"),
        ("type='qemu'", "type='xen'", "does not support virt type 'xen'"),
    ):
        found = changed(pair, host, old, new)
        assert any(verdict == "fail" and said in text for verdict, text in found), (new, found)
    for new in (
        # libvirt cannot tell of these without a start, and says "internal error".
        "<graphics type='vnc' autoport='yes'/>",
        "<filesystem type='mount'><source dir='/tmp'/><target dir='x'/></filesystem>",
        "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
    ):
        found = changed(pair, host, devices, new + devices)
        assert [verdict for verdict, _ in found] == ["ok"], (new, found)


def test_a_standby_without_the_bridge_is_none_and_one_again_when_it_is_there(
    pair: Cluster,
) -> None:
    owner = pair.wait_healthy(TAKEOVER_S)
    (heir,) = (name for name in pair.hosts if name != owner)
    definition = pair.layout.host(host_id_of(heir)).definition
    bridge = f"<source bridge='{HOST_BRIDGE}'/>"
    good = definition.read_text()
    assert bridge in good
    definition.write_text(good.replace(bridge, "<source bridge='br-vlan20'/>"))
    ready.restart(pair, heir, "agent")
    ask.until(
        "the heir says what is missing",
        20,
        lambda: (
            "br-vlan20 of the VM's interface is not"
            in penalties(pair, heir).get("cannot-start", "")
        ),
    )
    assert own(pair, heir)["score"] == 0
    assert ("fail" in dict(proof(pair, heir))) and "br-vlan20" in proof(pair, heir)[0][1]
    ask.until("nobody counts it", 10, lambda: ask.status(pair, owner)["bound"] is None)
    shown = pair.sh(owner, ["ha-agent", "--status"]).stdout
    assert f"{heir} cannot start the VM: br-vlan20" in shown and "NO STANDBY" in shown
    # The kernel tells of a new link: no minute is waited for.
    pair.sh(heir, ["ip", "link", "add", "br-vlan20", "type", "bridge"])
    ask.until("it is a standby again", 20, lambda: own(pair, heir).get("score", 0) > 0)
    pair.sh(heir, ["ip", "link", "del", "br-vlan20"])
    ask.until("it is none again", 20, lambda: own(pair, heir).get("score", 1) == 0)


def test_a_start_that_fails_says_libvirt_s_own_words_and_counts(pair: Cluster) -> None:
    """The heir of the test before, set not to look beforehand; the lease's owner is dead."""
    owner = pair.wait_healthy(TAKEOVER_S)
    (heir,) = (name for name in pair.hosts if name != owner)
    config = pair.config_path(heir)
    config.write_text(config.read_text().replace("[vm]", "[vm]\nprove-start = false", 1))
    ready.restart(pair, heir, "broker")
    ask.until("nothing is looked at", 20, lambda: own(pair, heir).get("score", 0) > 0)
    pair.cut(owner)
    ask.until(
        "a start failed", TAKEOVER_S, lambda: NO_BRIDGE in penalties(pair, heir).get("retries", "")
    )
    log = pair.log_path(heir, "agent")
    assert NO_BRIDGE in log.read_text() and "start-lost-race" not in log.read_text()
    assert NO_BRIDGE in pair.sh(heir, ["ha-agent", "why"]).stdout
    events = pair.sh(heir, ["ha-agent", "events", "--since", "5min"]).stdout
    assert any("start-failed" in line and NO_BRIDGE in line for line in events.splitlines()), events
    ask.until("it pauses", 30, lambda: own(pair, heir).get("score", 1) == 0)
    tries = log.read_text().count("begin StartVm")
    assert tries <= 4
    definition = pair.layout.host(host_id_of(heir)).definition
    definition.write_text(definition.read_text().replace("br-vlan20", HOST_BRIDGE))
    pair.kill(heir, "agent")
    assert pair.wait_healthy(TAKEOVER_S) == heir, "mended, and the agent started anew"


def test_an_agent_whose_definition_libvirt_refuses_stays(pair: Cluster) -> None:
    """A VM that runs there is watched on."""
    (heir,) = (name for name in pair.hosts if pair.is_on(name))
    definition = pair.layout.host(host_id_of(heir)).definition
    good = definition.read_text()
    assert pair.engine_host() == heir
    try:
        definition.write_text(good.replace("<vcpu", "<vcpu placement='nowhere'", 1))
        log = pair.log_path(heir, "agent")
        said = log.read_text().count(REJECTED)
        pair.kill(heir, "agent")
        # What the killed agent said last is still shown until the next one has decided.
        ask.until("the new agent read it", 20, lambda: log.read_text().count(REJECTED) > said)
        ask.until("it decides", 20, lambda: ask.state(pair, heir) == "EngineUp")
        ask.during("and stays", 5, lambda: ask.state(pair, heir) == "EngineUp")
    finally:
        definition.write_text(good)
        pair.kill(heir, "agent")
