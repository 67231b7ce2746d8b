# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest's pages, fetched from inside the switch: what a user on the network sees."""

from __future__ import annotations

import time

from .layout import GUEST_ADDRESS
from .namespaces import connect_within

PAGE_BYTES_MAX = 65536


def fetch(
    switch_pid: int, path: str, seconds_max: float = 2.0, address: str = GUEST_ADDRESS
) -> str | None:
    """The body of a page that answered 200 in time, else None. `address`: of the guest."""
    deadline = time.monotonic() + seconds_max
    received = b""
    try:
        with connect_within(switch_pid, (address, 80), seconds_max) as connection:
            request = f"GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n"
            connection.sendall(request.encode())
            while len(received) < PAGE_BYTES_MAX:
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                chunk = connection.recv(4096)
                if not chunk:
                    break
                received += chunk
    except OSError:
        return None
    head, _, body = received.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].split()
    return body.decode(errors="replace") if status[1:2] == [b"200"] else None
