# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long the guest of each VM boots, as this host sees it: from the last moment at which it ran
nowhere until its host says that it is healthy. Pure.

Every host sees every boot, so no host has to have started the VM to know what its next start costs.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field


@dataclass(slots=True)
class Boots:
    """`took_s`: by number, how long the last boot took that was seen from its beginning."""

    took_s: dict[int, float] = field(default_factory=dict)
    _down_s: dict[int, float] = field(default_factory=dict)

    def look(self, number: int, up: bool | None, healthy: bool | None, now_s: float) -> None:
        """Take in how the VM is now; None: not known. A VM that is migrated is up all the time."""
        if up is False:
            self._down_s[number] = now_s
        elif up and healthy and number in self._down_s:
            self.took_s[number] = now_s - self._down_s.pop(number)

    def keep(self, numbers: Container[int]) -> None:
        """All others are no VMs any more."""
        self.took_s = {number: s for number, s in self.took_s.items() if number in numbers}
        self._down_s = {number: s for number, s in self._down_s.items() if number in numbers}
