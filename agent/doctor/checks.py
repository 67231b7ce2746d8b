# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent doctor`: checks whether this host is fit to run the VM and to take it over, and says
what to type where it is not.

It changes nothing. Each check stands for itself: one that cannot be made is reported and stops no
other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.commands import config_check
from agent.doctor.bounded import CheckHangs, bounded
from agent.doctor.host import (
    Found,
    accelerator,
    can_start,
    clock,
    groups,
    lock_driver,
    sanlock_name,
    sanlock_state,
    volumes,
    watchdog,
)
from agent.doctor.peers import agreement, certificates, daemons, heartbeat_ports, libvirt_peers
from agent.doctor.storage import storage
from agent.doctor.vm import libvirt_guests_found, registry_vms, vm_domain
from agent.terminal.columns import say
from agent.terminal.errors import CommandError
from broker.client.ask import ask
from broker.config.errors import ConfigError
from broker.config.load import load
from broker.config.sections import Config
from broker.daemon.errors import HaError
from broker.daemon.exit_codes import ExitCode
from broker.wire.status import Status

#: The longest that a check on this host and its storage may take, and one that asks other hosts.
PATIENCE_S, NETWORK_S = 6.0, 90.0
#: The start of a QEMU, and of two that try to open its image.
QEMU_S = 15.0
#: The longest time that a storage with the settings of docs/storage.md has a dead client's locks.
SILENT_S = 90.0
ON_STORAGE = frozenset(
    {
        "can-start",
        "vms",
        "sanlock-name",
        "storage",
        "agreement",
        "libvirt",
        "fence-device",
        "storage-fence",
    }
)
ON_NETWORK = frozenset({"heartbeat", "libvirt", "fence-device", "storage-fence", "agreement"})
_HANGS = "the storage and its mount (docs/storage.md); ps -eo pid,stat,wchan:30,cmd | grep ' D'"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `verdict`: "ok", "warn" or "fail", as it is shown; only "fail"
    changes the exit code. `fix`: the command that repairs it (empty: there is none)."""

    name: str
    verdict: str
    text: str
    fix: str = ""


def run(path: str, as_json: bool, storage_s: float | None = None) -> int:
    """Check and print; OK, or FAILED where a check failed. `storage_s`: qualify the storage alone,
    and measure each volume for so long."""
    findings = []
    for finding in check(path) if storage_s is None else check_storage(path, storage_s):
        findings.append(finding)
        if not as_json:
            say(f"{finding.verdict:<5} {finding.name:<14} {finding.text}", 21)
            if finding.fix:
                say(f"{'':<20} -> {finding.fix}", 24)
    failed = sum(finding.verdict == "fail" for finding in findings)
    warned = sum(finding.verdict == "warn" for finding in findings)
    if as_json:
        shown = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"version": 1, "fit": not failed, "checks": shown}, indent=2))
    else:
        print(f"{'NOT FIT' if failed else 'fit'}: {failed} failed, {warned} to look at")
    return ExitCode.FAILED if failed else ExitCode.OK


def check(path: str) -> Iterator[Finding]:
    """All checks, the quick ones first."""
    yield from _of_file(path)
    try:
        config = load(path)
    except ConfigError:
        return
    checks: dict[str, Callable[[Config], Found]] = {
        "lock-driver": lock_driver,
        "accelerator": accelerator,
        "can-start": can_start,
        "vms": registry_vms,
        "vm-domain": vm_domain,
        "libvirt-guests": libvirt_guests_found,
        "user": groups,
        "sanlock": sanlock_state,
        "sanlock-name": sanlock_name,
        "watchdog": watchdog,
        "clock": clock,
        "storage": volumes,
        "daemons": daemons,
        "certificates": certificates,
        "agreement": agreement,
        "heartbeat": heartbeat_ports,
        "libvirt": libvirt_peers,
        "fence-device": _fence_devices,
        "storage-fence": storage_fence_answers,
    }
    not_now = silent_client(config)
    for name, look in checks.items():
        if not_now and name in ON_STORAGE:
            yield Finding(name, "warn", f"not looked at: {not_now}", "ha-agent doctor, later")
            continue
        patience_s = NETWORK_S if name in ON_NETWORK else PATIENCE_S
        try:
            for verdict, text, fix in bounded(name, patience_s, functools.partial(look, config)):
                yield Finding(name, verdict, text, fix)
        except CheckHangs as error:
            not_now = str(error)
            yield Finding(name, "fail", not_now, _HANGS)
        except CommandError as error:
            yield Finding(name, "fail", str(error))


def _of_file(path: str) -> Iterator[Finding]:
    """The checks of the configuration file."""
    try:
        for found in bounded("configuration", PATIENCE_S, lambda: config_check.checks(path)):
            verdict = "warn" if found.verdict == "warning" else found.verdict
            fix = "ha-agent config check" if verdict == "fail" else ""
            yield Finding(found.name, verdict, found.text, fix)
    except CheckHangs as error:
        yield Finding("file", "fail", str(error), _HANGS)


def check_storage(path: str, seconds: float) -> Iterator[Finding]:
    """What `doctor --storage` finds, within `seconds` for each volume and
    for the other members, QEMU_S and PATIENCE_S."""
    config = load(path)
    name = "storage"
    if not_now := silent_client(config):
        yield Finding(name, "warn", f"not looked at: {not_now}", "the same again, later")
        return
    try:
        looks = bounded(name, 3 * seconds + QEMU_S + PATIENCE_S, lambda: storage(config, seconds))
        for verdict, text, fix in looks:
            yield Finding(name, verdict, text, fix)
    except CheckHangs as error:
        yield Finding(name, "fail", str(error), _HANGS)
    except CommandError as error:
        yield Finding(name, "fail", str(error), "ha-agent storage show")


def silent_client(config: Config) -> str:
    """Which host has just fallen silent, in words; "": none is known. While the storage has not
    missed its client, whoever opens a file there may stall all hosts."""
    try:
        status = ask(config.daemon.socket, "GET", "/v1/status", Status)
    except HaError:
        return ""
    for host in status.hosts.values():
        if host.liveness != "live" and host.age_s is not None and host.age_s < SILENT_S:
            return f"host {host.hostname} fell silent {host.age_s:.0f} s ago"
    return ""


def _fence_devices(config: Config) -> Found:
    """Log in to each device, read its power and identity, and check the privilege."""
    if not config.fence.device:
        return  # the checks of the configuration report it
    from agent.commands import fence_test
    from agent.fence.devices import fence_devices

    names, uuids, _ = fence_test.published(config)
    hosts = sorted({device.host for device in config.fence.device})
    for test in asyncio.run(fence_test.tests(fence_devices(config), hosts, uuids)):
        who = f"{test.host_id} {names.get(test.host_id, '')}".rstrip()
        text = f"{test.device} of host {who}: power {test.power.value}, {test.identity.value}"
        if test.ok:
            yield "ok", text, ""
        elif test.host_id not in uuids:
            yield "warn", f"{text}: that host has published nothing yet", "start ha-broker there"
        else:
            yield "fail", f"{text}: {test.detail}", f"ha-agent fence test {test.host_id}"


def storage_fence_answers(config: Config) -> Found:
    """Ask the storage fence about each other host, until it fails for one; it cuts nothing."""
    from agent.commands import fence_test
    from agent.fence.storage import storage_fence

    fence = storage_fence(config)
    if not fence.is_configured:
        return
    names, _, _ = fence_test.published(config)
    others = sorted(names.keys() - {config.host.id})
    if not others:
        yield "warn", "not asked: no other host's name is known", "start ha-broker on all hosts"
    for host in others:
        what = f"what the storage holds for host {host} {names[host]}"
        if problem := asyncio.run(fence.check(host, names[host])):
            yield "fail", f"{what}: {problem}", f"ha-agent fence test {host}"
            return
        yield "ok", f"{what} could be asked for; nothing is cut", ""
