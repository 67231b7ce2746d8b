# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which keys of a changed configuration file a running daemon can take over, and which it cannot.
Pure."""

from __future__ import annotations

from broker.config.sections import Config

#: Tables that are read at the start only, but for these keys; and such keys of other tables.
_FIXED_TABLES = ("host", "storage", "vm", "api")
_CHANGEABLE = {("vm", "on_host_shutdown"), ("vm", "admission"), ("storage", "unsigned")}
_FIXED_KEYS = (
    ("cluster", "id"),
    ("libvirt", "uri"),
    ("libvirt", "qemu_conf"),
    ("libvirt", "pid_dir"),
    ("daemon", "socket"),
    ("daemon", "state_dir"),
)


def needs_restart(old: Config, new: Config) -> list[str]:
    """The keys that differ and that a running daemon cannot take over."""
    keys: list[str] = []
    for table in _FIXED_TABLES:
        before, after = getattr(old, table), getattr(new, table)
        for name in before.__struct_fields__:
            if (table, name) not in _CHANGEABLE and getattr(before, name) != getattr(after, name):
                keys.append(_key(table, name))
    for table, name in _FIXED_KEYS:
        if getattr(getattr(old, table), name) != getattr(getattr(new, table), name):
            keys.append(_key(table, name))
    return keys


def refusal(path: str, keys: list[str]) -> str:
    """The error text for such keys."""
    return f"{path}: {', '.join(keys)} cannot change while the daemons run; restart them"


def in_force_by(keys: list[str]) -> str:
    """The command that puts a changed file in force. `keys`: those that need a restart."""
    return f"systemctl {'restart' if keys else 'reload'} ha-broker ha-agent"


def _key(table: str, name: str) -> str:
    return f"{table}.{name.replace('_', '-')}"
