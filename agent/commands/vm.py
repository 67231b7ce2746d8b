# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent migrate` and `ha-agent vm …`: orders of an operator to the agent on this host."""

from __future__ import annotations

import os
import sys
import time

import msgspec

from agent.commands import why_vm
from agent.commands.other_host import OtherHost, host_named, other_host
from agent.status.vms_text import engine_name
from agent.terminal import in_json
from agent.terminal.columns import say
from agent.terminal.errors import CommandError
from broker.client.ask import ask
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.wire.status import HostStatus, NewOrder, OrderStatus, Status
from broker.wire.vms import VmEntry
from scoring.observation import OrderKind
from scoring.vm_facts import ENGINE, THE_VM, Obstacle

POLL_S = 0.2
#: Another host is asked over the network.
POLL_OTHER_S = 1.0
#: A guest's boot, or the migration of a large one, takes its time; the agent's own deadlines are
#: shorter than these.
PATIENCE_S = {OrderKind.MIGRATE: 3600.0, OrderKind.START: 120.0}
PATIENCE_OTHERS_S = 60.0
_OPEN = ("waiting", "under-way")


def migrate(
    config: Config,
    to: str | None,
    cancel: bool,
    as_json: bool,
    away_from: str | None = None,
    name: str | None = None,
) -> int:
    """Move the VM away from this host, or from `away_from`, or cancel a move there. `name`: of a VM
    of the registry, wherever it is; None: the engine. Raises as `ask` and `other_host` do."""
    if name is not None and (one := _named(config, name)).number != ENGINE:
        target = None if to is None else host_named(_status(config), to, "--to").host_id
        if target is not None and one.host == target and not cancel:
            text = f"{one.name} runs on {one.hostname} already"
            raise CommandError(ExitCode.REFUSED, text)
        kind = OrderKind.CANCEL if cancel else OrderKind.MIGRATE
        return _give_about(config, one, kind, None if cancel else target, as_json, away_from)
    other = other_host(config, away_from)
    status = _status(config)
    name = engine_name(status)
    if cancel:
        return _give(config, NewOrder(OrderKind.CANCEL), as_json, other, name)
    target = None
    if to is not None:
        host = host_named(status, to, "--to")
        _check_fit(host)
        target = host.host_id
    return _give(config, NewOrder(OrderKind.MIGRATE, target), as_json, other, name)


def vm(
    config: Config,
    what: str,
    yes: bool,
    as_json: bool,
    host: str | None = None,
    name: str | None = None,
) -> int:
    """Start, shut down or end the VM here, or on `host`, or open its console. `name`: as for
    `migrate`. Raises as `ask` and `other_host` do."""
    if what == "console":
        return _console(config)
    kind = OrderKind(what)
    if name is not None and (one := _named(config, name)).number != ENGINE:
        _warn(
            _status(config), yes, one.name, f", or have it stay down: ha-agent vm stop {one.name}"
        )
        return _give_about(config, one, kind, None, as_json, host)
    other = other_host(config, host)
    status = _status(config)
    if kind is not OrderKind.START:
        _warn(status, yes, engine_name(status))
    return _give(config, NewOrder(kind), as_json, other, engine_name(status))


def _status(config: Config) -> Status:
    return ask(config.daemon.socket, "GET", "/v1/status", Status)


#: Penalties that forbid a host to receive the VM at any score, and the words for each.
_UNFIT = {
    "memory": "has not the memory",
    "lock-driver": "would run it without its lease",
    **{obstacle.value: "cannot run it" for obstacle in Obstacle},
}


def _check_fit(host: HostStatus) -> None:
    for penalty in host.penalties:
        if penalty.name in _UNFIT:
            text = f"{host.hostname} {_UNFIT[penalty.name]}: {penalty.why}"
            raise CommandError(ExitCode.REFUSED, text)


def _named(config: Config, name: str) -> VmEntry:
    """A VM by its name or number; the engine's domain is the engine too."""
    status = _status(config)
    return why_vm.found(status, "1" if name == config.vm.name and status.vms else name)


def _give_about(
    config: Config,
    one: VmEntry,
    kind: OrderKind,
    target: int | None,
    as_json: bool,
    host: str | None,
) -> int:
    """Order something about a VM of the registry on the host that has it, or on `host`."""
    status = _status(config)
    if host is None and one.host is None:
        where = "is up on no host" if one.up is False else "is on no host that is known"
        raise CommandError(ExitCode.REFUSED, f"{one.name} {where} (ha-agent why {one.name})")
    is_here = host is None and one.host == status.host_id
    other = None if is_here else other_host(config, host or str(one.host))
    return _give(config, NewOrder(kind, target, one.number), as_json, other, one.name)


def _words(text: str, name: str) -> str:
    """The answer to an order about the VM `name`, with that name: an agent of an earlier version
    calls every VM "the VM"."""
    if name == THE_VM:
        return text
    text = text.replace(THE_VM, name)
    return text if name in text else f"{name}: {text}"


def _warn(status: Status, yes: bool, name: str, instead: str = "") -> None:
    """Warn that the cluster restarts a VM that was stopped by hand, unless maintenance is set."""
    if status.global_maintenance or yes:
        return
    text = (
        f"without global maintenance the cluster starts {name} again, here or"
        " elsewhere; "
        f"set it first (ha-agent maintenance global){instead}"
    )
    if not sys.stdin.isatty():
        raise CommandError(ExitCode.REFUSED, f"{text}, or give --yes")
    say(f"{text}.")
    if input("Do it all the same? [y/N] ").strip().lower() not in ("y", "yes"):
        raise CommandError(ExitCode.REFUSED, "nothing was done")


def _give(
    config: Config,
    order: NewOrder,
    as_json: bool,
    other: OtherHost | None,
    name: str,
) -> int:
    """Place the order, with the agent of `other` where that is given, and wait for its answer;
    show progress on a terminal. `name`: what a sentence calls the VM."""
    path = config.daemon.socket

    def look(number: int) -> OrderStatus:
        return ask(path, "GET", f"/v1/orders/{number}", OrderStatus)

    if other is None:
        placed = ask(path, "POST", "/v1/orders", OrderStatus, order)
    else:
        placed, look = other.place(order), other.look
    until_s = time.monotonic() + PATIENCE_S.get(order.kind, PATIENCE_OTHERS_S)
    progress = Progress(quiet=as_json or not sys.stderr.isatty())
    while placed.state in _OPEN and time.monotonic() < until_s:
        time.sleep(POLL_S if other is None else POLL_OTHER_S)
        progress.tick(path, order.kind)
        placed = look(placed.number)
    progress.end()
    text = _words(placed.text, name)
    shown = msgspec.to_builtins(placed)
    if placed.state == "done":
        if as_json:
            in_json.show(shown, indent=None)
        else:
            say(text)
        return ExitCode.OK
    if placed.state in _OPEN:
        slow = f"order {placed.number} is still under way; ha-agent --status shows its progress"
        raise CommandError(ExitCode.FAILED, slow, shown)
    code = ExitCode.REFUSED if placed.state == "refused" else ExitCode.FAILED
    raise CommandError(code, text, shown)


class Progress:
    """A line on standard error that is overwritten once a second."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._began_s = self._shown_s = time.monotonic()
        self._has_line = False

    def tick(self, path: str, kind: OrderKind) -> None:
        """Show the progress, if a second has passed."""
        now_s = time.monotonic()
        if self._quiet or now_s - self._shown_s < 1.0:
            return
        self._shown_s = now_s
        text = f"{kind.value}: {now_s - self._began_s:.0f} s"
        if kind is OrderKind.MIGRATE:
            migration = ask(path, "GET", "/v1/status", Status).migration
            if migration is not None:
                left = migration.remaining / 2**20
                text += f", {migration.percent} % sent, {left:.0f} MiB left"
        print(f"\r{text:<70}", end="", file=sys.stderr, flush=True)
        self._has_line = True

    def end(self) -> None:
        """Clear the line."""
        if self._has_line:
            print(f"\r{'':<70}\r", end="", file=sys.stderr, flush=True)


def _console(config: Config) -> int:
    """Replace this process by virsh: a console needs a terminal of its own."""
    status = _status(config)
    if status.engine.host != status.host_id:
        name = engine_name(status)
        where = f"{name} is not up"
        if status.engine.up is None:
            where = f"whether {name} is up is not known ({status.engine.known})"
        elif status.engine.up:
            where = f"{name} runs on {status.engine.hostname}"
        raise CommandError(ExitCode.REFUSED, f"{where}: no console of it here")
    argv = ["virsh", "-c", config.libvirt.uri, "console", config.vm.name]
    try:
        os.execvp(argv[0], argv)  # noqa: S606  (no shell)
    except OSError as error:
        raise CommandError(ExitCode.FAILED, f"virsh: {error.strerror}; install it") from None
