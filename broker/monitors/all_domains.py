# SPDX-License-Identifier: LGPL-2.1-or-later
"""One look at all domains of this host, whoever made them: which are there, in which state, and how
much memory each of them may take. One question to libvirt, however many there are; it waits for no
QEMU."""

from __future__ import annotations

from dataclasses import dataclass

import libvirt

from broker.monitors.budget import Committed, wants_huge_pages

_STATS = libvirt.VIR_DOMAIN_STATS_STATE | libvirt.VIR_DOMAIN_STATS_BALLOON
#: A domain whose QEMU does not answer is not waited for (libvirt-domain.h).
_NOWAIT = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
#: virDomainGetID of a domain that has no process.
_NO_ID = -1


@dataclass(frozen=True, slots=True)
class DomainSeen:
    """A domain that libvirt knows: its state and reason there. `committed`: what its process may
    take of this host; None: it has none."""

    state: int
    reason: int
    committed: Committed | None = None


class AllDomains:
    """`look` blocks, so it belongs into a thread."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._connection: libvirt.virConnect | None = None
        #: Whether a domain's memory comes from huge pages, by UUID and number of its process.
        self._huge: dict[tuple[str, int], bool] = {}

    def look(self) -> dict[str, DomainSeen]:
        """All domains by UUID; libvirtError."""
        try:
            if self._connection is None:
                self._connection = libvirt.open(self._uri)
            answers = self._connection.getAllDomainStats(_STATS, _NOWAIT)
            running: dict[tuple[str, int], bool] = {}
            found = {}
            for domain, stats in answers:
                uuid = domain.UUIDString()
                state, reason = stats["state.state"], stats["state.reason"]
                committed = None
                if domain.ID() != _NO_ID:
                    committed = self._committed(uuid, domain, stats, running)
                found[uuid] = DomainSeen(state, reason, committed)
        except libvirt.libvirtError:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            raise
        self._huge = running
        return found

    def _committed(
        self,
        uuid: str,
        domain: libvirt.virDomain,
        stats: dict[str, int],
        running: dict[tuple[str, int], bool],
    ) -> Committed | None:
        key = uuid, domain.ID()
        try:
            huge = self._huge.get(key)
            running[key] = wants_huge_pages(domain.XMLDesc(0)) if huge is None else huge
            # libvirt's test driver has no statistics of memory.
            most_kb = stats.get("balloon.maximum") or domain.info()[1]
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            return None  # it has ended meanwhile
        return Committed(most_kb / 1024, running[key])
