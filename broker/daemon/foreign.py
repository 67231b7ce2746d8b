# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cleans foreign text at the place where it comes in. Pure.

A slot, a fence device, libvirt, a page that is checked: each may send an escape sequence that
rewrites an administrator's terminal, a newline that forges a line of the log, a character that
turns the direction of the text, or a number of four thousand digits. So text is cleaned and numbers
are bounded once, where they become values of this program. Code that shows such a text shows it as
it is. Cleaned text is never compared with uncleaned text.
"""

from __future__ import annotations

#: The length of a foreign error text, or another sentence, that is kept.
SENTENCE_CHARS_MAX = 500


def clean(text: str, chars_max: int | None = None) -> str:
    """One line that can be shown anywhere: white space of any kind becomes a blank, and characters
    without a shape of their own (control characters, escapes, direction marks, lone surrogates)
    become "?". Applied to its own result it changes nothing. `chars_max`: longer text is cut.
    """
    if chars_max is not None and len(text) > chars_max:
        text = cut(text, chars_max)
    # str.isprintable: no character of the categories "other" and "separator", but the blank.
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def cut(text: str, chars_max: int) -> str:
    """A text of at most `chars_max` characters: itself, or its beginning up to the end of a word,
    with "..." behind it. Where that would leave less than half, the word is cut."""
    if len(text) <= chars_max:
        return text
    room = chars_max - 3
    head = text[: room + 1].rpartition(" ")[0].rstrip(" ,;:")
    return (head if 2 * len(head) >= room else text[:room]) + "..."


def sentence(said: object, chars_max: int = SENTENCE_CHARS_MAX) -> str:
    """The text of a foreign error, or of an own error that quotes one, in one clean line; never
    empty."""
    text = " ".join(str(said).split())
    return clean(text, chars_max) or type(said).__name__


def whole(text: str, most: int) -> int | None:
    """A whole number 0..`most` in plain decimal digits, None for anything else: int() alone takes
    "1_000", " 7" and other scripts' digits, and fails at 4300 of them."""
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(most)):
        return None
    value = int(text)
    return value if value <= most else None
