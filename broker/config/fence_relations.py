# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks whether fence devices make sense, each alone and all together. Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from broker.config.sections import FenceDevice

#: Keys of a fence device, by the only type that has them.
_TYPE_KEYS = {
    "ipmi": ("privilege",),
    "redfish": ("system", "ca_file", "fingerprint", "verify"),
    "agent": ("agent", "options"),
}
#: The types of a device, and the port of those that have one.
TYPES = tuple(_TYPE_KEYS)
PORTS = {"ipmi": 623, "redfish": 443}
#: Options of a fence agent that other keys set, or that this program sets (FenceAgentAPI), with
#: their older names.
_TAKEN_OPTIONS = {
    "action": "not for the configuration to say",
    **dict.fromkeys(("ip", "ipaddr"), "the key address"),
    "ipport": "the key port",
    **dict.fromkeys(("username", "login"), "the key username"),
}
_SECRET_OPTION = re.compile(r"(passw|community|secret|token)(?!.*script)", re.IGNORECASE)


def check_devices(devices: tuple[FenceDevice, ...]) -> None:
    """ValueError where devices, or the keys of one, do not fit together."""
    levels: dict[int, set[int]] = {}
    keys: set[str] = set()
    places: dict[tuple[str, str], list[FenceDevice]] = {}
    for device in devices:
        problem = _device_problem(device)
        if problem:
            raise ValueError(f"{device.title}: {problem}")
        if device.key in keys:
            raise ValueError(
                f"host {device.host} has two named {device.name!r}; give each a name of its own"
            )
        keys.add(device.key)
        levels.setdefault(device.host, set()).add(device.level)
        plug = device.system or str(device.options.get("plug", device.options.get("port", "")))
        place = (_plain_address(device.address) or f"{device.agent} {device.options}", plug)
        for other in places.setdefault(place, []):
            if None in (device.port_used, other.port_used) or device.port_used == other.port_used:
                whom = "two hosts" if device.host != other.host else f"host {device.host} twice"
                raise ValueError(
                    f"{device.title} and {other.title} are the same device; it stands for {whom}"
                )
        places[place].append(device)
    for host, numbers in levels.items():
        if max(numbers) != len(numbers):
            raise ValueError(
                f"host {host} has the levels {sorted(numbers)}; they must be 1, 2, … without a gap"
            )


def _device_problem(device: FenceDevice) -> str:
    """What is wrong with one fence device; empty: nothing."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(device)}
    for kind, names in _TYPE_KEYS.items():
        for name in names if kind != device.type else ():
            if getattr(device, name) not in (defaults[name], {}):
                return f"{name.replace('_', '-')} is for type {kind}"
    if device.type != "agent" and not device.address:
        return "address is missing"
    if device.fingerprint and device.ca_file:
        return "ca-file and fingerprint exclude each other"
    if not device.verify and (device.fingerprint or device.ca_file):
        return "verify = false contradicts ca-file and fingerprint"
    if device.type != "agent":
        return ""
    if not device.agent:
        return "agent is missing: the program, such as fence_apc"
    if device.identity != "trusted":
        return 'a fence agent cannot read the machine\'s UUID; if you know it, identity = "trusted"'
    for name, value in device.options.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            return f"options: {name!r} is no name of an option"
        if name in _TAKEN_OPTIONS:
            return f"options.{name}: {_TAKEN_OPTIONS[name]}"
        if _SECRET_OPTION.search(name):
            return f"options.{name}: belongs into the secrets file"
        if not str(value).isprintable():
            return f"options.{name}: holds what cannot be printed"
    return ""


def _plain_address(address: str) -> str:
    """The address in its canonical spelling."""
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address.rstrip(".").lower()
