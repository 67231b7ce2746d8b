# SPDX-License-Identifier: LGPL-2.1-or-later
"""The answers that a set-up needs: from flags, from an answers file, from a person, or the default,
in this order.

A person is asked only on a terminal and without `--yes`.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
import socket
import struct
import sys
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent.setup.options import OPTIONS
from agent.terminal.errors import CommandError
from broker.config.addresses import API_PORT
from broker.config.explain import explain
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign_toml import tables

#: Addresses for documentation (RFC 5737, RFC 3849): the way to them is the way to anywhere.
FAR_AWAY = ("192.0.2.1", "2001:db8::1")
# This thread's network is the process's but in a test.
_ROUTES, _ANYWHERE = Path("/proc/thread-self/net/route"), "00000000"
_ROUTES_6 = Path("/proc/thread-self/net/ipv6_route")
Text = Annotated[str, Meta(max_length=4096)]


class Answers(Struct, forbid_unknown_fields=True, rename="kebab", kw_only=True):
    """The keys of an answers file; None: no answer. docs/quickstart.md describes each."""

    storage: Text | None = None
    local: bool | None = None
    whiteboard: Text | None = None
    leases: Text | None = None
    registry: Text | None = None
    vms: int | None = None
    io_timeout: int | None = None
    domain: Text | None = None
    cluster: Text | None = None
    host_id: int | None = None
    name: Text | None = None
    listen: Text | None = None
    bridge: Text | None = None
    network_targets: tuple[Text, ...] | None = None
    health_url: Text | None = None
    health_expect: Text | None = None
    migration_uri: Text | None = None
    migration_data_uri: Text | None = None
    tls: Annotated[str, Meta(pattern="^(own|site|ssh)$")] | None = None


def answers_of(arguments: argparse.Namespace) -> Answers:
    """The answers of the file, with flags preferred; CommandError where they do not fit."""
    found = read_answers(arguments.answers) if arguments.answers else Answers()
    for name in Answers.__struct_fields__:
        value = getattr(arguments, name, None)
        if value is not None:
            if name == "network_targets":
                value = tuple(part.strip() for part in value.split(",") if part.strip())
            setattr(found, name, value)
    return found


def read_answers(path: str) -> Answers:
    """The answers in a file; CommandError names the file and the key."""
    try:
        return msgspec.convert(tables(Path(path).read_text()), Answers)
    except OSError as error:
        raise CommandError(ExitCode.FILE, f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CommandError(ExitCode.USAGE, f"{path}: is not TOML: {error}") from None
    except msgspec.ValidationError as error:
        keys = ", ".join(OPTIONS)
        text = explain(str(error), Answers)
        raise CommandError(ExitCode.USAGE, f"{path}: {text}; its keys are {keys}") from None


class Asker:
    """Asks a person, where there is a terminal."""

    def __init__(self, yes: bool, as_json: bool) -> None:
        self._talks = not yes and not as_json and sys.stdin.isatty()

    def ask(self, name: str, question: str, default: str | None) -> str:
        """The answer, or the default if no person is asked; CommandError if there is no default."""
        while self._talks:
            shown = f" [{default}]" if default else ""
            said = input(f"{question}{shown}: ").strip()
            if said or default is not None:
                return said or default or ""
            print("an answer is needed")
        if default is None:
            raise CommandError(
                ExitCode.USAGE, f"--{name} is missing ({OPTIONS[name]}); or in --answers FILE"
            )
        return default

    def confirm(self, question: str) -> None:
        """Ask for a confirmation, CommandError without it; if no person is asked, it is given."""
        if self._talks and input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
            raise CommandError(ExitCode.REFUSED, "nothing was done")


def none_or(text: str) -> str:
    """The text, but empty for `-`."""
    return "" if text == "-" else text


def gateway() -> str:
    """The default gateway, of IPv4 or else of IPv6; empty where there is none, or none that can be
    named without an interface."""
    return _gateway_4() or _gateway_6()


def _gateway_6() -> str:
    """IPv6's, from /proc/net/ipv6_route: destination, length, source, length, next hop, …"""
    try:
        lines = _ROUTES_6.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        fields = line.split()
        if len(fields) > 4 and fields[1] == "00" and re.fullmatch("[0-9a-f]{32}", fields[4]):
            found = ipaddress.IPv6Address(bytes.fromhex(fields[4]))
            if not found.is_unspecified and not found.is_link_local:
                return str(found)
    return ""


def _gateway_4() -> str:
    """IPv4's, from /proc/net/route (proc(5))."""
    try:
        lines = _ROUTES.read_text().splitlines()[1:]
    except OSError:
        return ""
    for line in lines:
        fields = line.split()
        is_default = len(fields) > 2 and fields[1] == _ANYWHERE != fields[2]
        if is_default and re.fullmatch("[0-9A-F]{8}", fields[2]):
            return socket.inet_ntoa(struct.pack("<I", int(fields[2], 16)))
    return ""


def own_address(towards: str) -> str:
    """This host's address on the way to another one; empty where there is no way. Sends nothing."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(towards, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def listen_at(address: str, port: int = API_PORT) -> str:
    """`host:port` or `[v6]:port`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
