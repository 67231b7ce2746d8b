# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the cluster was never given: fence devices, heartbeats, a way to migrate. A takeover that
takes minutes instead of seconds must not come as a surprise."""

from __future__ import annotations

from collections.abc import Mapping

from broker.config.in_force import InForce
from broker.peers.asker import Word
from broker.peers.table import Table
from broker.wire.lacking import LackingStatus
from broker.wire.status import HostStatus
from scoring.hosts.liveness import Liveness


def lacking(in_force: InForce, table: Table, hosts: Mapping[int, HostStatus]) -> LackingStatus:
    """By this host's configuration, which all hosts must have alike, and by what they publish."""
    own, config = in_force.host_id, in_force.config
    members = [
        host_id
        for host_id, host in sorted(hosts.items())
        if host_id == own or not (host.not_counted or host.stopped)
    ]
    if len(members) < 2:
        return LackingStatus()
    with_device = {device.host for device in config.fence.device}
    silent = (
        []
        if table.heartbeats.key is None
        else [
            host_id
            for host_id in members
            if (
                not (config.heartbeat_advertised() or config.advertised())
                if host_id == own
                else hosts[host_id].liveness == Liveness.LIVE.value
                and table.heartbeats.word(host_id) is Word.NOT_ADVERTISED
            )
        ]
    )
    return LackingStatus(
        tuple(
            host_id for host_id in members if config.fence.expected and host_id not in with_device
        ),
        tuple(silent),
        () if config.libvirt.migration_uri else (own,),
    )
