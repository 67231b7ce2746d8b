# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a libvirt answers at an address."""

from __future__ import annotations

import libvirt


def ask_libvirt(uri: str) -> None:
    """Return where one answers, libvirtError where none does. Blocks, for minutes perhaps."""
    connection = libvirt.open(uri)
    try:
        connection.getLibVersion()
    finally:
        connection.close()
