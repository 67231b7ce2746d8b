# SPDX-License-Identifier: LGPL-2.1-or-later
"""The settings of a VM, from the words that people type to the fields of its record and back."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from agent.registry.names import Names
from agent.terminal.errors import CommandError
from agent.terminal.times import duration_s
from broker.config.patterns import matcher
from broker.daemon.exit_codes import ExitCode
from broker.daemon.name_lookup import PORT_MAX
from broker.registry.record import HEALTH, PATIENCE_S_MAX, VmRecord
from scoring.vm_facts import Want

_YES, _NO = ("yes", "true", "on", "1"), ("no", "false", "off", "0", "")


def _priority(text: str, names: Names) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:4]) <= 100):
        raise ValueError("a whole number from 0 to 100")
    return int(text)


def _flag(text: str, names: Names) -> bool:
    if text.lower() in _YES:
        return True
    if text.lower() in _NO:
        return False
    raise ValueError("yes or no")


def _want(text: str, names: Names) -> Want:
    if text not in tuple(Want):
        raise ValueError("up or down")
    return Want(text)


def _health(text: str, names: Names) -> str:
    is_good = re.fullmatch(HEALTH, text) is not None and len(text) <= 512
    if is_good and text.startswith("tcp:"):
        is_good = 1 <= int(text.rpartition(":")[2]) <= PORT_MAX
    if not is_good:
        raise ValueError(
            'an http(s) address, tcp:HOST:PORT, tcp:[V6]:PORT, guest-agent, or "" for none'
        )
    return text


def _expect(text: str, names: Names) -> str:
    if len(text) > 256:
        raise ValueError("at most 256 characters")
    try:
        matcher(text)
    except ValueError as error:
        raise ValueError(f"a regular expression ({error})") from None
    return text


def _patience(text: str, names: Names) -> float | None:
    if not text:
        return None
    try:
        seconds = float(text) if text.isascii() and text.isdigit() else duration_s(text)
    except CommandError:
        seconds = 0
    if not 0 < seconds <= PATIENCE_S_MAX:
        raise ValueError('seconds, or a time such as 90s, 10m or 2h, a day at most; "": the usual')
    return float(seconds)


def _vms(text: str, names: Names) -> tuple[int, ...]:
    return names.numbers(text)


def _hosts(text: str, names: Names) -> tuple[int, ...]:
    return names.host_ids(text)


#: Key -> its value from text; ValueError says what would fit.
KEYS: Mapping[str, Callable[[str, Names], Any]] = {
    "priority": _priority,
    "after": _vms,
    "apart": _vms,
    "together": _vms,
    "only": _hosts,
    "prefer": _hosts,
    "failback": _flag,
    "overcommit": _flag,
    "want": _want,
    "health": _health,
    "expect": _expect,
    "starting": _patience,
    "bad-health": _patience,
    "stop-grace": _patience,
    "migration-timeout": _patience,
}
#: Settings whose field has another name.
_FIELDS = {
    "starting": "starting_s",
    "bad-health": "bad_health_s",
    "stop-grace": "stop_grace_s",
    "migration-timeout": "migration_timeout_s",
}


def with_settings(record: VmRecord, given: Mapping[str, str], names: Names) -> VmRecord:
    """The record with these settings; CommandError names the key and what would fit."""
    changed: dict[str, Any] = {}
    for key, text in given.items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(KEYS)}"
            raise CommandError(ExitCode.USAGE, f"no setting {key!r}; {hint}")
        try:
            changed[_FIELDS.get(key, key)] = KEYS[key](text.strip(), names)
        except ValueError as error:
            raise CommandError(ExitCode.USAGE, f"{key}={text}: {error} would fit") from None
    return msgspec.structs.replace(record, **changed)


def pairs(words: list[str]) -> dict[str, str]:
    """KEY=VALUE words, each key once; CommandError."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise CommandError(ExitCode.USAGE, f"{word!r} is no KEY=VALUE, such as priority=90")
        if key.strip() in found:
            raise CommandError(ExitCode.USAGE, f"{key.strip()} is given twice")
        found[key.strip()] = value
    return found


def shown(record: VmRecord, names: Names) -> dict[str, str]:
    """The settings as people type them; "" where nothing is set."""
    return {
        "want": record.want.value,
        "priority": str(record.priority),
        "after": ",".join(map(names.name_of, record.after)),
        "apart": ",".join(map(names.name_of, record.apart)),
        "together": ",".join(map(names.name_of, record.together)),
        "only": ",".join(map(names.host_name, record.only)),
        "prefer": ",".join(map(names.host_name, record.prefer)),
        "failback": "yes" if record.failback else "no",
        "overcommit": "yes" if record.overcommit else "no",
        "health": record.health,
        "expect": record.expect,
        **{key: _seconds(getattr(record, field)) for key, field in _FIELDS.items()},
    }


def in_words(settings: Mapping[str, str], key: str) -> str:
    """A setting for people, who must not read an empty time as none at all."""
    return settings[key] or ("the cluster's" if key in _FIELDS else "none")


def _seconds(patience_s: float | None) -> str:
    return "" if patience_s is None else f"{patience_s:g}"


def as_builtins(record: VmRecord, names: Names) -> dict[str, Any]:
    """The VM for --json."""
    return {
        "number": record.number,
        "name": record.name,
        "uuid": record.uuid,
        "memory_mb": record.memory_mb,
        "generation": record.generation,
        "settings": shown(record, names),
    }
