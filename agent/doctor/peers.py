# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks of the cluster from this host for `ha-agent doctor`: daemons, agreement, reachability.

Each check yields (verdict, text, what to type).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import assert_never

import libvirt

from agent.doctor.host import Found
from agent.setup.heartbeat_reach import DEADLINE_S as PORTS_S
from agent.setup.heartbeat_reach import OPEN, Port, ask_ports
from agent.setup.leave import SYSTEMD, systemd_keeps_them
from agent.storage.watched import read_slots
from agent.vm.definition import load_definition
from agent.vm.errors import DefinitionError
from agent.vm.migration_check import ask_target, host_devices
from agent.vm.reach import ANSWER_S, REFUSES, command_there, command_to, reach, reached
from broker.client.ask import BrokerDown, BrokerError, ask
from broker.client.quick import Fault
from broker.config.addresses import is_over_tls
from broker.config.agreement import DIGEST_LINE, agreed, differences, published
from broker.config.host_certificates import all_ends
from broker.config.sections import Config
from broker.peers.reach_question import DEADLINE_S
from broker.wire.limits import SOON_DAYS
from broker.wire.status import Status


def _no_broker(error: BrokerError) -> tuple[str, str, str]:
    """A host that has yet to be started is fit; one whose daemons should run and do not is not."""
    status = "systemctl status ha-broker ha-agent; journalctl -u ha-broker -u ha-agent"
    if not isinstance(error, BrokerDown):
        # The broker runs, and answers with an error or as another version does.
        return "fail", f"ha-broker: {error}", f"systemctl restart ha-broker; {status}"
    if error.fault is Fault.FORBIDDEN:
        return "warn", str(error), "sudo ha-agent doctor"
    if error.fault is Fault.NO_ANSWER:
        return "fail", str(error), status
    if not SYSTEMD.is_dir():
        return "warn", str(error), "start ha-broker and ha-agent"
    if systemd_keeps_them(only=False):
        text = (
            "ha-broker does not run, though the daemons are to run here: this host protects no VM"
        )
        return "fail", text, f"systemctl start ha-broker ha-agent; {status}"
    text = "the daemons are not started, and not at the next boot: this host protects no VM yet"
    return "warn", text, "systemctl enable --now ha-broker ha-agent"


def daemons(config: Config) -> Found:
    """Whether both daemons run here, and which problems they report."""
    try:
        status = ask(config.daemon.socket, "GET", "/v1/status", Status)
    except BrokerError as error:
        yield _no_broker(error)
        return
    own = status.hosts[status.host_id]
    if own.agent != "ok":
        yield (
            "fail",
            f"the agent here: {own.agent}",
            "systemctl start ha-agent; journalctl -u ha-agent",
        )
    if status.config_problem:
        yield "fail", status.config_problem, "ha-agent config check"
    if status.storage.problem:
        yield "fail", status.storage.problem, "ha-agent --status"
    for name, monitor in status.monitors.items():
        if monitor.verdict == "bad":
            yield "warn", f"monitor {name}: {monitor.problem}", "ha-agent --status"
    silent = [
        host.hostname
        for host in status.hosts.values()
        if host.witnesses is not None
        and host.liveness == "live"
        and host.witnesses.heartbeat != "answered"
    ]
    if silent:
        yield (
            "warn",
            f"no sign of life over the network from {', '.join(silent)}",
            f"api.listen on an address that the others reach; {OPEN}",
        )
    yield "ok", f"they run; score {own.score}, {own.state}", ""


def heartbeat_ports(config: Config, within_s: float = PORTS_S) -> Found:
    """Whether each other host's port for heartbeats answers this one, within `within_s`."""
    if not config.heartbeat_listen():
        yield (
            "warn",
            "the other hosts cannot ask this one whether it lives: it answers on loopback alone",
            "api.listen, or api.heartbeat-listen, on an address that the others reach",
        )
    for asked in ask_ports(config, min(PORTS_S, within_s)):
        match asked.port:
            case Port.ANSWERS:
                yield "ok", f"{asked.name} {asked.what}", ""
            case Port.NONE:
                yield "warn", f"{asked.name} {asked.what}", "there: upgrade, or api.listen"
            case Port.SILENT:
                yield "warn", f"{asked.name} {asked.what}", f"there: {OPEN}; ha-agent doctor"
            case _:
                assert_never(asked.port)


def agreement(config: Config) -> Found:
    """Whether every other host has the values that must be the same on all."""
    own, lines = agreed(config), published(config)
    alike = []
    for host, report in sorted(read_slots(config.storage.whiteboard).reports.items()):
        if host == config.host.id:
            continue
        name = report.hostname
        extra = report.extra if report.extra_trusted else {}
        found = differences(own, lines, extra)
        if found:
            text = f"{name}: {'; '.join(map(str, found))}"
            yield "fail", text, f"ha-agent config diff {host}; make them alike, then reload"
        elif DIGEST_LINE in extra:
            alike.append(name)
    if alike:
        yield "ok", f"configured alike: {', '.join(alike)}", ""


def libvirt_peers(config: Config, within_s: float = ANSWER_S) -> Found:
    """Whether a live migration can reach the other hosts' libvirt, and theirs this one. Both are
    asked at once, for `within_s` at most."""
    libvirt.registerErrorHandler(lambda context, error: None, None)
    if not config.libvirt.migration_uri:
        yield (
            "warn",
            "no live migration is possible: a host is drained by a stop and a start",
            'libvirt.migration-uri, such as "qemu+tls://{host}/system"',
        )
        return
    if not config.libvirt.migration_tls and not is_over_tls(config.libvirt.migration_uri):
        yield (
            "warn",
            "the VM's memory crosses the network in plain when it is migrated",
            "certificates for QEMU on all hosts, then libvirt.migration-tls = true",
        )
    xml = _vm(config)
    for kind in host_devices(xml):
        yield (
            "warn",
            f"the VM has a host device ({kind}), with which libvirt may not migrate it: a host "
            "is then drained by a stop and a start",
            "ha-agent migrate tries it",
        )
    there_s, back_s = min(DEADLINE_S, within_s), min(ANSWER_S, within_s)
    with ThreadPoolExecutor(1) as beside, _own_libvirt(config) as own:
        back = beside.submit(reached, config, config.host.id, back_s)
        look = None if own is None else lambda uri: ask_target(uri, own, xml).text
        for name, problem in reach(config, config.host.id, look, there_s):
            if problem:
                fix = "" if problem.startswith(REFUSES) else command_to(config, name)
                yield "fail", f"libvirt of {name}: {problem}", fix
            else:
                yield "ok", f"libvirt of {name} answers", ""
    for heard in back.result():
        text = f"{heard.name} {heard.what}"
        if heard.is_good:
            yield "ok", text, ""
        else:
            yield "fail" if heard.known else "warn", text, f"there: {command_there(config)}"


def certificates(config: Config) -> Found:
    """How long the certificates that this host shows are good."""
    now, mend = time.time(), "ha-agent certificates renew, or the site's new ones"
    for each in all_ends(config):
        days = each.days_left(now)
        if days is None:
            yield "fail", f"{each.path}: {each.problem}", mend
        elif days < 0:
            yield "fail", f"{each.path}: has ended {-days} days ago", mend
        else:
            yield (
                "warn" if days < SOON_DAYS else "ok",
                f"{each.path} ends in {days} days",
                (mend if days < SOON_DAYS else ""),
            )


@contextlib.contextmanager
def _own_libvirt(config: Config) -> Iterator[libvirt.virConnect | None]:
    """libvirt here; None where it does not answer, which another check reports."""
    try:
        connection = libvirt.open(config.libvirt.uri)
    except libvirt.libvirtError:
        yield None
        return
    try:
        yield connection
    finally:
        connection.close()


def _vm(config: Config) -> str:
    """The XML of the running VM, else its definition; empty where neither can be read."""
    with contextlib.suppress(libvirt.libvirtError), _own_libvirt(config) as own:
        if own is not None and (domain := own.lookupByName(config.vm.name)).isActive():
            return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE))
    try:
        return load_definition(config).xml
    except DefinitionError:
        return ""
