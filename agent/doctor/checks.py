# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent doctor`: checks whether this host is fit to run the VM and to take it over, and says
what to type where it is not.

Rules of this file:

1. It changes nothing.
2. Each check stands for itself: one that cannot be made is reported and stops no other.
3. It ends within 10 s, and says on what it waited. The seconds count from the start of its process,
   as the kernel has it (agent/terminal/begun.py): on a busy machine Python alone takes some.
4. While a client of the storage has just fallen silent, or the storage hangs by the broker's own
   word, nothing is opened there.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Generator, Iterator
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
from agent.doctor.peers import agreement, certificates, daemons, heartbeat_ports, libvirt_peers
from agent.doctor.storage import storage
from agent.doctor.vm import libvirt_guests_found, registry_vms, vm_domain
from agent.storage.bounded import Check, CheckHangs
from agent.storage.silent import left_alone
from agent.terminal import in_json
from agent.terminal.columns import say
from agent.terminal.errors import CommandError
from broker.config.errors import ConfigError
from broker.config.load import load
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode

#: The longest that a check on this host and its storage may take, that all of them may take, and
#: that the command may take, those that ask others included.
PATIENCE_S, LOCAL_S, ALL_S = 6.0, 6.0, 9.0
#: What is left of it to hand the findings on.
_REPORT_S = 0.5
#: The start of a QEMU, and of two that try to open its image.
QEMU_S = 15.0
ON_STORAGE = frozenset(
    {
        "can-start",
        "vms",
        "sanlock-name",
        "storage",
        "agreement",
        "heartbeat",
        "libvirt",
        "fence-device",
        "storage-fence",
    }
)
_HANGS = "the storage and its mount (docs/storage.md); ps -eo pid,stat,wchan:30,cmd | grep ' D'"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `verdict`: "ok", "warn" or "fail", as it is shown; only "fail"
    changes the exit code. `fix`: the command that repairs it (empty: there is none)."""

    name: str
    verdict: str
    text: str
    fix: str = ""


def run(path: str, as_json: bool, began_s: float, storage_s: float | None = None) -> int:
    """Check and print; OK, or FAILED where a check failed. `began_s`: when the command began
    (monotonic). `storage_s`: qualify the storage alone, and measure each volume for so long."""
    findings = []
    made = check(path, began_s) if storage_s is None else check_storage(path, storage_s, began_s)
    for finding in made:
        findings.append(finding)
        if not as_json:
            say(f"{finding.verdict:<5} {finding.name:<14} {finding.text}", 21)
            if finding.fix:
                say(f"{'':<20} -> {finding.fix}", 24)
    failed = sum(finding.verdict == "fail" for finding in findings)
    warned = sum(finding.verdict == "warn" for finding in findings)
    if as_json:
        shown = [dataclasses.asdict(finding) for finding in findings]
        in_json.show({"fit": not failed, "checks": shown})
    else:
        if failed and os.geteuid() != 0:
            say("this user may not read all: what failed may be well; sudo ha-agent doctor", 2)
        print(f"{'NOT FIT' if failed else 'fit'}: {failed} failed, {warned} to look at")
    return ExitCode.FAILED if failed else ExitCode.OK


def check(path: str, began_s: float) -> Iterator[Finding]:
    """All checks, the quick ones first; over ALL_S after `began_s` (monotonic)."""
    ends_s, here_ends_s = began_s + ALL_S, began_s + LOCAL_S
    try:
        config = load(path)
    except ConfigError:
        yield from _of_file(path, "", here_ends_s)
        return
    not_now = left_alone(config).why
    not_now = (yield from _of_file(path, not_now, here_ends_s)) or not_now
    here: dict[str, Callable[[Config], Found]] = {
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
    }
    for name, look in here.items():
        why_not = not_now if name in ON_STORAGE else ""
        patience_s = min(PATIENCE_S, here_ends_s - time.monotonic())
        if patience_s <= 0:
            why_not = why_not or f"the command began {LOCAL_S:.0f} s ago"
        if why_not:
            yield _not_looked_at(name, why_not)
            continue
        until_s = time.monotonic() + patience_s
        begun = Check(name, functools.partial(look, config))
        not_now = (yield from _ended(name, begun, until_s)) or not_now
    there: dict[str, Callable[[Config, float], Found]] = {
        "heartbeat": heartbeat_ports,
        "libvirt": libvirt_peers,
        "fence-device": fence_devices_answer,
        "storage-fence": storage_fence_answers,
    }
    left_s = ends_s - time.monotonic()
    # Others are asked at once: each may be silent to the end.
    asked = {
        name: Check(name, functools.partial(look, config, max(_REPORT_S, left_s - _REPORT_S)))
        for name, look in there.items()
        if not (not_now and name in ON_STORAGE)
    }
    for name in there:
        if name in asked:
            yield from _ended(name, asked[name], ends_s)
        else:
            yield _not_looked_at(name, not_now)


def _ended(
    name: str, begun: Check[tuple[str, str, str]], until_s: float
) -> Generator[Finding, None, str]:
    """What a check finds, and returns why no other may touch the
    storage, "": they may."""
    try:
        for verdict, text, fix in begun.found(until_s):
            yield Finding(name, verdict, text, fix)
    except CheckHangs as error:
        yield _silent(name, error)
        return str(error) if error.in_file else ""
    except CommandError as error:
        yield Finding(name, "fail", str(error))
    return ""


def _silent(name: str, error: CheckHangs) -> Finding:
    """A check that gave no answer; on a machine too busy to make it nothing is known by that."""
    if error.cut_short:
        return _not_looked_at(name, f"this machine is busy, and {error}")
    return Finding(name, "fail", str(error), _HANGS)


def _not_looked_at(name: str, why: str) -> Finding:
    return Finding(name, "warn", f"not looked at: {why}", "ha-agent doctor, later")


def _of_file(path: str, not_now: str, until_s: float) -> Generator[Finding, None, str]:
    """The checks of the configuration file; returns why no other may touch the storage, "": they
    may."""
    if time.monotonic() >= until_s:
        yield _not_looked_at("file", f"the command began {LOCAL_S:.0f} s ago")
        return not_now
    try:
        begun = Check("configuration", lambda: config_check.checks(path, not_now=not_now))
        for found in begun.found(until_s):
            verdict = "warn" if found.verdict == "warning" else found.verdict
            # A fault of the file itself is in the text already.
            is_more = verdict == "fail" and found.name != "file"
            fix = "ha-agent config check" if is_more else ""
            yield Finding(found.name, verdict, found.text, fix)
    except CheckHangs as error:
        yield _silent("file", error)
        return str(error) if error.in_file else ""
    return ""


def check_storage(path: str, seconds: float, began_s: float) -> Iterator[Finding]:
    """What `doctor --storage` finds, within `seconds` for each volume and for the other members,
    QEMU_S and PATIENCE_S; a storage that hangs from the beginning has ALL_S after `began_s`."""
    config = load(path)
    name = "storage"
    if not_now := left_alone(config):
        if not_now.hangs:
            yield Finding(name, "fail", f"it hangs, says the broker here: {not_now.why}", _HANGS)
        else:
            # Who asks whether a storage is fit must not read "fit" of one that nobody looked at.
            yield Finding(name, "fail", f"not looked at: {not_now.why}", "the same again, later")
        return
    try:
        until_s = time.monotonic() + 3 * seconds + QEMU_S + PATIENCE_S
        begun = Check(name, lambda: storage(config, seconds))
        for verdict, text, fix in begun.found(until_s, began_s + ALL_S):
            yield Finding(name, verdict, text, fix)
    except CheckHangs as error:
        yield Finding(name, "fail", str(error), _HANGS)
    except CommandError as error:
        yield Finding(name, "fail", str(error), "ha-agent storage show")


def fence_devices_answer(config: Config, within_s: float) -> Found:
    """Log in to each device, read its power and identity, and check the privilege; all hosts' at
    once, for `within_s` at most."""
    if not config.fence.device:
        return  # the checks of the configuration report it
    from agent.commands import fence_test
    from agent.fence.devices import fence_devices

    names, uuids, _ = fence_test.published(config)
    hosts = sorted({device.host for device in config.fence.device})
    levels = fence_devices(config)
    found, late = asyncio.run(fence_test.tests_within(levels, hosts, uuids, within_s))
    for host in late:
        text = f"the devices of host {host} have not answered for {within_s:.0f} s"
        yield "fail", text, f"ha-agent fence test {host}"
    for test in found:
        # The device says already of which host it is, by its id.
        name = f" ({names[test.host_id]})" if names.get(test.host_id) else ""
        text = f"{test.device}{name}: power {test.power.value}, {test.identity.value}"
        if test.ok:
            yield "ok", text, ""
        elif test.host_id not in uuids:
            yield "warn", f"{text}: that host has published nothing yet", "start ha-broker there"
        else:
            yield "fail", f"{text}: {test.detail}", f"ha-agent fence test {test.host_id}"


def storage_fence_answers(config: Config, within_s: float) -> Found:
    """Ask the storage fence about each other host, until it fails for one; it cuts nothing. Each
    question for `within_s` at most."""
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
        if problem := asyncio.run(fence.check(host, names[host], within_s)):
            yield "fail", f"{what}: {problem}", f"ha-agent fence test {host}"
            return
        yield "ok", f"{what} could be asked for; nothing is cut", ""
