# SPDX-License-Identifier: LGPL-2.1-or-later
"""The records of the VMs beside the engine, from this host's copy of the registry.

The broker reads the registry and keeps a copy in the state folder (broker/registry/cache.py). The
agent reads that copy, so that it has the records also while the storage hangs or no broker runs.
"""

from __future__ import annotations

import threading
from pathlib import Path

from broker.config.engine_file import FOLDER
from broker.config.sections import Config
from broker.registry.cache import RECORDS_FILE, Cached, read_kept


class VmRecords:
    """The copy, read again when it is another one. Any thread may call it; it blocks as long as the
    local disk does."""

    def __init__(self, config: Config) -> None:
        self._folder = Path(config.daemon.state_dir) / FOLDER
        self._cluster = config.cluster.id
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._cached = Cached()

    def now(self) -> Cached:
        """The copy as it is now: definitions are in it only with the digest that their record
        names. Empty where there is none that can be used."""
        with self._lock:
            seen = self._look()
            if seen is None or seen != self._seen:
                self._cached = read_kept(self._folder, self._cluster)
                self._seen = seen
            return self._cached

    def _look(self) -> tuple[int, int] | None:
        """Which file it is: each change makes a new one, in place of the last."""
        try:
            found = (self._folder / RECORDS_FILE).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns


def not_in_registry(vm: int) -> str:
    """The error text for a VM of that number that is not in the copy."""
    return f"VM {vm} is not in the registry as this host knows it"
