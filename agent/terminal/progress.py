# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shows progress on a terminal."""

from __future__ import annotations

import sys


def progress(text: str) -> None:
    """Show one line on standard error that the next one overwrites; only on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text[:78]:<78}", end="\r", file=sys.stderr, flush=True)
