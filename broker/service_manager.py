# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a daemon tells the service manager that started it (sd_notify(3)).

One datagram each to the socket in NOTIFY_SOCKET; without that variable nothing. Sending
never blocks and never fails: a word that is lost is said again with the next beat. Nothing
here has a timer: `alive` is called by what has just made progress, so that the watchdog
ends a daemon whose loop turns but whose beat does not.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

#: systemd shows one line; what a library's error adds beyond that is cut.
STATUS_CHARACTERS_MAX = 200


def alive(status: str) -> None:
    """A beat is done: the service is ready, and lives. `status`: for `systemctl status`."""
    line = " ".join(status.split())[:STATUS_CHARACTERS_MAX]
    _tell("READY=1", "WATCHDOG=1", f"STATUS={line}")


def reloading() -> None:
    """The configuration is being read anew; the next `alive` says that it is done."""
    _tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """Asked to end, and about to."""
    _tell("STOPPING=1")


def _tell(*lines: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.setblocking(False)
        out.sendto("\n".join(lines).encode(), address)
