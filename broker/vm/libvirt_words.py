# SPDX-License-Identifier: LGPL-2.1-or-later
"""An error of libvirt in words for a person."""

from __future__ import annotations

import libvirt

from broker.daemon.foreign import sentence
from broker.daemon.worker import Hung

#: What a person looks at first where there is no connection to libvirt.
LOOK = "does it run? systemctl status libvirtd virtqemud"


def libvirt_sentence(error: libvirt.libvirtError | Hung) -> str:
    """What libvirt said, and what to look at where it could not be reached: then the error is one
    of its own transport (VIR_FROM_RPC, libvirt/virterror.h)."""
    text = f"libvirt: {sentence(error)}"
    if isinstance(error, Hung) or error.get_error_domain() != libvirt.VIR_FROM_RPC:
        return text
    return f"{text}; {LOOK}"
