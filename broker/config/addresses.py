# SPDX-License-Identifier: LGPL-2.1-or-later
"""Addresses: `host:port` and `[v6]:port`, where a broker listens and where others find it; and a
host's name as a part of a URI. Pure."""

from __future__ import annotations

import functools
import ipaddress
import re

#: How many addresses a host may advertise; the others of a longer list are ignored.
ADDRESSES_MAX = 4
#: The length of the longest DNS name in text form (RFC 1035) with its port.
ADDRESS_CHARS_MAX = 260

#: The default port of dashboard, metrics and API.
API_PORT = 8765

_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})")


#: A host name of RFC 1123, 2.1, and the underscore, which is in use and which resolvers accept.
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")


def in_uri(name: str) -> str:
    """A host's name or address in the form in which it replaces `{host}` in a URI (RFC 3986,
    3.2.2): without the root's dot, an IPv6 address in brackets. Empty where it has no such form:
    no part of a name may change the meaning of the URI."""
    bare = name.removesuffix(".")
    if _HOST_NAME.fullmatch(bare):
        return bare
    address = name.removeprefix("[").removesuffix("]")
    try:
        return f"[{ipaddress.IPv6Address(address)}]" if "%" not in address else ""
    except ValueError:
        return ""


def is_over_tls(uri: str) -> bool:
    """Whether a libvirt URI asks for TLS (qemu+tls://)."""
    return uri.partition("://")[0].lower().endswith("+tls")


def split(address: str) -> tuple[str, int]:
    """Host (a v6 address without its brackets) and port; ValueError where it is no such address."""
    found = _ADDRESS.fullmatch(address) if len(address) <= ADDRESS_CHARS_MAX else None
    if found is None or not 1 <= int(found[3]) <= 65_535:
        raise ValueError(f"{address[:ADDRESS_CHARS_MAX]!r} is not host:port or [v6]:port")
    if found[1]:
        ipaddress.IPv6Address(found[1])
    return found[1] or found[2], int(found[3])


def is_loopback(address: str) -> bool:
    """Whether only this host itself can reach it."""
    host, _ = split(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def loopback_beside(listen: tuple[str, ...]) -> tuple[str, ...]:
    """A further address for a server that listens on `listen`, so that this host itself reaches it:
    127.0.0.1 at its first port, or at API_PORT. Empty where the loopback is among them already."""
    if any(is_loopback(one) or split(one)[0] == "0.0.0.0" for one in listen):  # noqa: S104
        return ()
    port = split(listen[0])[1] if listen else API_PORT
    return (f"127.0.0.1:{port}",)


@functools.lru_cache(4096)
def advertised(text: str) -> tuple[str, ...]:
    """The addresses that a host published; foreign text: what is no address is left out."""
    good = []
    for address in text.split(",")[:ADDRESSES_MAX]:
        try:
            split(address)
        except ValueError:
            continue
        good.append(address)
    return tuple(dict.fromkeys(good))


def at_port(places: tuple[str, ...], port: int) -> tuple[str, ...]:
    """The addresses that other hosts can reach, each with this port instead of its own."""
    hosts = (split(place)[0] for place in places if not is_loopback(place))
    found = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts)
    return tuple(dict.fromkeys(found))


def to_advertise(listen: tuple[str, ...], host_name: str) -> tuple[str, ...]:
    """The addresses at which others reach a server that listens on `listen`.

    A specific address is advertised as it is, so that the others need no name service; instead of
    "all addresses" the host's name is advertised.
    """
    found = []
    for address in listen:
        host, port = split(address)
        if is_loopback(address):
            continue
        found.append(f"{host_name}:{port}" if host in ("0.0.0.0", "::") else address)  # noqa: S104
    return tuple(dict.fromkeys(found))[:ADDRESSES_MAX]
