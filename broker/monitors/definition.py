# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether this host's VM definition is at least as new as the one on shared storage."""

from __future__ import annotations

from pathlib import Path

from broker.daemon.worker import Worker
from broker.monitors.runner import Unknown


class DefinitionMonitor:
    """True: the same text, or a newer file here, or no shared copy. False: the file here is older.
    Unknown: one of them cannot be read."""

    name = "definition"
    unit = ""
    deadline_s = 10.0

    def __init__(self, local: str, shared: str | None, interval_s: float = 30.0) -> None:
        self.interval_s = interval_s
        self._local, self._shared = Path(local), Path(shared) if shared else None
        self._worker = Worker("definition")

    def judge(self, value: bool) -> str:
        """Why the definition on this host must not be used."""
        return "" if value else f"{self._local} is older than {self._shared}"

    async def sample(self) -> bool:
        if self._shared is None:
            return True
        return await self._worker.call("comparing definitions", 5.0, self._compare, self._shared)

    def _compare(self, shared: Path) -> bool:
        try:
            if self._local.read_bytes() == shared.read_bytes():
                return True
            return self._local.stat().st_mtime >= shared.stat().st_mtime
        except OSError as error:
            raise Unknown(str(error)) from None
