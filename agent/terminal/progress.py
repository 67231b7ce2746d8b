# SPDX-License-Identifier: LGPL-2.1-or-later
"""What takes a while, on a terminal."""

from __future__ import annotations

import sys


def progress(text: str) -> None:
    """One line on standard error that is written over; nothing where that is no terminal."""
    if sys.stderr.isatty():
        print(f"\r{text[:78]:<78}", end="\r", file=sys.stderr, flush=True)
