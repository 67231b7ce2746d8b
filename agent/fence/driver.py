# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every kind of fence device must be able to do, and nothing more.

A driver is blocking; its caller gives it a thread and a deadline (agent/fence/levels.py). It
raises what it likes: whoever calls it turns that into a sentence without the password.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from scoring.observation import Power


class DeviceError(Exception):
    """The device refused, or did not answer: a sentence that may be shown."""


class Pointless(DeviceError):
    """It cannot be used as it is configured: asking again would change nothing."""


class Withdrawn(DeviceError):
    """The order must not be given any more; it was not."""


#: Why an order must not be given now; empty: it must. Any thread may ask.
Still = Callable[[], str]


def always() -> str:
    """A Still of an order that nothing can overtake."""
    return ""


def go(still: Still) -> None:
    """Called with nothing left to do but the order itself; Withdrawn where it must not be given."""
    why = still()
    if why:
        raise Withdrawn(why)


class Login(Protocol):
    """One login to one device."""

    def guid(self) -> bytes | None:
        """The machine's GUID as 16 bytes in whatever order; None: this device has none."""

    def power(self) -> Power:
        """The power, freshly read."""

    def lacks(self) -> str | None:
        """What this login lacks to switch the power; empty: nothing; None: the device does not
        tell. Changes nothing."""

    def switch(self, on: bool, still: Still) -> None:
        """Order the power on, or hard off: never soft off, cycle or reset. An order that
        was taken proves nothing; the power is read afterwards. `go(still)` is called right
        before the order, behind every question to the device."""


class Driver(Protocol):
    """One device."""

    def login(self, timeout_s: float) -> AbstractContextManager[Login]:
        """Log in; all that is done with the login is to be over after `timeout_s`."""
