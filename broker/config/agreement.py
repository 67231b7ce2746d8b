# SPDX-License-Identifier: LGPL-2.1-or-later
"""The values that all hosts of a cluster must have alike: published, and compared. Pure.

Each host publishes three lines in its slot:

    config-digest=8 hex digits      of all values that must agree, defaults included
    config-keys=8 hex digits        of the keys whose values they are: those of its version
    config={"KEY": VALUE, ...}      those that are no defaults, as JSON; the last ones are left
                                    out where the line would be too long

The digest shows that something differs; the values show what differs. A version with other keys has
another digest of the same values, so only the values count between two versions: nobody could make
those hosts alike but by the upgrade that is under way. Fence devices are published as a digest: no
other host needs their addresses.
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
DIGEST_LINE, KEYS_LINE, VALUES_LINE = "config-digest", "config-keys", "config"
#: An extra line has 1024 bytes (broker/whiteboard/slot.py); the value may take this many of them.
VALUES_BYTES_MAX = 900
#: Durations that may differ from host to host, since they depend on its own power supply.
_OWN_TIMES = frozenset({"host_shutdown_move", "host_shutdown_grace"})
#: At most so many differences of one host are reported.
SHOWN_MAX = 20
_SHOWN_CHARS = 80
#: Compared by other means: the volumes' ids with the volumes themselves and in each signed
#: heartbeat. `unsigned` changes host by host in an upgrade, and the path of sanlock's file is a
#: matter of each host.
_COMPARED_ELSEWHERE = frozenset({"whiteboard_id", "leases_id", "unsigned", "sanlock_conf"})
#: Keys that an earlier version does not know. A default of them is in no digest: a cluster that is
#: upgraded host by host shows no difference.
_LATER = frozenset({"storage.registry", "vm.balance"})
#: Values that are always published: the code has no default for them, or the default is no value.
_ALWAYS = frozenset({"storage.whiteboard", "storage.leases", "fence.device"})


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that is different on another host. `theirs`: as it published it; empty: not known."""

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
    """The values that must be the same on every host, by their keys in the file."""
    values: dict[str, Value] = {"cluster.name": config.cluster.name, "vm.name": config.vm.name}
    values |= {"vm.on-isolation": config.vm.on_isolation, "vm.balance": config.vm.balance}
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
    """The default values, of those keys that have a default."""
    storage = msgspec.structs.asdict(StorageSection(whiteboard="/", leases="/"))
    values: dict[str, Value] = {"cluster.name": "ha", "vm.name": "HostedEngine"}
    values |= {
        f"storage.{_key(name)}": value
        for name, value in storage.items()
        if name not in _COMPARED_ELSEWHERE
    }
    values |= {"vm.on-isolation": "move", "vm.balance": False}
    score = msgspec.structs.asdict(ScoreSection())
    values |= {f"score.{_key(name)}": value for name, value in score.items()}
    values |= _times(Timing())
    values |= {"fence.power-off": True, "fence.power-on": True, "fence.per-hour": 3}
    return {key: value for key, value in values.items() if key not in _ALWAYS}


def published(config: Config) -> dict[str, str]:
    """The lines of this host's slot."""
    values, usual = agreed(config), defaults()
    compared = {k: v for k, v in values.items() if k not in _LATER or usual.get(k) != v}
    whole = json.dumps(compared, sort_keys=True, ensure_ascii=True)
    changed = {key: value for key, value in values.items() if usual.get(key) != value}
    while len(text := json.dumps(changed, separators=(",", ":"))) > VALUES_BYTES_MAX:
        changed.popitem()
    keys = _digest("\n".join(sorted(values)).encode())
    return {DIGEST_LINE: _digest(whole.encode()), KEYS_LINE: keys, VALUES_LINE: text}


def base_score_of(lines: Mapping[str, str], usual: int) -> int:
    """The base score of the host that published `lines`; `usual` where it published none."""
    try:
        given = json.loads(lines.get(VALUES_LINE, "") or "{}")
    except (ValueError, RecursionError):
        return usual
    value = given.get("score.base-score") if isinstance(given, dict) else None
    return value if type(value) is int else usual


def differences(
    own: Mapping[str, Value], own_lines: Mapping[str, str], lines: Mapping[str, str]
) -> tuple[Difference, ...]:
    """The values in which the host that published `lines` differs; none where it published no
    configuration, or runs another version and has the same values of the keys that both have.
    `own`, `own_lines`: the results of `agreed` and `published` on this host."""
    if lines.get(DIGEST_LINE, "") in ("", own_lines[DIGEST_LINE]):
        return ()
    try:
        given = json.loads(lines.get(VALUES_LINE, ""))
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        return (Difference("", "", ""),)
    theirs = {**defaults(), **{k: v for k, v in given.items() if isinstance(v, Value)}}
    found = [
        Difference(key, _shown(value), _shown(theirs[key]))
        for key, value in own.items()
        if key in theirs and theirs[key] != value
    ]
    if not found and lines.get(KEYS_LINE, "") != own_lines[KEYS_LINE]:
        return ()
    return tuple(found[:SHOWN_MAX]) or (Difference("", "", ""),)


def _key(name: str) -> str:
    return name.replace("_", "-")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
