# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent whiteboard dump FILE [--json]`: the content of any whiteboard volume, even oVirt's.

Needs no daemon and no configuration, writes nothing, works on a copy of a volume too.

Exit codes: 0 the volume could be read, bad slots or not; 3 it could not.

JSON: {"cluster": {"maintenance": bool | null}, "hosts": {"ID": {...}}, "bad": {"ID": "cause"}},
maintenance null and "0" in bad where the cluster slot cannot be read; or, with exit code 3,
{"version": 1, "error": {"code": "...", "message": "..."}}.
"""

from __future__ import annotations

import sys

from agent.terminal import in_json
from broker.whiteboard.slot import SlotReport, Sweep, decode_sweep
from broker.whiteboard.volume import Volume, VolumeError, VolumeFault
from broker.wire.limits import HOST_ID_MAX

EXIT_OK = 0
EXIT_UNREADABLE = 3


def run(path: str, as_json: bool) -> int:
    """Print the volume at `path` to standard output; an error is one line on standard error."""
    try:
        sweep = _read(path)
    except VolumeError as err:
        _print(f"ha-agent: {err}\n", to_stderr=True)
        if as_json:
            in_json.show_error(err.fault, str(err))
        return EXIT_UNREADABLE
    if as_json:
        in_json.show(as_dict(sweep))
    else:
        _print(as_table(sweep))
    return EXIT_OK


def as_dict(sweep: Sweep) -> dict[str, object]:
    """The documented JSON shape."""
    bad = {str(host_id): fault.cause for host_id, fault in sorted(sweep.bad.items())}
    if sweep.cluster_fault is not None:
        bad = {"0": sweep.cluster_fault.cause, **bad}
    return {
        "cluster": {"maintenance": sweep.cluster.maintenance if sweep.cluster else None},
        "hosts": {str(i): _host(report) for i, report in sorted(sweep.reports.items())},
        "bad": bad,
    }


def as_table(sweep: Sweep) -> str:
    """For people: the cluster, a line per host, a line per bad slot."""
    if sweep.cluster is None:
        mode = "unknown (the cluster slot cannot be read)"
    else:
        mode = "on" if sweep.cluster.maintenance else "off"
    lines = [f"Global maintenance: {mode}", ""]
    if sweep.reports:
        rows: list[tuple[str, ...]] = [
            ("ID", "HOST", "SCORE", "ENGINE", "STATE", "MAINTENANCE", "STOPPED", "TIMESTAMP")
        ]
        rows += [_row(report) for _, report in sorted(sweep.reports.items())]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
    else:
        lines.append("No host has published anything.")
    faults = [fault for _, fault in sorted(sweep.bad.items())]
    if sweep.cluster_fault is not None:
        faults.insert(0, sweep.cluster_fault)
    if faults:
        lines += ["", "Slots that cannot be read:"]
        lines += [f"  {fault}" for fault in faults]
    return "\n".join(lines) + "\n"


def _read(path: str) -> Sweep:
    with Volume(path, read_only=True) as volume:
        slots = volume.read_slots(range(HOST_ID_MAX + 1))
        if not slots:
            raise VolumeError(
                VolumeFault.EMPTY, path, "is empty", "name a metadata volume, or create one first"
            )
    return decode_sweep(slots)


def _host(report: SlotReport) -> dict[str, object]:
    status = report.engine_status
    engine = {"vm": status.vm.value, "health": status.health.value, "detail": status.detail}
    if status.reason is not None:
        engine["reason"] = status.reason
    return {
        "host_id": report.host_id,
        "timestamp": report.timestamp,
        "score": report.score,
        "hostname": report.hostname,
        "engine_status": engine,
        "maintenance": report.maintenance,
        "stopped": report.stopped,
        "conf_on_shared_storage": report.conf_on_shared_storage,
        "local_conf_timestamp": report.local_conf_timestamp,
        "extra": dict(report.extra),
        "extra_trusted": report.extra_trusted,
    }


def _row(report: SlotReport) -> tuple[str, ...]:
    status = report.engine_status
    engine = f"{status.vm.value}, health {status.health.value}"
    if status.detail:
        engine += f" ({status.detail})"
    return (
        str(report.host_id),
        report.hostname or "-",
        str(report.score),
        engine,
        report.extra.get("state", "-"),
        "yes" if report.maintenance else "no",
        "yes" if report.stopped else "no",
        str(report.timestamp),
    )


def _print(text: str, *, to_stderr: bool = False) -> None:
    """Print in the terminal's encoding; characters that it lacks are escaped."""
    stream = sys.stderr if to_stderr else sys.stdout
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()
