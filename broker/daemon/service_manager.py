# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reports the daemon's state to its service manager (sd_notify(3)), and sets up its journal.

Each report is one datagram to the socket in NOTIFY_SOCKET; without that variable there is none.
Sending never blocks and never fails: a lost report is sent again with the next beat. Nothing
here has a timer: `alive` is called by code that has just made progress, so that the watchdog
ends a daemon whose loop turns but whose beat does not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time

from broker.daemon.log_lines import JOURNAL_SOCKET, Journal, Lines, priority, to_standard_error

#: systemd shows one line; a longer text is cut.
STATUS_CHARACTERS_MAX = 200

#: The format for files and terminals; the journal adds the time of each line itself.
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
JOURNAL_FORMAT = "%(levelname)s %(name)s: %(message)s"


class JournalFormatter(logging.Formatter):
    """A line with its priority in the form of sd-daemon(3), each line of a traceback too."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).splitlines()
        return "\n".join(f"<{priority(record.levelno)}>{line}" for line in lines)


def set_up_logging(level: str, journal_socket: str = JOURNAL_SOCKET) -> None:
    """Log one line per event: to the journal with fields where standard error leads to the journal,
    else to standard error."""
    if _is_journal():
        plain = to_standard_error(JournalFormatter(JOURNAL_FORMAT))
        handler = Lines(Journal(journal_socket, plain).send)
    else:
        handler = Lines(to_standard_error(logging.Formatter(FORMAT)))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _is_journal() -> bool:
    """Whether standard error leads to the journal: systemd.exec(5), JOURNAL_STREAM."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def alive(status: str) -> None:
    """Report that a beat is done: the service is ready, and lives. `status`: for `systemctl
    status`."""
    line = " ".join(status.split())[:STATUS_CHARACTERS_MAX]
    _notify("READY=1", "WATCHDOG=1", f"STATUS={line}")


def reloading() -> None:
    """Report that the configuration is being read anew; the next `alive` ends this state."""
    _notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """Report that the daemon is about to end."""
    _notify("STOPPING=1")


def _notify(*lines: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.setblocking(False)
        out.sendto("\n".join(lines).encode(), address)
