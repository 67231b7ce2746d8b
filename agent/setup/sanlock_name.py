# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fixed name of this host's sanlock, with which it takes its own id back at once after a boot
(broker/lockspace/rejoin.py): written to sanlock.conf, and compared with the leases on disk."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection
from pathlib import Path

import sanlock

from agent.setup.written import check_place, place, read_text
from agent.storage.watched import read_names
from agent.terminal.errors import CommandError
from agent.terminal.steps import Step
from broker.config.machine import system_uuid
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.lockspace.rejoin import own_name, own_names

_LINE = re.compile(r"[ \t]*our_host_name[ \t]*=[ \t]*(\S+)")
_DEFAULT = "/etc/sanlock/sanlock.conf"
RESTART_SECONDS_MAX = 60.0
#: How the name comes into use on a host that is in a lockspace already.
IN_USE = (
    "it counts once sanlock is restarted, which no host in a lockspace can do: ha-agent maintenance"
    " local --release-id, then systemctl restart sanlock, then ha-agent maintenance none"
)


def named_in(text: str) -> str:
    """The name in a sanlock.conf; "": none. Of several lines the last one counts."""
    found = [match.group(1) for match in map(_LINE.match, text.splitlines()) if match is not None]
    return found[-1] if found else ""


def machines_name(config: Config) -> str:
    """This machine's name for its sanlock; "": the machine has no UUID to make it from."""
    return own_name(system_uuid(config))


def sanlock_name_step(config: Config) -> Step:
    """Give sanlock a fixed name where it has none. An existing name is the administrator's."""
    path, name = Path(config.storage.sanlock_conf), machines_name(config)

    def look() -> str | None:
        text = read_text(path)
        if found := named_in(text):
            ours = found in own_names(system_uuid(config))
            return f"{path} names {found}" + ("" if ours else f", not this machine's own {name}")
        if not name:
            return f"{path} names none: this machine has no UUID of its own to make one from"
        check_place(path)
        return None

    def act() -> str:
        text = read_text(path)
        text += "" if text.endswith("\n") or not text else "\n"
        place(path, f"{text}our_host_name = {name}\n", 0o644)
        return f"{path} names {name}; {_in_use(path)}"

    return Step("sanlock-name", look, f"writing our_host_name = {name} to {path}", act)


def _in_use(path: Path) -> str:
    """Restart sanlock where no lease can depend on it; returns the result."""
    try:
        is_idle = not sanlock.get_lockspaces()
    except sanlock.SanlockException:
        return "it counts from sanlock's next start on"
    if not is_idle or str(path) != _DEFAULT or not Path("/run/systemd/system").is_dir():
        return IN_USE
    # Outside every lockspace no process can hold a lease.
    done = subprocess.run(
        ["systemctl", "restart", "sanlock.service"],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=RESTART_SECONDS_MAX,
    )
    if done.returncode != 0:
        raise CommandError(ExitCode.LOCKSPACE, f"systemctl restart sanlock: {done.stderr.strip()}")
    return "sanlock is restarted"


def names_here(config: Config) -> frozenset[str]:
    """The names under which this host's sanlock may take an id without waiting."""
    found = named_in(read_text(Path(config.storage.sanlock_conf)))
    return own_names(system_uuid(config)) | frozenset(filter(None, (found,)))


def twins(config: Config, own: Collection[int | None]) -> list[int]:
    """The other host ids whose leases carry the name of this host's sanlock. It would take such an
    id from a live host. `own`: this host's own ids."""
    names = names_here(config)
    return [
        host_id
        for host_id, lease in sorted(read_names(config.storage.leases).items())
        if lease.name in names and lease.timestamp and host_id not in own
    ]


def no_twin(config: Config, own: Collection[int | None]) -> str:
    """A sentence that there is no twin; CommandError where there is one."""
    for host_id in twins(config, own):
        raise CommandError(ExitCode.LOCKSPACE, "; ".join(twin(config, host_id)))
    return "no other host's lease has this host's name"


def twin(config: Config, host_id: int) -> tuple[str, str]:
    """The text about two machines with one name, and what to type."""
    return (
        f"the lease of host id {host_id} has the sanlock name of this machine: it is a copy of that"
        " host, or had that id itself and did not give it back",
        f"a copy: take our_host_name out of {config.storage.sanlock_conf}, rm /etc/machine-id,"
        f" systemd-machine-id-setup, reboot; else: ha-agent join with --host-id {host_id}",
    )
