# SPDX-License-Identifier: LGPL-2.1-or-later
"""A filter that the kernel applies to the datagrams of a socket before they are queued there.

Anybody who can reach a port can fill its queue: a few datagrams of 60 KB are enough, and what a
member sends then is lost. A datagram that cannot be a question is dropped before it takes a place.
The filter is classic BPF (Linux, Documentation/networking/filter.rst); it needs no privilege.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from asyncio.trsock import TransportSocket

_UDP_HEADER_BYTES = 8
#: asm-generic/socket.h, linux/sock_diag.h (SK_MEMINFO_DROPS is the last of nine numbers).
_SO_ATTACH_FILTER, _SO_MEMINFO, _MEMINFO_NUMBERS = 26, 55, 9
#: linux/bpf_common.h: load the length; load a word; jump if equal; return.
_LOAD_LENGTH, _LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x80, 0x20, 0x15, 0x06
_WHOLE = 0xFFFFFFFF


def accept_only(sock: socket.socket, payload_bytes: int, first: bytes) -> None:
    """Drop datagrams of another length, or with other bytes at their beginning; OSError.

    `first`: four bytes. Datagrams that were queued before stay.
    """
    (word,) = struct.unpack("!I", first)
    program = (
        (_LOAD_LENGTH, 0, 0, 0),
        (_JUMP_EQUAL, 0, 3, _UDP_HEADER_BYTES + payload_bytes),
        (_LOAD_WORD, 0, 0, _UDP_HEADER_BYTES),
        (_JUMP_EQUAL, 0, 1, word),
        (_RETURN, 0, 0, _WHOLE),
        (_RETURN, 0, 0, 0),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    head = struct.pack("HP", len(program), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, head)


def dropped(sock: socket.socket | TransportSocket) -> int:
    """The number of datagrams that the kernel dropped: by a filter, or for lack of room;
    OSError."""
    size = 4 * _MEMINFO_NUMBERS
    numbers = struct.unpack(
        f"={_MEMINFO_NUMBERS}I", sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, size)
    )
    return int(numbers[-1])
