# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks whether a libvirt answers at an address."""

from __future__ import annotations

import libvirt


def ask_libvirt(uri: str) -> None:
    """Return where libvirt answers, libvirtError where it does not. May block for minutes."""
    connection = libvirt.open(uri)
    try:
        connection.getLibVersion()
    finally:
        connection.close()
