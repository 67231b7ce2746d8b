# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every duration the decisions know, in seconds, in one place.

What happens when the engine's host loses power (defaults, a fence device is configured):

    T+0.0   power is gone; the host's slot stands still
    T+0.6   its heir, which asks it four times a second, has no answer for half a second: it asks
            who owns the engine lease, and the dead host's fence device
    T+0.7   first "off"; the fence lease is taken
    T+1.7   power_reread later: second "off", read while the fence lease is held
    T+2     its slot has missed two beats: the dead host id is freed
    T+2.5   suspect_after its last slot: its peers no longer call it live; the VM is started
    T+2.8   QEMU runs; the page answers when the guest has booted

Without a cluster key no host asks over the network. Then the power is first read when the slot is
overdue or, by hosts that are not the heir, when the host is suspected.

What happens when it hangs instead, with its power on, at any io_timeout:

    T+0     it stands still: no slot, no answer, no renewal of its host id
    T+0.5   its kernel and the engine are asked, and answer nobody
    T+3     suspect_after: its power is asked, and reads on
    T+11.5  fence_after: slot, network, kernel and engine have been silent for so long
    +1.2    the fence lease is held, the power was read on once more: hard power off
    +2      "off" is read twice; its host id is freed and the VM is started, as above

Where its kernel does not count as a witness (evidence.hangs), its sanlock must be silent too: its
host id was last renewed 2.5 * io_timeout ago, T+10 to T+25 at io_timeout 10.

Without a fence device the start waits until sanlock calls the owner dead:
8 * io_timeout + watchdog_fire_timeout (sanlock's src/timeouts.h; 140 s at io_timeout 10).
"""

from __future__ import annotations

from dataclasses import dataclass

#: poweroff.target and reboot.target have JobTimeoutSec=30min, and so has our unit; what is left
#: of that is for the other services, libvirt-guests before all.
HOST_SHUTDOWN_MAX_S = 1500.0
#: Before any time a monotonic clock shows; finite, so that a state can be written as JSON.
NEVER_S = -1.0e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Durations in seconds; a relation that does not hold raises ValueError.

    `beat`: one turn of the daemons. `suspect_after`: a host whose slot has not changed for this
    long is suspected. `tie_follow`: how long each of several equal hosts lets the one before it try
    to start the VM. `takeover_follow`: how long each host lets the one before it try to take over
    from a dead host. `fence_after`: how long all witnesses of a host's life must be silent before
    the host is switched off. `power_reread`: the least time between two power readings that count.
    `power_off_patience`: how long a host may still read on after it was switched off.
    `power_on_retry`: the pause before a host is switched on once more. `fence_backoff`: the pause
    after a host was switched off; each further one within the hour doubles it. `takeover_retry`:
    the pause after a step of a takeover failed. `migrate_retry`: the pause after a failed
    migration. `host_shutdown_move`: how long a host that shuts down tries to migrate the VM away.
    `host_shutdown_grace`: how long the guest then has to shut down before its process is ended.
    `outside_interval`: how often the best standby asks the VM as its users do. `isolation_after`:
    how long nobody outside must have reached the VM before a host that is cut off gives it away.
    `isolation_grace`: how long the guest then has to shut down. `force_stop_patience`: how long
    ending a sick VM's process may fail before its host asks the others to switch it off.
    `agent_dead_after`: how long a host's agent must be dead, and its VM sick, before the others
    switch that host off. `storage_patience`: how long a host must be the only one without the
    storage before it ends its sick VM, so that another host may run it. Each of these last three
    may be 0: then the host never does so.
    """

    beat: float = 1.0
    suspect_after: float = 3.0
    fence_after: float = 10.0
    tie_follow: float = 2.0
    takeover_follow: float = 10.0
    power_reread: float = 1.0
    power_off_patience: float = 10.0
    power_on_retry: float = 60.0
    fence_backoff: float = 60.0
    takeover_retry: float = 5.0
    migrate_retry: float = 60.0
    move_dwell: float = 30.0
    engine_starting: float = 600.0
    bad_health: float = 300.0
    stop_grace: float = 300.0
    host_shutdown_move: float = 300.0
    host_shutdown_grace: float = 120.0
    maybe_away: float = 40.0
    unexpected_down: float = 560.0
    retry_expiry: float = 600.0
    load_window: float = 900.0
    outside_interval: float = 2.0
    isolation_after: float = 15.0
    isolation_grace: float = 20.0
    force_stop_patience: float = 60.0
    agent_dead_after: float = 900.0
    storage_patience: float = 20.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value == 0 and name in _MAY_BE_OFF:
                continue
            if not 0 < value <= 86_400:
                raise ValueError(
                    f"{name.replace('_', '-')} is {value}: must be above 0 and at most 86400 s"
                )
        # A peer that writes every beat must be able to miss one without being suspected.
        if self.suspect_after < 2 * self.beat:
            raise ValueError("suspect-after must be at least two beats")
        if self.fence_after < self.suspect_after:
            raise ValueError("fence-after must not be shorter than suspect-after")
        if self.host_shutdown_move + self.host_shutdown_grace > HOST_SHUTDOWN_MAX_S:
            raise ValueError(
                "host-shutdown-move and host-shutdown-grace together must not be above "
                f"{HOST_SHUTDOWN_MAX_S:g} s: systemd ends a shutdown after 30 minutes"
            )
        # A single lost question must not look like a silence of isolation_after.
        if self.isolation_after < 2 * self.outside_interval:
            raise ValueError("isolation-after must be at least twice outside-interval")

    @property
    def outside_seldom(self) -> float:
        """How often the other standbys ask the VM while nobody misses an answer: often enough that
        the age of their last answer never counts as silence."""
        return max(
            self.outside_interval,
            min(SELDOM_INTERVALS * self.outside_interval, self.isolation_after / 2),
        )


#: Durations that may be 0, which means "never".
_MAY_BE_OFF = frozenset({"force_stop_patience", "agent_dead_after", "storage_patience"})
#: The other standbys ask the VM this many times less often than the best one.
SELDOM_INTERVALS = 6
#: After more failed starts than this within retry_expiry the host's score is 0.
START_RETRIES_MAX = 3
