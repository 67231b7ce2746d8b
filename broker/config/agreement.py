# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the hosts of a cluster must be configured alike, published and compared. Pure.

Each host publishes two lines in its slot:

    config-digest=8 hex digits      of all values that must agree, defaults included
    config={"KEY": VALUE, ...}      those that are no defaults, as JSON; the last ones are left
                                    out where the line would be too long

The digest tells that something differs, even of a version with other defaults; the values tell
what. Fence devices are published as a digest of theirs: nobody needs their addresses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import msgspec

from broker.config.sections import Config, ScoreSection, StorageSection
from scoring.timing import Timing

Value = bool | int | float | str
DIGEST_LINE, VALUES_LINE = "config-digest", "config"
#: An extra line has 1024 bytes (broker/whiteboard/slot.py); these are the value's.
VALUES_BYTES_MAX = 900
#: What each host may have as its own power supply needs it.
_OWN_TIMES = frozenset({"host_shutdown_move", "host_shutdown_grace"})
#: So many differences of one host are told.
SHOWN_MAX = 20
_SHOWN_CHARS = 80
#: The volumes' ids: the volumes themselves are held against them, and each signed heartbeat. What
#: becomes of unsigned slots changes host by host, in an upgrade. Where a host has sanlock's file is
#: its own business.
_COMPARED_ELSEWHERE = frozenset({"whiteboard_id", "leases_id", "unsigned", "sanlock_conf"})
#: Values that the code has no default for, or whose default is no value.
_ALWAYS = frozenset({"storage.whiteboard", "storage.leases", "fence.device"})


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that another host has otherwise. `theirs`: as it published it; empty: not known."""

    key: str
    ours: str
    theirs: str

    def __str__(self) -> str:
        if not self.key:
            return "differs in something that its slot has no room for"
        return f"{self.key} is {self.theirs} there, {self.ours} here"


def _times(timing: Timing) -> dict[str, Value]:
    return {
        f"timing.{_key(name)}": float(value)
        for name, value in asdict(timing).items()
        if name not in _OWN_TIMES
    }


def agreed(config: Config) -> dict[str, Value]:
    """The values that must be the same on every host, by the file's own keys."""
    values: dict[str, Value] = {"cluster.name": config.cluster.name, "vm.name": config.vm.name}
    values["vm.on-isolation"] = config.vm.on_isolation
    for name, value in msgspec.structs.asdict(config.storage).items():
        if name not in _COMPARED_ELSEWHERE:
            values[f"storage.{_key(name)}"] = value
    for name, value in msgspec.structs.asdict(config.score).items():
        values[f"score.{_key(name)}"] = value
    values |= _times(config.timing_rules())
    for name in ("power_off", "power_on", "per_hour"):
        values[f"fence.{_key(name)}"] = getattr(config.fence, name)
    devices = sorted(map(msgspec.json.encode, config.fence.device))
    values["fence.device"] = _digest(b"\n".join(devices)) if devices else "none"
    return values


def defaults() -> dict[str, Value]:
    """The values of a configuration that sets none, of those keys that have one."""
    storage = msgspec.structs.asdict(StorageSection(whiteboard="/", leases="/"))
    values: dict[str, Value] = {"cluster.name": "ha", "vm.name": "HostedEngine"}
    values |= {
        f"storage.{_key(name)}": value
        for name, value in storage.items()
        if name not in _COMPARED_ELSEWHERE
    }
    values["vm.on-isolation"] = "move"
    score = msgspec.structs.asdict(ScoreSection())
    values |= {f"score.{_key(name)}": value for name, value in score.items()}
    values |= _times(Timing())
    values |= {"fence.power-off": True, "fence.power-on": True, "fence.per-hour": 3}
    return {key: value for key, value in values.items() if key not in _ALWAYS}


def published(config: Config) -> dict[str, str]:
    """The lines of this host's slot."""
    values, usual = agreed(config), defaults()
    whole = json.dumps(values, sort_keys=True, ensure_ascii=True)
    told = {key: value for key, value in values.items() if usual.get(key) != value}
    while len(text := json.dumps(told, separators=(",", ":"))) > VALUES_BYTES_MAX:
        told.popitem()
    return {DIGEST_LINE: _digest(whole.encode()), VALUES_LINE: text}


def base_score_of(lines: Mapping[str, str], usual: int) -> int:
    """What a host that published `lines` scores at the most, by its own word; `usual` where it says
    nothing of it."""
    try:
        told = json.loads(lines.get(VALUES_LINE, "") or "{}")
    except (ValueError, RecursionError):
        return usual
    value = told.get("score.base-score") if isinstance(told, dict) else None
    return value if type(value) is int else usual


def differences(
    own: Mapping[str, Value], own_lines: Mapping[str, str], lines: Mapping[str, str]
) -> tuple[Difference, ...]:
    """What a host that published `lines` has otherwise; none where it published nothing of the
    kind. `own`, `own_lines`: what `agreed` and `published` say here."""
    if lines.get(DIGEST_LINE, "") in ("", own_lines[DIGEST_LINE]):
        return ()
    try:
        told = json.loads(lines.get(VALUES_LINE, ""))
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        return (Difference("", "", ""),)
    theirs = {**defaults(), **{k: v for k, v in told.items() if isinstance(v, Value)}}
    found = [
        Difference(key, _shown(value), _shown(theirs[key]))
        for key, value in own.items()
        if key in theirs and theirs[key] != value
    ]
    return tuple(found[:SHOWN_MAX]) or (Difference("", "", ""),)


def _key(name: str) -> str:
    return name.replace("_", "-")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
