# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent config show` and `config diff HOST`: the values in force here, and another host's."""

from __future__ import annotations

import json

import msgspec

from agent.terminal import in_json
from agent.terminal.errors import CommandError
from broker.config.agreement import DIGEST_LINE, agreed, differences, published
from broker.config.load import load, read_file, shared_for
from broker.config.sections import Config
from broker.config.shared import origins, parsed
from broker.daemon.exit_codes import ExitCode
from broker.whiteboard.slot import SlotReport, decode_sweep
from broker.whiteboard.volume import Volume, VolumeError
from broker.wire.limits import HOST_ID_MAX


def show(path: str, as_json: bool) -> int:
    """Print every key with its value, the default where none is set; the file holds no secret."""
    config = load(path)
    values = msgspec.to_builtins(config)
    timing = {
        name.replace("_", "-"): value
        for name, value in msgspec.to_builtins(config.timing_rules()).items()
    }
    values["timing"] = timing
    if as_json:
        shown = {"file": path, "config": values, "from": origins_of(path)}
        in_json.show(shown)
    else:
        print("\n".join(_tables("", values)))
        if shared := {k: v for k, v in origins_of(path).items() if "cluster" in v}:
            print("\n# shared by all hosts (ha-agent config set KEY VALUE changes them):")
            print("\n".join(f"#   {key}: {origin}" for key, origin in shared.items()))
    return ExitCode.OK


def origins_of(path: str) -> dict[str, str]:
    """Each key that is set, and where: "host" or "cluster"."""
    own = read_file(path)
    copy = shared_for(path, own)
    return origins(parsed(copy.text) if copy else {}, own)


def _tables(name: str, table: dict[str, object]) -> list[str]:
    """A table as TOML: its keys, then its tables. A key without a value is a comment."""
    lines = [f"[{name}]"] if name else []
    deeper: list[str] = []
    for key, value in table.items():
        full = f"{name}.{key}" if name else key
        if isinstance(value, dict) and key != "options":
            deeper += ["", *_tables(full, value)]
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            for item in value:
                deeper += ["", f"[[{full}]]", *_tables("", item)]
        elif value is None:
            lines.append(f"#{key} =")
        elif isinstance(value, dict):
            inside = ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items())
            lines.append(f"{key} = {{ {inside} }}" if inside else f"{key} = {{}}")
        else:
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    return lines + (deeper if lines or name else deeper[1:])


def diff(path: str, host: str, as_json: bool) -> int:
    """Print the values in which another host differs; OK, or FAILED where one does."""
    config = load(path)
    report = _report(config, host)
    lines = report.extra if report.extra_trusted else {}
    found = differences(agreed(config), published(config), lines)
    if DIGEST_LINE not in lines:
        raise CommandError(
            ExitCode.FAILED,
            f"host {report.host_id} ({report.hostname}) publishes no configuration:"
            " an older version, or its broker has never run",
        )
    if as_json:
        shown = [{"key": d.key, "here": d.ours, "there": d.theirs} for d in found]
        in_json.show({"host": report.host_id, "differences": shown})
    elif not found:
        print(f"{report.hostname} is configured as this host where it must be")
    else:
        print("\n".join(str(difference) for difference in found))
    return ExitCode.FAILED if found else ExitCode.OK


def _report(config: Config, host: str) -> SlotReport:
    """The slot of a host by its id or name, read from the whiteboard directly."""
    try:
        with Volume(config.storage.whiteboard, read_only=True) as volume:
            reports = decode_sweep(volume.read_slots(range(HOST_ID_MAX + 1))).reports
    except VolumeError as error:
        raise CommandError(ExitCode.STORAGE, str(error)) from None
    found = [r for i, r in reports.items() if host in (str(i), r.hostname)]
    if len(found) != 1:
        known = ", ".join(f"{i} {r.hostname}" for i, r in sorted(reports.items()))
        raise CommandError(ExitCode.USAGE, f"no host {host!r}, or several: {known}")
    return found[0]
