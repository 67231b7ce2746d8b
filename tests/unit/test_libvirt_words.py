# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an error of libvirt says to a person."""

from __future__ import annotations

import libvirt
import pytest

from broker.vm.libvirt_words import LOOK, libvirt_sentence
from tests.fakes.libvirt_errors import libvirt_error

NO_SOCKET = "Failed to connect socket to '/run/libvirt/libvirt-sock'"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            libvirt_error(NO_SOCKET, libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC),
            f"libvirt: {NO_SOCKET}; {LOOK}",
        ),
        (
            libvirt_error("no memory", libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_QEMU),
            "libvirt: no memory",
        ),
        (libvirt_error("of no domain"), "libvirt: of no domain"),
    ],
)
def test_where_libvirt_cannot_be_reached_it_is_said_what_to_look_at(
    error: libvirt.libvirtError, said: str
) -> None:
    assert libvirt_sentence(error) == said
