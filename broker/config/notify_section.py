# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tables of `[notify]`: the channels, and the rules that say which notices go out."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from broker.config.patterns import ALL
from broker.config.values import AbsolutePath, Name, Seconds, Section
from broker.wire.kinds import Kind

SendTimeout = Annotated[float, Meta(ge=0.1, le=60)]
SeverityWord = Annotated[str, Meta(pattern="^(info|warning|critical)$")]


class SmtpSection(Section, frozen=True, kw_only=True):
    """Mail. `server` empty: none is sent. `port` 0: the usual one of `security`."""

    server: str = ""
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    helo: Annotated[str, Meta(pattern=r"^([A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+)?$", max_length=253)] = ""
    security: Annotated[str, Meta(pattern="^(starttls|tls|none)$")] = "starttls"
    ca_file: AbsolutePath | None = None
    username: str = ""
    sender: Name = "root@localhost"
    recipients: tuple[Name, ...] = ("root@localhost",)
    timeout: SendTimeout = 20.0
    severity: SeverityWord = "info"


class WebhookSection(Section, frozen=True, kw_only=True):
    """A signed POST to `url`; empty: none is sent."""

    url: str = ""
    ca_file: AbsolutePath | None = None
    timeout: SendTimeout = 10.0
    severity: SeverityWord = "info"


class CommandSection(Section, frozen=True, kw_only=True):
    """A command, its arguments one by one, without a shell; empty: none is run."""

    argv: tuple[Name, ...] = ()
    timeout: SendTimeout = 10.0
    severity: SeverityWord = "info"


class NotifyRulesSection(Section, frozen=True, kw_only=True):
    """For each kind of notice a regular expression, searched for in its detail; empty: none."""

    state_transition: str = "maintenance|start|stop|up|down"
    failover_started: str = ALL
    failover_done: str = ALL
    fence_attempted: str = ALL
    fence_proven: str = ALL
    fence_failed: str = ALL
    fence_held_back: str = ALL
    fence_asked: str = ALL
    fence_switched_on: str = ALL
    was_switched_off: str = ALL
    fence_path_unproven: str = ALL
    fence_path_proven: str = ALL
    lease_budget_low: str = ALL
    lease_budget_good: str = ALL
    maintenance_ends_soon: str = ALL
    maintenance_over: str = ALL
    config_refused: str = ALL
    vm_unprotected: str = ALL
    start_failed: str = ALL
    vm_differs: str = ALL
    vm_as_recorded: str = ALL
    start_held_back: str = ALL
    vm_paused: str = ALL
    vm_outdated: str = ALL
    memory_image: str = ALL
    autostart: str = ALL
    leftover_vm: str = ALL
    never_healthy: str = ALL
    cannot_start: str = ALL
    can_start: str = ALL
    engine_unknown: str = ALL
    engine_known: str = ALL
    other_storage: str = ALL
    same_storage: str = ALL
    slot_not_counted: str = ALL
    isolated: str = ALL
    isolation_held_back: str = ALL
    drain_stuck: str = ALL
    peer_silent: str = ALL
    peer_stopped: str = ALL
    peer_back: str = ALL
    agent_silent: str = ALL
    agent_back: str = ALL
    vm_up: str = ALL
    vm_down: str = ALL
    vm_without_place: str = ALL
    vm_placed: str = ALL
    n_plus_1_short: str = ALL
    n_plus_1_good: str = ALL

    def patterns(self) -> dict[Kind, str]:
        """The expressions by kind."""
        given = msgspec.structs.asdict(self)
        return {Kind(name.replace("_", "-")): pattern for name, pattern in given.items()}


class NotifySection(Section, frozen=True, kw_only=True):
    """`repeat-after`: how long a repeated notice is held back, seconds."""

    templates: AbsolutePath = "/etc/ha-agent/templates"
    repeat_after: Seconds = 60.0
    smtp: SmtpSection = SmtpSection()
    webhook: WebhookSection = WebhookSection()
    command: CommandSection = CommandSection()
    rules: NotifyRulesSection = NotifyRulesSection()
