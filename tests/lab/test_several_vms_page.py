# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/several-vms.md, from one VM to three: its commands, taken from the page, on two hosts whose
cluster was made for one VM. The two further guests have no disk here; and then a host dies."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from . import guest, vms
from .cluster import Cluster
from .conftest import new_cluster
from .layout import CHECKOUT
from .quickstart_page import Command, commands, fits

PAGE = CHECKOUT / "docs" / "several-vms.md"
#: For a status that says what the page says: two emulated guests boot.
STATUS_SECONDS_MAX = 90.0
TAKEOVER_SECONDS_MAX = 90.0
RESTART = "systemctl restart ha-broker ha-agent"
#: The guests of the VMs are the lab's stand-in of an identity provider, which needs no disk.
DB = replace(vms.SSO, number=2, name="db", address=vms.DB.address, mac=vms.DB.mac)
WEB = replace(vms.SSO, number=3, name="web")


@pytest.fixture
def cluster(able: None) -> Iterator[Cluster]:
    with new_cluster() as made:
        made.up(2)
        for vm in (DB, WEB):
            xml = vms.domain(vm, made.layout, made.settings, guest.build())
            # As libvirt had it: without a lease, and its UUID its own.
            text = re.sub(r"\s*<lease>.*?</lease>|\s*<uuid>.*?</uuid>", "", xml, flags=re.DOTALL)
            (made.directory / f"{vm.name}.xml").write_text(text)
        yield made


def in_the_lab(cluster: Cluster, command: Command) -> str:
    """The command with the lab's paths and addresses."""
    text = command.text
    for old, new in (
        ("db.xml", f"{cluster.directory}/db.xml"),
        ("web.xml", f"{cluster.directory}/web.xml"),
        ("tcp:10.0.0.21:5432", f"tcp:{DB.address}:80"),
        ("http://10.0.0.22/", WEB.health),
    ):
        text = text.replace(old, new)
    return text


def type_(cluster: Cluster, command: Command) -> None:
    """Type it as a person would: a status is looked at again until it says what the page says."""
    if command.text == RESTART:
        for daemon in ("agent", "broker"):
            cluster.stop(command.host, daemon)
        for daemon in ("broker", "agent"):
            cluster.start(command.host, daemon)
        return
    wanted = tuple(re.sub(r"^ha:", "lab:", line) for line in command.output) or ("…",)
    until_s = time.monotonic() + STATUS_SECONDS_MAX
    while True:
        done = cluster.sh(command.host, ["bash", "-c", in_the_lab(cluster, command)])
        good = done.returncode == 0 and fits(done.stdout, wanted)
        if good or "--status" not in command.text or time.monotonic() > until_s:
            break
        time.sleep(0.5)
    said = f"{command.host}# {command.text}\n{done.stdout}{done.stderr}"
    assert good, said
    print(said)


def test_the_page_has_commands_for_both_hosts_and_expects_something() -> None:
    found = commands(PAGE)
    assert {command.host for command in found} == {"host1", "host2"}
    assert sum(bool(command.output) for command in found) >= 5
    assert len(found) <= 10, "ten minutes"


def test_from_one_vm_to_three_as_the_page_says_then_a_host_dies(cluster: Cluster) -> None:
    boots = cluster.status()["engine"]["boots"]
    began_s = time.monotonic()
    for command in commands(PAGE):
        type_(cluster, command)
    print(f"from one VM to three: {time.monotonic() - began_s:.0f} s")
    assert cluster.status()["engine"]["boots"] == boots, "the engine was not touched"
    db_host, web_host = cluster.vm_host(DB), cluster.vm_host(WEB)
    assert {db_host, web_host} == {"host1", "host2"}, "apart"
    # As the page says: the price of `apart` with two hosts, and how it is ended.
    shown = cluster.sh("host1", ["ha-agent", "--status"]).stdout
    assert re.search(r"if host\d dies, (db|web) has no place", shown), shown
    ended = cluster.sh("host1", ["ha-agent", "vm", "set", "web", "apart="])
    assert ended.returncode == 0, ended.stderr
    (heir,) = {"host1", "host2"} - {db_host}
    assert db_host is not None
    cluster.cut(db_host)
    until_s = time.monotonic() + TAKEOVER_SECONDS_MAX
    while not all(cluster.vm_host(vm) == heir for vm in (vms.ENGINE, DB, WEB)):
        assert time.monotonic() < until_s, cluster.sh(heir, ["ha-agent", "--status"]).stdout
        time.sleep(0.5)
    assert cluster.wait_healthy(TAKEOVER_SECONDS_MAX) == heir
