# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keeps this host's local maintenance in a file, so that it survives a restart of the broker."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from broker.daemon.atomic_file import write_atomically
from broker.daemon.foreign_json import decoded
from broker.whiteboard.mode import Mode

log = logging.getLogger("ha-broker")


class _File(msgspec.Struct, frozen=True):
    """The content. `on` False: not set. `set_s`: when it was set, by the monotonic clock of the
    boot `boot_id`. The rest as in Mode."""

    on: bool
    owner: str = ""
    reason: str = ""
    since_epoch_s: int | None = None
    lasts_s: int | None = None
    release_id: bool = False
    restart: bool = False
    boot_id: str = ""
    set_s: float | None = None


def load(path: Path) -> Mode | None:
    """The mode that was kept, None: not set. A file that cannot be read counts as set."""
    try:
        kept = decoded(path.read_bytes(), _File)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.error("%s: %s; taking local maintenance as set", path, error)
        return Mode()
    if not kept.on:
        return None
    return Mode(
        kept.owner,
        kept.reason,
        kept.since_epoch_s,
        kept.lasts_s,
        kept.release_id,
        kept.restart,
    )


def set_in(path: Path, boot_id: str) -> float | None:
    """When the mode that was kept was set, by the monotonic clock; None: not known, or not in this
    boot."""
    try:
        kept = decoded(path.read_bytes(), _File)
    except (OSError, msgspec.MsgspecError):
        return None
    return kept.set_s if boot_id and kept.boot_id == boot_id else None


def save(path: Path, mode: Mode | None, boot_id: str = "", set_s: float | None = None) -> None:
    """Keep the mode, completely or not at all; OSError where it cannot be written."""
    kept = _File(False)
    if mode is not None:
        kept = _File(
            True,
            mode.owner,
            mode.reason,
            mode.since_epoch_s,
            mode.lasts_s,
            mode.release_id,
            mode.restart,
            boot_id,
            set_s,
        )
    write_atomically(path, msgspec.json.encode(kept))
