# SPDX-License-Identifier: LGPL-2.1-or-later
"""What only a real sanlock and a real libvirt can refuse: each refusal is one line with its
own exit code, and nothing is started."""

from __future__ import annotations

import re
import subprocess
from functools import partial

from broker.daemon.exit_codes import ExitCode
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import SlotReport, decode_slot

from . import ask
from .cluster import Cluster
from .configs import VOLUME_IDS
from .layout import LOCKSPACE

#: As in a cluster whose volumes have no identity yet.
NAMELESS = (VOLUME_IDS, "")


def changed_config(lab: Cluster, host: str, *changes: tuple[str, str]) -> str:
    """A copy of a host's configuration with its own socket and these replacements; its broker
    does not listen on TCP, where the host's own one does."""
    text = re.sub(r"(?m)^listen = .*$", "listen = []", lab.config_path(host).read_text())
    for old, new in (("/run/ha-agent/broker.sock", "/run/ha-agent/second.sock"), *changes):
        assert old in text
        text = text.replace(old, new)
    path = lab.directory / "changed.toml"
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def refused(result: subprocess.CompletedProcess[str], code: ExitCode, *words: str) -> None:
    assert result.returncode == code, (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    for word in words:
        assert word in last, last


def idle_host(lab: Cluster) -> str:
    """A host that does not run the engine."""
    engine = lab.wait_healthy(60)
    return next(name for name in lab.hosts if name != engine)


def test_a_host_id_in_use_is_refused_by_sanlock(lab: Cluster) -> None:
    host = idle_host(lab)
    used = next(name for name in lab.hosts if name != host).removeprefix("host")
    number = host.removeprefix("host")
    lab.stop(host, "agent")
    lab.stop(host, "broker")
    lockspace = f"{LOCKSPACE}:{number}:{lab.shared}/leases:0"
    assert lab.sh(host, ["sanlock", "client", "rem_lockspace", "-s", lockspace]).returncode == 0
    try:
        config = changed_config(lab, host, (f"[host]\nid = {number}", f"[host]\nid = {used}"))
        before = slot(lab, int(used))
        result = lab.sh(host, ["timeout", "60", "ha-broker", "--config", config])
        refused(result, ExitCode.LOCKSPACE, f"host id {used} is in use", "host.id")
        assert slot(lab, int(used)).hostname == before.hostname, "its slot was left alone"
    finally:
        lab.start(host, "broker")
        lab.start(host, "agent")
    # The refused join was ended: the host is back with its own id within seconds.
    ask.until("the host is back", 30, partial(is_back, lab, host))


def is_back(lab: Cluster, host: str) -> bool:
    return ask.status(lab, host).get("lockspace") == "joined"


def slot(lab: Cluster, host_id: int) -> SlotReport:
    with (lab.shared / "whiteboard").open("rb") as file:
        file.seek(host_id * SLOT_BYTES)
        report = decode_slot(host_id, file.read(SLOT_BYTES))
    assert report is not None
    return report


def test_a_host_id_that_sanlock_here_does_not_have(lab: Cluster) -> None:
    config = changed_config(lab, "host2", ("[host]\nid = 2", "[host]\nid = 1"))
    result = lab.sh("host2", ["timeout", "60", "ha-broker", "--config", config])
    refused(result, ExitCode.LOCKSPACE, "as host id 2", "host.id is 1")


def test_a_lease_volume_of_another_lockspace(lab: Cluster) -> None:
    other = lab.shared / "other-leases"
    other.write_bytes(bytes(8 << 20))
    made = lab.sh("host2", ["sanlock", "direct", "init", "-s", f"elsewhere:0:{other}:0"])
    assert made.returncode == 0, made.stderr
    change = (str(lab.shared / "leases"), str(other))
    named = lab.sh("host2", ["ha-broker", "--config", changed_config(lab, "host2", change)])
    refused(named, ExitCode.STORAGE, str(other), "has no identity", "is expected")
    config = changed_config(lab, "host2", change, NAMELESS)
    result = lab.sh("host2", ["timeout", "60", "ha-broker", "--config", config])
    refused(result, ExitCode.LOCKSPACE, str(other), "'elsewhere'", LOCKSPACE)


def test_a_lease_volume_without_a_lockspace(lab: Cluster) -> None:
    empty = lab.shared / "empty-leases"
    empty.write_bytes(bytes(8 << 20))
    config = changed_config(lab, "host2", (str(lab.shared / "leases"), str(empty)), NAMELESS)
    result = lab.sh("host2", ["timeout", "60", "ha-broker", "--config", config])
    refused(result, ExitCode.LOCKSPACE, str(empty), "sanlock direct init")


def test_an_agent_whose_definition_libvirt_rejects_says_so_and_stays(lab: Cluster) -> None:
    definition = lab.config_path("host2").parent / "engine.xml"
    broken = lab.directory / "broken.xml"
    broken.write_text(
        definition.read_text()
        .replace("<os>", "<os><nonsense/>", 1)
        .replace("<vcpu", "<vcpu placement='nowhere'", 1)
    )
    config = changed_config(lab, "host2", (str(definition), str(broken)))
    result = lab.sh("host2", ["timeout", "10", "ha-agent", "--config", config, "run"])
    assert f"this host cannot start the VM: {broken}: libvirt rejects it" in result.stderr
    # coreutils' timeout ended it: it had not ended by itself.
    assert result.returncode == 124, result.stderr
    assert lab.engine_host() != "host2" or lab.page_answers()


def test_storage_that_is_read_only(lab: Cluster) -> None:
    """The whiteboard on a read-only mount, seen from the host alone."""
    script = (
        f"mount --bind {lab.shared} {lab.shared} && "
        f"mount -o remount,bind,ro {lab.shared} && exec timeout 60 ha-broker --config $0"
    )
    config = changed_config(lab, "host2")
    result = lab.sh("host2", ["unshare", "-m", "sh", "-c", script, config])
    refused(result, ExitCode.STORAGE, "storage.whiteboard", "Read-only")
