# SPDX-License-Identifier: LGPL-2.1-or-later
"""Text in a slot: cut to its room, and foreign bytes as they are shown in a message. Pure."""

from __future__ import annotations

_SHOWN_MAX = 40  # characters of foreign data in a message


def cut_bytes(text: str, bytes_max: int) -> str:
    """The longest beginning of `text` of at most `bytes_max` UTF-8 bytes, whole characters."""
    if 4 * len(text) <= bytes_max:
        return text
    return text.encode()[:bytes_max].decode("utf-8", "ignore")


def is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def shown(raw: bytes) -> str:
    """Foreign bytes for a message: printable ASCII, short, quoted."""
    text = ascii(raw.decode("utf-8", "replace"))
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 4] + "...'"
