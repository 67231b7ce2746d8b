# SPDX-License-Identifier: LGPL-2.1-or-later
"""What somebody else wrote, made fit for use where it comes in. Pure.

A slot, a fence device, libvirt, a page that is checked: each may send an escape sequence that
rewrites an administrator's terminal, a newline that forges a line of the log, a character that
turns the direction of the text, or a number of four thousand digits. So text is cleaned and numbers
are bounded once, where they become values of ours. Whoever shows such a text shows it as it is.
What is cleaned is never compared with what is not.
"""

from __future__ import annotations

#: Of an error text, or another sentence, of somebody else.
SENTENCE_CHARS_MAX = 500


def clean(text: str, chars_max: int | None = None) -> str:
    """One line that can be shown anywhere: white space of any kind becomes a blank, and what has
    no shape of its own (control characters, escapes, what turns the direction, lone surrogates)
    a "?". Applied to its own result it changes nothing. `chars_max`: longer text is cut.
    """
    if chars_max is not None and len(text) > chars_max:
        text = text[: chars_max - 3] + "..."
    # str.isprintable: no character of the categories "other" and "separator", but the blank.
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def sentence(told: object, chars_max: int = SENTENCE_CHARS_MAX) -> str:
    """What somebody else's error says, or an error of ours that quotes one, in one clean line;
    never empty."""
    text = " ".join(str(told).split())
    return clean(text, chars_max) or type(told).__name__


def whole(text: str, most: int) -> int | None:
    """A whole number 0..`most` in plain decimal digits, None for anything else: int() alone takes
    "1_000", " 7" and other scripts' digits, and fails at 4300 of them."""
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(most)):
        return None
    value = int(text)
    return value if value <= most else None
