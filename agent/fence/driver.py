# SPDX-License-Identifier: LGPL-2.1-or-later
"""The port of a fence device: what every kind of device must be able to do, and nothing more.

A driver is blocking; its caller gives it a thread and a deadline (agent/fence/guarded.py). It
may raise any exception: the caller turns it into a sentence without the password.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from agent.ports import Still
from broker.daemon.errors import HaError
from broker.daemon.exit_codes import ExitCode
from scoring.observation import Power


class FenceError(HaError):
    """A question or an order to a fence device failed: a sentence that may be shown."""

    code = ExitCode.FENCE


class DeviceError(FenceError):
    """The device refused, or did not answer: a sentence that may be shown."""


class Pointless(DeviceError):
    """The device cannot be used as it is configured: asking again would change nothing."""


class Refused(Pointless):
    """The device refused the login: its name or password is not the configured one."""


class Withdrawn(DeviceError):
    """The order must not be given any more; it was not given."""


def always() -> str:
    """A Still for an order that nothing can overtake."""
    return ""


def go(still: Still) -> None:
    """Called when nothing but the order is left to do; Withdrawn where it must not be given."""
    why = still()
    if why:
        raise Withdrawn(why)


class Login(Protocol):
    """One login to one device."""

    def guid(self) -> bytes | None:
        """The machine's GUID as 16 bytes in any order; None: this device has none."""

    def power(self) -> Power:
        """The power, read at this moment."""

    def lacks(self) -> str | None:
        """The rights that this login lacks to switch the power; empty: none; None: the device does
        not say. Changes nothing."""

    def switch(self, on: bool, still: Still) -> None:
        """Order the power on, or hard off: never soft off, cycle or reset. An accepted order
        proves nothing; the power is read afterwards. `go(still)` is called right before the order,
        after every question to the device."""


class Driver(Protocol):
    """One device."""

    def login(self, timeout_s: float) -> AbstractContextManager[Login]:
        """Log in; everything done with the login must be over after `timeout_s`."""
