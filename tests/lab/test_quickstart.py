# SPDX-License-Identifier: LGPL-2.1-or-later
"""The quick start's commands, taken from the page, on two bare hosts of a lab: no volume, no
configuration, a libvirt without lock driver, a VM that only libvirt knows. Word for word they are
run in machines with systemd: tests/packaging/test_quickstart.py."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from broker.vm.qemu_conf import LOCK_MANAGER_LINE, NO_DISK_LEASES_LINE

from . import quickstart_page
from .cluster import Cluster
from .configs import SANLOCK_CONF
from .conftest import new_cluster
from .layout import GUEST_ADDRESS, VM_NAME
from .quickstart_page import PASSWORD, Command, fits

#: For what needs its time: a lockspace joined, a guest booted.
STATUS_SECONDS_MAX = 45.0
COMMAND_SECONDS_MAX = 60.0
#: What a lab has in another way, and how it is had.
START = "systemctl enable --now ha-broker ha-agent"
IS_THERE = "apt install "


def commands() -> list[Command]:
    """The commands of the page; these hosts have no BMC, so any proof of a death is accepted."""
    proof = "(proof by its fence device)"
    return [
        replace(each, output=tuple(line.replace(proof, "…") for line in each.output))
        for each in quickstart_page.commands()
    ]


@pytest.fixture
def bare(able: None) -> Iterator[Cluster]:
    """Two hosts on which nothing of ours was ever set up."""
    with new_cluster() as cluster:
        cluster.up(2, bmc=False, daemons=False)
        make_bare(cluster)
        yield cluster


def make_bare(lab: Cluster) -> None:
    """Take away what `up` has set up; what is left says who the host is, for the hosts share
    one machine's name and UUID."""
    lab.layout.whiteboard.unlink()
    lab.layout.leases.unlink()
    for number in lab.settings.host_ids():
        host = lab.layout.host(number)
        host.secrets.unlink()
        host.config.write_text(
            f'[host]\nname = "{host.name}"\nsystem-uuid = "{host.system_uuid}"\n'
            f'[storage]\nsanlock-conf = "{SANLOCK_CONF}"\n'
        )
        for name, line in (
            ("qemu.conf", LOCK_MANAGER_LINE),
            ("qemu-sanlock.conf", NO_DISK_LEASES_LINE),
        ):
            conf = host.etc / "libvirt" / name
            conf.write_text(conf.read_text().replace(f"{line}\n", ""))
        lab.restart_libvirt(host.name)
        xml = re.sub(r"\s*<lease>.*?</lease>", "", host.definition.read_text(), flags=re.DOTALL)
        host.definition.unlink()
        if number == 1:
            (host.directory / "vm.xml").write_text(xml)
            done = lab.sh(host.name, ["virsh", "define", str(host.directory / "vm.xml")])
            assert done.returncode == 0, done.stderr


def in_the_lab(lab: Cluster, command: Command, token: str) -> str:
    """The command with the lab's paths and addresses."""
    layout = lab.layout
    socket = f"{lab.directory}/hosts/{{host}}/run/libvirt/libvirt-sock"
    text = command.text
    for old, new in (
        ("/srv/ha", str(layout.shared)),
        ("10.0.0.20", GUEST_ADDRESS),
        ("join TOKEN", f"join {token}"),
        # What a page need not say: no host can be reached by TLS here, and seconds count.
        (
            "init ",
            f"init --local --io-timeout 2 --migration-uri 'qemu+unix:///system?socket={socket}'"
            f" --migration-data-uri 'unix://{layout.array}/m-{{host}}' ",
        ),
        ("fence add", f"fence add <<<{PASSWORD}"),
    ):
        text = text.replace(old, new)
    return text


def run(lab: Cluster, command: Command, token: str) -> str:
    """Run it, as a person would: the status is asked again until it says what the page says.
    Returns what it printed."""
    if command.text.startswith(IS_THERE):
        return ""
    if command.text == START:
        lab.start(command.host, "broker")
        lab.start(command.host, "agent")
        return ""
    until_s = time.monotonic() + STATUS_SECONDS_MAX
    while True:
        done = lab.sh(
            command.host,
            ["bash", "-c", in_the_lab(lab, command, token)],
            timeout_s=COMMAND_SECONDS_MAX,
        )
        good = done.returncode == 0 and (not command.output or fits(done.stdout, command.output))
        # Whom this host has only just seen, it does not call live yet: a person looks again.
        good = good and not ("--status" in command.text and "UNCERTAIN" in done.stdout)
        if good or "--status" not in command.text or time.monotonic() > until_s:
            break
        time.sleep(0.5)
    assert good, f"{command.host}# {command.text}\n{done.returncode}\n{done.stdout}{done.stderr}"
    if "--set-libvirt" in command.text:
        lab.restart_libvirt(command.host)  # no systemd is here that would
    return str(done.stdout)


def test_the_page_has_commands_for_both_hosts_and_expects_something() -> None:
    found = commands()
    assert {command.host for command in found} == {"host1", "host2"}
    assert sum(bool(command.output) for command in found) >= 3


def test_the_quick_start_as_it_is_written(bare: Cluster) -> None:
    began_s = time.monotonic()
    token = ""
    for command in commands():
        at_s = time.monotonic()
        said = run(bare, command, token)
        token = said.strip() if command.text == "ha-agent invite" else token
        print(f"[{at_s - began_s:5.1f} s] {command.host}# {command.text}")
    print(f"quick start: {time.monotonic() - began_s:.0f} s")
    move = Command("host1", "ha-agent migrate --to host2", ())
    run(bare, move, token)
    seen = Command(
        "host1", "ha-agent --status", ("ha: HostedEngine is up and healthy on host2…", "…")
    )
    run(bare, seen, token)
    assert bare.engine_host() == "host2"
    assert bare.page_answers()
    held = bare.sh("host2", ["sanlock", "client", "status"]).stdout
    assert re.search(r"^r ha-[0-9a-f-]{36}:engine:.* p ", held, re.MULTILINE), held
    assert VM_NAME in bare.sh("host2", ["virsh", "list", "--name"]).stdout
    other_vms_go_on(bare, "host2")


#: A VM of the host that nobody protects: a disk of its own that it writes, and no lease.
OTHER = """<domain type='qemu'><name>other</name><memory unit='MiB'>32</memory>
<os><type>hvm</type></os><devices><disk type='file'><driver name='qemu' type='raw'/>
<source file='{disk}'/><target dev='vda' bus='virtio'/></disk></devices></domain>"""


def other_vms_go_on(lab: Cluster, host: str) -> None:
    """Beside the protected VM another one starts, stops for a moment and resumes."""
    place = lab.layout.host(int(host.removeprefix("host"))).directory
    (place / "other.raw").write_bytes(bytes(1 << 20))
    (place / "other.xml").write_text(OTHER.format(disk=place / "other.raw"))
    for words in ("define " + str(place / "other.xml"), *(f"{w} other" for w in LIFE)):
        done = lab.sh(host, ["virsh", *words.split()])
        assert done.returncode == 0, f"{words}: {done.stderr}"


LIFE = ("start", "suspend", "resume", "destroy", "undefine")
