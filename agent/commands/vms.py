# SPDX-License-Identifier: LGPL-2.1-or-later
"""The words of `ha-agent vm` that change the registry: add, define, set, remove, start, stop,
history --restore, sign. Each holds the registry's lease meanwhile, and may run on any
host; the hosts then act on the new content."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import libvirt
import msgspec

from agent.registry.change import Change, changing, mended_header, status_of
from agent.registry.definition import Text, not_in_schema, one_host_only, text_of, with_lease
from agent.registry.in_common import same_macs, written_by_both
from agent.registry.names import ENGINE
from agent.registry.not_started import wait_until_down
from agent.registry.rebuild import is_lost, not_down
from agent.registry.running import not_running_here
from agent.registry.settings import KEYS, as_builtins, in_words, pairs, shown, with_settings
from agent.status.vms_text import STARTS_NO_OTHER
from agent.storage.registry import shared_opened
from agent.terminal import in_json
from agent.terminal.columns import say
from agent.terminal.errors import CommandError
from broker.client.ask import BrokerError, ask
from broker.config.sections import Config
from broker.daemon.errors import why
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign import sentence
from broker.registry.record import DEFINITION_BYTES_MAX, NAME, RegistryError, VmRecord, unit_of
from broker.vm.domain_facts import Differs, parse
from broker.vm.domain_text import with_facts_of
from broker.vm.errors import BadDomain
from broker.wire.exchange import View
from broker.wire.vms import Room
from scoring.vm.seen import SPEAKS_SEVERAL
from scoring.vm_facts import ORDINARY_PAGES_KB, Want


def add(config: Config, arguments: argparse.Namespace, as_json: bool) -> int:
    """Put a VM into the registry."""
    xml = _read(arguments.file)
    text = text_of(xml, arguments.file, config, arguments.name or "")
    with changing(config, arguments.dry_run) as change:
        _check_name(text.name, change, config)
        _check_uuid(text, change, config)
        notes = [*text.notes, *not_running_here(config, text.name, text.uuid)]
        record = VmRecord(
            number=change.new_number(),
            name=text.name,
            uuid=text.uuid,
            generation=0,
            memory_mb=text.memory_mb,
            pages_kb=text.pages_kb,
        )
        record = with_settings(record, _given(arguments), change.names)
        change.check(record)
        made = with_lease(text, record, config, change.leases.align)
        warnings = [*_warnings(config, change, record, made), *held_still(config)]
        change.write_lease(record)
        record = change.put(record, made)
        done = f"{record.name} is VM {record.number}, wanted {record.want.value}"
        return _answer(change, record, done, [*notes, *warnings], arguments, as_json)


def define(config: Config, arguments: argparse.Namespace, as_json: bool) -> int:
    """Give a VM another definition."""
    with changing(config, arguments.dry_run) as change:
        record, is_new = _defined(config, change, arguments.vm)
        source = arguments.file or f"the running {record.name}"
        given = _read(arguments.file) if arguments.file else _running(config, change, record)
        is_engine = is_new and record.number == 1
        own = _uuid_of_file(config) if is_engine else record.uuid
        text = text_of(given, source, config, record.name, own)
        record = msgspec.structs.replace(
            record, uuid=text.uuid, memory_mb=text.memory_mb, pages_kb=text.pages_kb
        )
        made = with_lease(text, record, config, change.leases.align)
        warnings = _warnings(config, change, record, made)
        _mend_lease(config, change, record)
        record = change.put(record, made)
        done = f"{record.name} is defined anew; its next start takes it"
        if is_new:
            done = f"{record.name} is in the registry now"
        return _answer(change, record, done, [*text.notes, *warnings], arguments, as_json)


def set_(config: Config, arguments: argparse.Namespace, as_json: bool) -> int:
    """Change settings of a VM."""
    given = pairs(arguments.settings)
    with changing(config, arguments.dry_run) as change:
        record = change.names.record(arguments.vm)
        xml = None
        if DISKS in given:
            if given.pop(DISKS) != RECORDED:
                fits = f"{DISKS}={RECORDED}: it boots the disks of its definition"
                raise CommandError(ExitCode.USAGE, f"{DISKS} takes one value, {fits}")
            xml = change.definition(record)
        record = with_settings(record, given, change.names)
        if record.number == 1 and record.want is Want.DOWN:
            raise CommandError(ExitCode.REFUSED, _ENGINE_STAYS)
        if record.number == 1 and (configured := sorted(_CONFIGURED.keys() & given.keys())):
            where = ", ".join(_CONFIGURED[key] for key in configured)
            raise CommandError(
                ExitCode.REFUSED,
                f"{', '.join(configured)}: the engine has that from the configuration ({where})",
            )
        change.check(record)
        warnings = room(config, record) if _PLACING & given.keys() else []
        record = change.put(record, xml)
        now = shown(record, change.names)
        done = f"{record.name}: " + ", ".join(
            [f"{key} {in_words(now, key)}" for key in given] + [f"{DISKS} {RECORDED}"] * bool(xml)
        )
        return _answer(change, record, done, warnings, arguments, as_json)


#: The decision that a VM whose disks differ boots those of its definition: which is thereby
#: written anew, so that what was seen of an older one counts no more.
DISKS, RECORDED = "disks", "recorded"
_RULES = ("after", "apart", "together")
#: Settings on which it depends whether a VM has a place.
_PLACING = {"only", "overcommit", "want", "apart", "together"}
#: Settings that the engine takes from the configuration, as it did before there was a registry.
_CONFIGURED = {
    "health": "[health]",
    "expect": "health.expect",
    "starting": "timing.engine-starting",
    "bad-health": "timing.bad-health",
    "stop-grace": "timing.stop-grace",
    "migration-timeout": "libvirt.migration-timeout",
}
_ENGINE_STAYS = (
    "the engine is always wanted up; to stop it: ha-agent maintenance global, then ha-agent vm"
    " shutdown"
)


def want(config: Config, name: str, wanted: Want, arguments: Any, as_json: bool) -> int:
    """Want a VM up or down, from any host."""
    with changing(config, arguments.dry_run) as change:
        number = change.names.number(name)
        if number == 1:
            raise CommandError(ExitCode.REFUSED, _ENGINE_STAYS)
        record = change.names.record(name)
        warnings: list[str] = []
        if wanted is Want.UP:
            why = change.known.damaged.get(number)
            warnings = [*([why] if why else []), *room(config, record)]
        is_same = record.want is wanted
        warnings += [] if is_same else held_still(config)
        if not is_same:
            record = change.put(msgspec.structs.replace(record, want=wanted))
        words = {Want.UP: "the cluster starts it", Want.DOWN: "the cluster shuts it down"}
        done = f"{record.name} is wanted {wanted.value}: {words[wanted]}"
        if is_same:
            done = f"{record.name} is wanted {wanted.value} already"
        return _answer(change, record, done, warnings, arguments, as_json)


def remove(config: Config, arguments: argparse.Namespace, as_json: bool) -> int:
    """Take a VM out of the registry. Its disks are not touched."""
    with changing(config, arguments.dry_run) as change:
        record = change.names.record(arguments.vm)
        _refuse_held(change, record)
        for other in change.known.vms.values():
            rules = [r for r in _RULES if record.number in getattr(other, r)]
            if rules and other.number != record.number:
                raise CommandError(
                    ExitCode.REFUSED,
                    f"{other.name} has {rules[0]}={record.name}: ha-agent vm set {other.name}"
                    f" {rules[0]}= first",
                )
        if record.number != 1:
            wait_until_down(config, record)
            # A start that was under way before has the lease by now.
            _refuse_held(change, record)
        record = change.put(msgspec.structs.replace(record, removed=True))
        done = f"{record.name} is no longer protected; its disks are as they were"
        if record.number == 1:
            done = f"{record.name} is taken from vm.definition of each host again"
        return _answer(change, record, done, [], arguments, as_json)


def _refuse_held(change: Change, record: VmRecord) -> None:
    """Refuse while the VM's lease is held."""
    holder = None if record.number == 1 else change.leases.holder(record.unit)
    if holder is not None:
        owner = change.names.host_name(holder)
        raise CommandError(
            ExitCode.REFUSED,
            f"{record.name} runs on {owner}, or did when that host fell silent: ha-agent vm"
            f" stop {record.name} first; of a silent host its death must be proven",
        )


def restore(config: Config, arguments: argparse.Namespace, as_json: bool) -> int:
    """Make an earlier definition of a VM its present one."""
    back = arguments.restore
    with changing(config, arguments.dry_run) as change:
        record = change.names.record(arguments.vm)
        if not 0 <= back < len(record.definitions):
            raise CommandError(
                ExitCode.USAGE,
                f"--restore {back}: {record.name} has definitions 0 to"
                f" {len(record.definitions) - 1}: ha-agent vm history {record.name}",
            )
        source = f"definition {back} of {record.name}"
        text = text_of(change.definition(record, back), source, config, record.name, record.uuid)
        record = msgspec.structs.replace(record, memory_mb=text.memory_mb, pages_kb=text.pages_kb)
        made = with_lease(text, record, config, change.leases.align)
        warnings = _warnings(config, change, record, made)
        record = change.put(record, made)
        done = f"{record.name} has {source} again; its next start takes it"
        return _answer(change, record, done, warnings, arguments, as_json)


def sign(config: Config, arguments: argparse.Namespace, as_json: bool) -> int:
    """Sign the registry with the present cluster key, after a change of the key; a header that was
    lost is written anew first."""
    mended = False if arguments.dry_run else mended_header(config)
    with changing(config, arguments.dry_run) as change:
        signed = change.sign_anew()
        if not arguments.dry_run:
            with shared_opened(config, read_only=False) as shared:
                signed += shared.sign_anew()
    text = f"{signed} blocks of the registry are signed with the present key"
    if mended:
        text = f"the header of the registry, which could not be read, is written anew; {text}"
    if as_json:
        in_json.show({"signed": signed, "done": text}, indent=None)
    else:
        print(text)
    return ExitCode.OK


# --- shared by several commands -------------------------------------------------------------


def _given(arguments: argparse.Namespace) -> dict[str, str]:
    """The settings that were given as options."""
    found = {key: getattr(arguments, key.replace("-", "_")) for key in KEYS}
    flags = {key: "yes" for key, value in found.items() if value is True}
    return {key: value for key, value in found.items() if isinstance(value, str)} | flags


def _check_name(name: str, change: Change, config: Config) -> None:
    if not re.fullmatch(NAME, name) or name.isdecimal():
        raise CommandError(
            ExitCode.USAGE,
            f"{name!r} is no name for a VM: letters, digits, dots, hyphens and underscores, up to"
            " 63, not digits alone; give another one by --name",
        )
    taken = change.contents.named(name) or next(
        (record for record in change.known.vms.values() if record.name == name), None
    )
    if taken is not None or name in (ENGINE, config.vm.name):
        whose = "the engine" if taken is None else f"VM {taken.number}"
        raise CommandError(
            ExitCode.REFUSED, f"the name {name} is taken by {whose}; give another one by --name"
        )


def _check_uuid(text: Text, change: Change, config: Config) -> None:
    """CommandError where another VM has the UUID; libvirt knows a domain by it."""
    taken = next((r.name for r in change.known.vms.values() if r.uuid == text.uuid), None)
    if taken is None and text.uuid == _uuid_of_file(config):
        taken = ENGINE
    if taken is not None:
        raise CommandError(
            ExitCode.REFUSED,
            f"{text.source}: {taken} has this UUID already; to change it: ha-agent vm define"
            f" {taken} {text.source}; for another VM take its <uuid> out",
        )


def _defined(config: Config, change: Change, name: str) -> tuple[VmRecord, bool]:
    """The record that gets a definition, and whether it is a new one."""
    if name.isdecimal() and int(name) in change.contents.damaged | change.contents.refused:
        number = int(name)
        if number not in change.known.vms:
            return _rescued(change, number), True
    number = change.names.number(name)
    if number == 1 and 1 not in change.known.vms:
        empty = VmRecord(
            number=1, name=config.vm.name, uuid=f"{0:08}-0000-0000-0000-{0:012}",
            generation=0, memory_mb=1,
        )  # fmt: skip
        return empty, True
    return change.names.record(name), False


def _uuid_of_file(config: Config) -> str:
    """The engine's UUID from this host's definition file; "": the file has none, or cannot be
    read."""
    try:
        root = parse(Path(config.vm.definition).read_text())
        return str(uuid.UUID((root.findtext("uuid") or "").strip()))
    except (OSError, ValueError, BadDomain):
        return ""


def _rescued(change: Change, number: int) -> VmRecord:
    """A new record for one that cannot be read any more; the UUID is taken from the VM's lease."""
    lease = change.leases.at(unit_of(number))
    digits = "" if lease is None else lease.resource.removeprefix("vm-")
    if len(digits) != 32:
        raise CommandError(
            ExitCode.STORAGE, f"VM {number}: neither its record nor its lease can be read"
        )
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return VmRecord(
        number=number, name=f"vm{number}", uuid="-".join(parts), generation=0, memory_mb=1
    )


def _mend_lease(config: Config, change: Change, record: VmRecord) -> None:
    """Write the VM's lease where there is none, as after a lease volume was lost."""
    if not is_lost(config.storage, change.leases, record):
        return
    if change.leases.holder(record.unit) is not None:
        return
    if why_not := not_down(status_of(config), record):
        raise CommandError(ExitCode.REFUSED, why_not)
    change.write_lease(record)


def _read(source: str) -> str:
    try:
        if source == "-":
            return sys.stdin.read(DEFINITION_BYTES_MAX + 1)
        with Path(source).open(encoding="utf-8") as file:
            return file.read(DEFINITION_BYTES_MAX + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(ExitCode.FILE, f"{source}: cannot be read: {why(error)}") from None


def _running(config: Config, change: Change, record: VmRecord) -> str:
    """The present definition with what the VM really runs with."""
    libvirt.registerErrorHandler(lambda context, error: None, None)
    try:
        connection = libvirt.open(config.libvirt.uri)
        try:
            domain = connection.lookupByUUIDString(record.uuid)
            if not domain.isActive():
                raise CommandError(ExitCode.REFUSED, f"{record.name} does not run on this host")
            found = str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE))
        finally:
            connection.close()
    except libvirt.libvirtError as error:
        raise CommandError(
            ExitCode.FAILED,
            f"--from-running: {record.name} is not to be had from libvirt here"
            f" ({config.libvirt.uri}): {sentence(error)}; type it on its host",
        ) from None
    try:
        codes = set(Differs) - {Differs.BLOCK_JOB}
        return with_facts_of(change.definition(record), found, codes)
    except BadDomain as error:
        raise CommandError(ExitCode.DEFINITION, f"{record.name}: {error}") from None


def _warnings(config: Config, change: Change, record: VmRecord, xml: str) -> list[str]:
    """Warnings about a definition; CommandError where it is refused."""
    others = _other_definitions(config, change, record)
    if both := written_by_both(xml, others):
        raise CommandError(
            ExitCode.REFUSED,
            f"{record.name}: {both[0]}; give it one of its own (where the guests share it on"
            " purpose: <shareable/> in both definitions)",
        )
    macs = same_macs(xml, others)
    return [*not_in_schema(xml), *macs, *one_host_only(xml, config), *room(config, record)]


def _other_definitions(config: Config, change: Change, record: VmRecord) -> list[tuple[str, str]]:
    """The name and the definition of each other VM whose definition can be read."""
    found = []
    for number, other in change.known.vms.items():
        if number != record.number:
            with contextlib.suppress(RegistryError, UnicodeDecodeError):
                found.append((other.name, change.definition(other)))
    if record.number != 1 and 1 not in change.known.vms:
        with contextlib.suppress(OSError, ValueError):
            found.append((config.vm.name, Path(config.vm.definition).read_text()))
    return found


def held_still(config: Config) -> list[str]:
    """Why nothing of what is wanted happens now; empty: it does, as far as is known."""
    status = status_of(config)
    if status is None or not status.global_maintenance:
        return []
    return [
        "global maintenance is set: nothing starts or stops until it ends (ha-agent maintenance"
        " none)"
    ]


def room(config: Config, record: VmRecord) -> list[str]:
    """Warnings: a VM would have no place now, or after a host's death, by the plan that the hosts
    act on; CommandError where that is refused."""
    try:
        view = ask(config.daemon.socket, "GET", "/v1/view", View)
    except BrokerError:
        return ["whether a host has the memory is not known: ha-broker does not answer here"]
    deaf = [
        view.hostnames.get(peer.host_id) or f"host {peer.host_id}"
        for peer in view.peers
        # A host publishes nothing of VMs before it has read a registry with one.
        if view.registry and peer.speaks < SPEAKS_SEVERAL and not peer.stopped
    ]
    found = [f"{', '.join(deaf)}: {STARTS_NO_OTHER}"] if deaf else []
    if record.want is Want.DOWN:
        return found
    try:
        answer = ask(config.daemon.socket, "POST", "/v1/room", Room, record.spec())
    except BrokerError:
        answer = Room(known=False)
    if answer.known:
        texts = [each.text for each in (*answer.short, *answer.n_plus_1)]
    else:
        texts = _memory_now(config, record, view)
    if texts and config.vm.admission == "refuse":
        text = "; ".join(texts)
        raise CommandError(ExitCode.REFUSED, f"{text}; nothing was done (vm.admission)")
    return [*found, *texts]


def _memory_now(config: Config, record: VmRecord, view: View) -> list[str]:
    """Where the broker has no plan, since no registry with a VM was read yet: a text where no host
    has that much memory free."""
    if record.pages_kb != ORDINARY_PAGES_KB or record.overcommit:
        return []
    free = {view.local.host_id: view.local.mem_free_mb}
    free |= {peer.host_id: peer.mem_free_mb for peer in view.peers}
    may = {h: mb for h, mb in free.items() if not record.only or h in record.only}
    if not may or any(mb is None or mb >= record.memory_mb for mb in may.values()):
        return []
    best = max(may, key=lambda host: may[host] or 0)
    name = view.hostnames.get(best) or (
        config.host_name if best == config.host.id else f"host {best}"
    )
    return [
        f"no host has {record.memory_mb} MiB free for {record.name}: {name} has the most,"
        f" {may[best]:.0f} MiB"
    ]


def _answer(
    change: Change,
    record: VmRecord,
    done: str,
    warnings: Sequence[str],
    arguments: Any,
    as_json: bool,
) -> int:
    if as_json:
        shown = {
            "dry_run": bool(arguments.dry_run),
            "vm": as_builtins(record, change.names),
            "warnings": list(warnings),
            "done": done,
        }
        in_json.show(shown)
        return ExitCode.OK
    for each in warnings:
        say(f"{'note':<8} {each}", 9)
    say(f"{'would' if arguments.dry_run else 'done':<8} {done}", 9)
    return ExitCode.OK
