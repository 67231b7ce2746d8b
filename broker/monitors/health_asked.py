# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the health of a VM of the registry is asked for."""

from __future__ import annotations

from msgspec import structs

from broker.config.sections import HealthSection
from broker.registry.record import VmRecord


def health_of(record: VmRecord, given: HealthSection) -> HealthSection:
    """How the VM is asked. `given`: this host's settings of the engine's check, of which the times,
    the CA file and the failures in a row hold for every VM."""
    kind, _, where = record.health.partition(":")
    return structs.replace(
        given,
        url=record.health if kind in ("http", "https") else "",
        fqdn="",
        expect=record.expect,
        tcp=where if kind == "tcp" else "",
        guest_agent=kind == "guest-agent",
    )
