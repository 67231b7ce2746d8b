# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent doctor`: checks whether this host is fit to run the VM and to take it over, and says
what to type where it is not.

It changes nothing. Each check stands for itself: one that cannot be made is reported and stops no
other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.commands import config_check
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
from agent.doctor.peers import agreement, daemons, heartbeat_ports, libvirt_peers
from agent.doctor.vm import libvirt_guests_found, vm_domain
from agent.terminal.columns import say
from agent.terminal.errors import CommandError
from broker.config.errors import ConfigError
from broker.config.load import load
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode

#: The verdicts as they are shown; only "fail" changes the exit code.
VERDICTS = ("ok", "warn", "fail")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `verdict`: one of VERDICTS. `fix`: what to type, empty: nothing."""

    name: str
    verdict: str
    text: str
    fix: str = ""


def run(path: str, as_json: bool) -> int:
    """Check and print; OK, or FAILED where a check failed."""
    findings = []
    for finding in check(path):
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
    for found in config_check.checks(path):
        verdict = "warn" if found.verdict == "warning" else found.verdict
        fix = "ha-agent config check" if verdict == "fail" else ""
        yield Finding(found.name, verdict, found.text, fix)
    try:
        config = load(path)
    except ConfigError:
        return
    checks: dict[str, Callable[[Config], Found]] = {
        "lock-driver": lock_driver,
        "accelerator": accelerator,
        "can-start": can_start,
        "vm-domain": vm_domain,
        "libvirt-guests": libvirt_guests_found,
        "user": groups,
        "sanlock": sanlock_state,
        "sanlock-name": sanlock_name,
        "watchdog": watchdog,
        "clock": clock,
        "storage": volumes,
        "daemons": daemons,
        "agreement": agreement,
        "heartbeat": heartbeat_ports,
        "libvirt": libvirt_peers,
        "fence-device": _fence_devices,
    }
    for name, look in checks.items():
        try:
            for verdict, text, fix in look(config):
                yield Finding(name, verdict, text, fix)
        except (CommandError, ConfigError, OSError) as error:
            yield Finding(name, "fail", str(error))


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
