# SPDX-License-Identifier: LGPL-2.1-or-later
"""Logs refused datagrams: a line for each address and reason, however many come."""

from __future__ import annotations

import logging
from collections import OrderedDict

from broker.peers.question_gate import Refusal

log = logging.getLogger("ha-broker.heartbeat")

#: How many addresses and reasons are remembered; a flood from more of them writes the log at most
#: as fast as broker/daemon/log_lines.py allows.
REMEMBERED_MAX = 256


class RefusalLog:
    """Logs once for each address why its datagrams are refused."""

    def __init__(self) -> None:
        self._said: OrderedDict[tuple[str, Refusal], None] = OrderedDict()

    def refused(self, source: str, host_id: int | None, why: Refusal) -> None:
        """Take in a refused datagram; `host_id`: whose address it is, None: unknown."""
        if (source, why) in self._said:
            return
        self._said[source, why] = None
        while len(self._said) > REMEMBERED_MAX:
            self._said.popitem(last=False)
        if host_id is None:
            log.debug("datagrams from %s are not answered: %s", source, why)
        else:
            log.info("datagrams from %s (host %d) are not answered: %s", source, host_id, why)
