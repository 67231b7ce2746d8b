# SPDX-License-Identifier: LGPL-2.1-or-later
"""The forms that the lines of a scenario have, and what is said of a line that has none of them.

`FORMS` is what tests/scenarios/README.md explains; a test holds the two together. Whoever wrote
a line that does not fit reads the forms of its verb, and the known word that is most like his.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable

#: By verb. Words in capitals stand for a value, `|` between words that are possible, `[…]` around
#: what may be left out, `…` behind what may come several times.
FORMS: dict[str, tuple[str, ...]] = {
    "hosts": ("hosts N [OPTION VALUE]…",),
    "wait": ("wait S",),
    "calm": ("calm",),
    "power": (
        "power on|off|reset|shutdown|reboot HOST",
        "power freeze HOST S",
        "power suspend HOST S",
    ),
    "host": ("host leave|join|clean|replace|reload HOST",),
    "clock": ("clock jumps S HOST",),
    "vm": (
        "vm NAME [memory MIB] [priority N] [after NAME…] [apart NAME…] [together NAME…] "
        "[only HOST…] [prefer HOST…] [failback] [overcommit] [pages KIB]",
        "vm NAME [starting S] [bad-health S] [stop-grace S] [migration-timeout S]",
        "vm NAME want up|down",
        "vm NAME disks recorded|running",
        "vm NAME removed",
        "vm NAME boot S",
        "vm NAME disk own",
        "vm NAME starts yes|no|hangs [HOST]",
        "vm NAME killable yes|no [HOST]",
    ),
    "registry": ("registry damaged|old|fine HOST [NAME…]",),
    "start": ("start NAME",),
    "migrate": ("migrate NAME [HOST]",),
    "kill": ("kill agent|broker|libvirtd|sanlock|qemu HOST", "kill qemu NAME"),
    "stop": ("stop agent|broker|libvirtd|sanlock|qemu HOST [S]", "stop NAME"),
    "watchdog": ("watchdog on|off|fires HOST",),
    "virsh": ("virsh start HOST [NAME] [unlocked]", "virsh destroy HOST [NAME]"),
    "timing": ("timing KEY S HOST",),
    "storage": (
        "storage fine|hangs|fails|read-only|unreadable|full|replaced HOST "
        "[whiteboard|leases|disk]…",
        "storage slow HOST S [whiteboard|leases|disk]…",
        "storage copy|copied-leases|empty|shared HOST",
        "storage stale HOST [whiteboard|leases]…",
        "storage split HOST… / HOST…",
        "storage joined",
        "storage reinitialized",
        "storage snapshot",
        "storage restored [whiteboard|leases]…",
        "storage late HOST S [slots|cluster|log|ran|leases|release|whiteboard]… [outlives]",
    ),
    "network": (
        "network up|down|unplugged|plugged HOST",
        "network cut|joined HOST HOST",
        "network joined [HOST]",
        "network split HOST… / HOST…",
        "network loss PERCENT HOST [HOST]",
        "network delay S HOST [HOST]",
        "network storage|migration|bmc|guests up|down [HOST]",
    ),
    "bmc": (
        "bmc fine|silent|hangs|slow|refuses|says-on|says-off|foreign|foreign-off|nameless-off|"
        "off-early|off-fails|off-ignored|on-fails|on-ignored|every-other|caches|own-power HOST "
        "[for HOST…]",
        "bmc off-takes S HOST",
        "bmc network up|down [HOST]",
    ),
    "guest": (
        "guest hangs|recovers|reboots|powers-off|panics|saved|ignores-shutdown",
        "guest unreachable|hidden|reachable",
        "guest paused [user|snapshot|dump|save|guest|io-error|watchdog|post-copy|other]",
        "guest resumed",
        "guest snapshot shared|local",
        "guest commits",
        "guest pivots",
        "guest ordered-on HOST start|shutdown|poweroff|cancel|adopt|keep",
        "guest ordered-on HOST migrate [HOST]",
        "guest NAME hangs|recovers|reboots|powers-off|panics|ignores-shutdown|resumed|snapshot",
        "guest NAME paused [user|snapshot|dump|save|guest|io-error|watchdog|post-copy|other]",
    ),
    "maintenance": (
        "maintenance global on|off [for S]",
        "maintenance global on|off at HOST",
        "maintenance local on|off HOST [release-id] [restart] [for S]",
    ),
    "set": ("set WHAT VALUE HOST",),
    "slot": (
        "slot garbled|torn|stale|stray|left HOST",
        "slot garbled cluster",
        "slot newer",
        "slot gone",
    ),
    "forge": (
        "forge slot ID [KEY VALUE]…",
        "forge cluster on|off",
        "forge replay HOST",
        "forge intents TARGET BY",
        "forge ends",
    ),
    "expect": (
        "expect [not] CONDITION [within S|for S]",
        "expect [not] downtime below S",
        "expect [not] moves N",
        "expect [not] short NAME MIB",
        "expect [not] fenced N",
        "expect [not] order done|refused|lost|under-way [TEXT]",
    ),
}
#: What a CONDITION is.
CONDITIONS = (
    "engine running|healthy|reachable [on HOST]",
    "vm NAME running|healthy|reachable|up|down [on HOST]",
    "vm NAME downtime below S",
    "vm NAME moves N",
    "HOST in STATE",
    "HOST calls engine up|down|unknown",
    "score of HOST is N",
    "HOST has a memory image",
    "id of HOST free",
    "power of HOST on|off",
    "HOST lacks PENALTY",
    "HOST finds HOST elsewhere",
    "HOST says TEXT",
    "HOST tells KIND [TEXT]",
)
#: The longest `wait` and expectation, in seconds: 115 days.
LASTS_MAX_S = 10_000_000.0
_PLAIN = re.compile(r"[a-z][a-z-]*")


class Misfit(ValueError):
    """A word that does not fit, and those that would."""

    def __init__(self, word: str, known: Iterable[str]) -> None:
        self.word, self.known = word, tuple(dict.fromkeys(known))
        near = difflib.get_close_matches(word, self.known, 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        super().__init__(f"{word!r} is not known{hint or ';'} known are: {', '.join(self.known)}")


class WrongCount(ValueError):
    """Words are missing, or there are too many."""

    def __init__(self) -> None:
        super().__init__("words are missing, or there are too many")


class NotNow(ValueError):
    """The line fits, but not at this moment of the story."""


def number_of(word: str) -> float:
    """A number; seconds may have `s` behind them, a part `%`."""
    try:
        number = float(word[:-1] if word[-1:] in ("s", "%") else word)
    except ValueError:
        raise ValueError(f"{word!r} is no number") from None
    if math.isnan(number):
        raise ValueError(f"{word!r} is no number")
    return number


def seconds_of(word: str) -> float:
    """A time in seconds, from 0 on."""
    seconds = number_of(word)
    if seconds < 0:
        raise ValueError(f"{word!r}: a time is not below 0")
    return seconds


def lasts_of(word: str) -> float:
    """A time in seconds that a story can let pass."""
    seconds = seconds_of(word)
    if seconds > LASTS_MAX_S:
        raise ValueError(f"{word!r}: no story lasts longer than {LASTS_MAX_S:.0f} s")
    return seconds


def within(word: str, lowest: float, highest: float = math.inf) -> float:
    """A number from `lowest` to `highest`."""
    number = number_of(word)
    if not lowest <= number <= highest:
        to = "on" if math.isinf(highest) else f"to {highest:g}"
        raise ValueError(f"{word!r} is not from {lowest:g} {to}")
    return number


def whole_within(word: str, lowest: int, highest: float = math.inf) -> int:
    """A whole number from `lowest` to `highest`."""
    within(word, lowest, highest)
    return whole_of(word)


def whole_of(word: str) -> int:
    """A whole number."""
    number = number_of(word)
    if not number.is_integer():
        raise ValueError(f"{word!r} is no whole number")
    return int(number)


def is_number(word: str) -> bool:
    """Whether a word is one."""
    try:
        number_of(word)
    except ValueError:
        return False
    return True


def apart(words: Iterable[str], noise: tuple[str, ...] = ("on", "for")) -> tuple[list[str], ...]:
    """The words that are no numbers, and the numbers, each in their order; without small words
    that say nothing here."""
    numbers: list[str] = []
    others: list[str] = []
    for word in words:
        if word not in noise:
            (numbers if is_number(word) else others).append(word)
    return others, numbers


def forms_of(verb: str, words: tuple[str, ...]) -> str:
    """What a line of that verb looks like: those forms that begin like it, else all."""
    forms = FORMS[verb]
    first = words[0] if words else ""
    near = [form for form in forms if first in first_words(form)]
    return ", or: ".join(near or forms)


def first_words(form: str) -> list[str]:
    """What may stand right behind the verb in a form."""
    words = form.split()
    if len(words) < 2:
        return []
    return [word for word in words[1].split("|") if _PLAIN.fullmatch(word)]


def complaint(verb: str, words: tuple[str, ...], error: Exception) -> str:
    """What is wrong with a line, for who wrote it."""
    why = str(error)
    if isinstance(error, Misfit) and (verb in ("expect", "set") or error.word == words[0]):
        return why
    if "is no condition" in why:
        return f"{why}; one is: {', or: '.join((*CONDITIONS, *FORMS['expect'][1:]))}"
    if isinstance(error, KeyError):
        why = f"{error.args[0]!r} does not fit here"
    elif isinstance(error, IndexError) or "to unpack" in why:
        why = str(WrongCount())
    return f"{why}; it goes: {forms_of(verb, words)}"
