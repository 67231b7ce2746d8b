# SPDX-License-Identifier: LGPL-2.1-or-later
"""Errors as libvirt-python makes them."""

from __future__ import annotations

import libvirt


def libvirt_error(text: str, code: int | None = None, domain: int = 0) -> libvirt.libvirtError:
    """An error with these words, and with `code` and `domain` where a code is given.

    libvirt-python takes the words of the thread's last error, if there was one, instead of those
    that it is given: any test that has run before in this process could change them."""
    libvirt.virResetLastError()
    made = libvirt.libvirtError(text)
    if code is not None:
        made.err = (code, domain, text, 2, None, None, None, -1, -1)
    return made
