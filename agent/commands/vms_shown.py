# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent vm list|show|history|export`: what the registry holds. They change nothing, and show
this host's copy where the volume cannot be read."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

from agent.registry.change import kept_of, status_of
from agent.registry.names import Names, hosts_of
from agent.registry.settings import as_builtins, in_words, shown
from agent.storage.registry import opened
from agent.terminal import in_json
from agent.terminal.columns import say, table
from agent.terminal.errors import CommandError
from agent.terminal.times import shown as shown_time
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.registry.admission import refused
from broker.registry.cache import Cached, merged
from broker.registry.record import RegistryError, VmRecord


class Shown:
    """The registry for a command that only shows it. `problem`: why this host's copy is shown
    instead of the volume; "": the volume is shown."""

    def __init__(self, config: Config) -> None:
        self.config, self.problem = config, ""
        kept = kept_of(config)
        self.definitions = dict(kept.definitions)
        self.known: Cached = kept
        opened(config)  # whether there is one at all
        try:
            with opened(config) as registry:
                self.known = merged(kept, registry.read())
                self._read_definitions(kept, registry)
        except CommandError as error:
            self.problem = str(error)
            self.damaged = dict(kept.damaged)
        self.names = Names(self.known.vms, config.vm.name, hosts_of(config, status_of(config)))

    def _read_definitions(self, kept: Cached, registry: Any) -> None:
        self.damaged = dict(self.known.damaged)
        self.definitions.clear()
        for number, record in self.known.vms.items():
            try:
                self.definitions[number] = registry.definition(record).decode()
            except (RegistryError, UnicodeDecodeError) as error:
                self.damaged.setdefault(number, str(error))
                mine = kept.records[number].definitions if number in kept.records else ()
                if number in kept.definitions and mine[:1] == record.definitions[:1]:
                    self.definitions[number] = kept.definitions[number]

    def warn(self) -> None:
        """Say on standard error that this is a copy, and that the volume may be an older one."""
        for text in filter(None, (self.problem, self.known.problem)):
            print(f"ha-agent: {text}; shown is this host's copy", file=sys.stderr)

    def trouble(self, record: VmRecord) -> str:
        """Why this host would not start the VM; "": it would."""
        why = self.damaged.get(record.number, "")
        xml = self.definitions.get(record.number)
        if not why and xml is not None:
            why = refused(xml, record, self.config)
        return why

    def as_builtins(self, record: VmRecord) -> dict[str, Any]:
        """The VM for --json."""
        return as_builtins(record, self.names) | {"problem": self.trouble(record)}


def list_(config: Config, as_json: bool) -> int:
    """All VMs, a line each."""
    found = Shown(config)
    found.warn()
    records = [record for _, record in sorted(found.known.vms.items())]
    if as_json:
        listed = {
            "generation": found.known.generation,
            "problem": found.problem or found.known.problem,
            "vms": [found.as_builtins(record) for record in records],
            "damaged": {str(n): why for n, why in sorted(found.damaged.items())},
        }
        in_json.show(listed)
        return ExitCode.OK
    if not records and not found.damaged:
        print("the registry holds no VM; to add one: ha-agent vm add FILE")
        return ExitCode.OK
    rows = [("NO", "VM", "WANT", "PRIO", "MIB", "RULES")]
    for record in records:
        settings = shown(record, found.names)
        rules = [
            f"{key}={settings[key]}"
            for key in ("after", "apart", "together", "only", "prefer")
            if settings[key]
        ]
        rules += [key for key in ("failback", "overcommit") if settings[key] == "yes"]
        rows.append(
            (
                str(record.number),
                record.name,
                record.want.value,
                str(record.priority),
                str(record.memory_mb),
                " ".join(rules),
            )
        )
    print("\n".join(table(rows)))
    troubles = {r.number: (r.name, why) for r in records if (why := found.trouble(r))}
    troubles |= {n: (str(n), w) for n, w in found.damaged.items() if n not in troubles}
    for _, (name, why) in sorted(troubles.items()):
        say(f"{name}: {why}", 2)
    return ExitCode.OK


def show(config: Config, name: str, xml: bool, as_json: bool) -> int:
    """One VM: its settings, or its definition."""
    found = Shown(config)
    found.warn()
    record = found.names.record(name)
    if xml and as_json:
        _print_xml(found, name)
        return ExitCode.OK
    if xml:
        print(_xml(found, record), end="")
        return ExitCode.OK
    if as_json:
        in_json.show({"vm": found.as_builtins(record)})
        return ExitCode.OK
    rows = [("number", str(record.number)), ("name", record.name), ("uuid", record.uuid)]
    rows += [("memory", f"{record.memory_mb} MiB"), ("generation", str(record.generation))]
    settings = shown(record, found.names)
    rows += [(key, in_words(settings, key)) for key in settings]
    if why := found.trouble(record):
        rows.append(("problem", why))
    print("\n".join(table(rows)))
    return ExitCode.OK


def history(config: Config, name: str, as_json: bool) -> int:
    """The definitions of a VM, the newest first."""
    found = Shown(config)
    found.warn()
    record = found.names.record(name)
    if as_json:
        kept = [
            {"back": back, "generation": one.generation, "wall_s": one.wall_s, "by": one.by}
            for back, one in enumerate(record.definitions)
        ]
        in_json.show({"name": record.name, "definitions": kept})
        return ExitCode.OK
    rows = [("N", "GENERATION", "WRITTEN", "ON")]
    rows += [
        (str(back), str(one.generation), _when(one.wall_s), one.by)
        for back, one in enumerate(record.definitions)
    ]
    print("\n".join(table(rows)))
    print(f"to go back: ha-agent vm history {record.name} --restore N")
    return ExitCode.OK


def export(config: Config, name: str | None, as_json: bool = False) -> int:
    """The definition of a VM, or all VMs with settings and definitions as JSON, for a backup."""
    found = Shown(config)
    found.warn()
    if name is not None and as_json:
        _print_xml(found, name)
        return ExitCode.OK
    if name is not None:
        print(_xml(found, found.names.record(name)), end="")
        return ExitCode.OK
    vms = [
        found.as_builtins(record) | {"xml": found.definitions.get(number, "")}
        for number, record in sorted(found.known.vms.items())
    ]
    in_json.show({"generation": found.known.generation, "vms": vms})
    return ExitCode.OK


def _print_xml(found: Shown, name: str) -> None:
    """A VM's definition in JSON."""
    record = found.names.record(name)
    about = {"number": record.number, "name": record.name}
    in_json.show({**about, "xml": _xml(found, record)})


def _when(wall_s: float) -> str:
    try:
        return shown_time(datetime.fromtimestamp(wall_s, UTC))
    except (OverflowError, ValueError):
        return f"{wall_s:.0f} s"


def _xml(found: Shown, record: VmRecord) -> str:
    xml = found.definitions.get(record.number)
    if xml is None:
        why = found.damaged.get(record.number, "its definition cannot be read")
        raise CommandError(ExitCode.STORAGE, f"{record.name}: {why}")
    return xml if xml.endswith("\n") else f"{xml}\n"
