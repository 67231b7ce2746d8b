# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds what else on this host acts on the VM, for `init` and `join`: it is reported, not
changed."""

from __future__ import annotations

from agent.terminal.steps import Done
from agent.vm import libvirt_guests
from broker.daemon.errors import why


def libvirt_guests_beside() -> list[Done]:
    """A warning where libvirt-guests saves or starts the VM; nothing where it does not."""
    try:
        text, fix = libvirt_guests.problem()
    except OSError as error:
        text, fix = f"its settings cannot be read: {why(error)}", "run it as root"
    return [Done("libvirt-guests", "warning", f"{text}; {fix}")] if text else []
