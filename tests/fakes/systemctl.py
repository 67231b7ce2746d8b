# SPDX-License-Identifier: LGPL-2.1-or-later
"""A `systemctl` that says what a test wants of both daemons."""

from __future__ import annotations

from pathlib import Path

import pytest


def put_systemctl(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, active: str, enabled: str
) -> None:
    """Have commands find it in `folder`. `active`, `enabled`: its words for `is-active` and
    `is-enabled`, one for each daemon; it ends with 3, as where one of them is not."""
    program = folder / "systemctl"
    said = f"case $1 in is-active) echo {active};; is-enabled) echo {enabled};; esac"
    program.write_text(f"#!/bin/sh\n{said}\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
