# SPDX-License-Identifier: LGPL-2.1-or-later
"""The certificates of this host in the status: looked at now and then, since they end in days."""

from __future__ import annotations

import asyncio

from broker.config.host_certificates import all_ends
from broker.config.in_force import InForce
from broker.daemon.worker import Hung, Worker
from broker.wire.status import CertificateStatus

LOOK_EVERY_S, PATIENCE_S = 3600.0, 30.0


async def watch_certificates(in_force: InForce) -> None:
    """Look at them again and again, for ever."""
    worker = Worker("certificates")
    while True:
        try:
            found = await worker.call("certificates", PATIENCE_S, all_ends, in_force.config)
            in_force.certificates = found
        except Hung:
            pass  # what was seen last counts on
        await asyncio.sleep(LOOK_EVERY_S)


def certificates(in_force: InForce, now: float) -> tuple[CertificateStatus, ...]:
    """Each with its days; `now`: UTC seconds since 1970."""
    return tuple(
        CertificateStatus(each.path, each.ends, each.days_left(now), each.problem)
        for each in in_force.certificates
    )
