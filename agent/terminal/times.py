# SPDX-License-Identifier: LGPL-2.1-or-later
"""Times and durations as people type them, and as a command prints them: UTC, and it says so.

The hosts of a cluster may have other zones than the person's own machine, and the journals of two
hosts are read side by side: so every time is UTC. A time that is typed without a zone is UTC too,
as it can be copied from any output; one that would then lie in the future is refused with both
readings, since that is how a local time gives itself away.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from agent.terminal.errors import CommandError
from broker.daemon.exit_codes import ExitCode
from broker.wire.limits import LASTS_MAX_S

_UNITS_S = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86_400),
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86_400),
}
_PART = re.compile(r"\s*([0-9]{1,9})\s*([a-z]+)")
_CLOCK = re.compile(r"[0-9]{1,2}:")
#: An hour of one digit, behind a day.
_SHORT_HOUR = re.compile(r"(?<=[ t])(?=[0-9]:)")
#: Words for a day's beginning -> how many days ago.
_DAYS = {"today": 0, "yesterday": 1}
#: A clock of another host may be a little ahead.
FUTURE_MAX_S = 60.0


def duration_s(text: str, option: str = "--for") -> int:
    """Seconds of `90s`, `30m`, `2h`, `1d`, `10 min` or several of them together; CommandError."""
    seconds, place = 0, 0
    while (part := _PART.match(text, place)) is not None and part[2] in _UNITS_S:
        seconds += int(part[1]) * _UNITS_S[part[2]]
        place = part.end()
    if text[place:].strip() or not 0 < seconds <= LASTS_MAX_S:
        raise CommandError(
            ExitCode.USAGE,
            f"{option} {text!r}: give a time with its unit, such as 90s, 30m, 2h, 1d or 1h30m,"
            " at most ten years",
        )
    return seconds


def moment(text: str, now: datetime, option: str = "--since") -> datetime:
    """The moment in the past that a person means, in UTC.

    Taken are how long ago (`2h`, `10 min ago`, `-1h`), a day (`today`, `yesterday`, a date), a
    time (`21:58`: the last one), a day with a time (`yesterday 21:58`, `2026-11-27 21:58`), each
    with a zone (`Z`, `UTC`, `+01:00`), and `now`. CommandError for all else, and for the future.
    """
    words = text.strip().lower()
    if words == "now":
        return now
    found = _ago(words, now) or _at(words, now)
    if found is not None and found > now and _CLOCK.match(words):
        found -= timedelta(days=1)
    if found is None:
        raise CommandError(
            ExitCode.USAGE,
            f"{option} {text!r}: give how long ago (30m, 2h, 10 min ago), a day (yesterday,"
            " 2027-01-15) or a time (21:58, 2027-01-15 21:58), UTC unless it has a zone (+01:00)",
        )
    if (found - now).total_seconds() > FUTURE_MAX_S:
        raise CommandError(
            ExitCode.USAGE,
            f"{option} {text!r}: that is in the future: {shown(found)}, and it is {shown(now)};"
            f" a local time has its zone behind it, here {_zone(now)}",
        )
    return found


def shown(at: datetime) -> str:
    """A moment for people: to the second, with its zone."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _ago(words: str, now: datetime) -> datetime | None:
    """How long ago; None: the words say no such thing."""
    said = words.removeprefix("-").removesuffix("ago").strip()
    try:
        return now - timedelta(seconds=duration_s(said))
    except CommandError:
        return None


def _at(words: str, now: datetime) -> datetime | None:
    """A day, a time of it, or both; None: the words say no such thing."""
    words = re.sub(r"\s*(utc|z)$", "+00:00", words)
    words = re.sub(r"\s+([+-][0-9]{2}:?[0-9]{2})$", r"\1", words)
    today = now.astimezone(UTC).date()
    day, _, clock = words.partition(" ")
    if day in _DAYS:
        words = f"{today - timedelta(days=_DAYS[day])} {clock.strip() or '00:00'}"
    elif _CLOCK.match(words):
        words = f"{today} {words}"
    words = _SHORT_HOUR.sub("0", words, count=1)
    try:
        found = datetime.fromisoformat(words.replace(" ", "T", 1))
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _zone(now: datetime) -> str:
    """This machine's own offset."""
    text = now.astimezone().strftime("%z")
    return f"{text[:3]}:{text[3:5]}"
