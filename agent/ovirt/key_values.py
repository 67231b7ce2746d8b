# SPDX-License-Identifier: LGPL-2.1-or-later
"""oVirt's `key=value` files: hosted-engine.conf, and vm.conf with its devices. Pure."""

from __future__ import annotations

from collections.abc import Mapping

#: Deeper than any such file; deeper groups are ignored.
_DEPTH_MAX = 8


def key_values(text: str) -> tuple[dict[str, str], list[str]]:
    """Values by key, of repeated keys the last; and the values of all `devices` lines, in order."""
    values: dict[str, str] = {}
    devices = []
    for line in text.splitlines():
        key, sign, value = line.strip().partition("=")
        if not sign or key.startswith("#"):
            continue
        if key.strip() == "devices":
            devices.append(value.strip())
        else:
            values[key.strip()] = value.strip().strip('"')
    return values, devices


def device(text: str) -> dict[str, str]:
    """A device's fields: `{index:0,iface:virtio,address:{bus:0x00, type:pci},...}`; those of a
    nested group under its name and a dot. Malformed parts are left out."""
    found: dict[str, str] = {}
    _collect(text.strip(), "", found, 0)
    return found


def _collect(text: str, above: str, found: dict[str, str], depth: int) -> None:
    if depth > _DEPTH_MAX or not (text.startswith("{") and text.endswith("}")):
        return
    for part in _parts(text[1:-1]):
        key, sign, value = part.partition(":")
        if not sign or "{" in key or "}" in key:
            continue
        name, value = above + key.strip(), value.strip()
        if value.startswith("{"):
            _collect(value, f"{name}.", found, depth + 1)
        else:
            found[name] = value


def _parts(text: str) -> list[str]:
    """Split at the commas outside inner braces."""
    parts, depth, start = [], 0, 0
    for place, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def number(values: Mapping[str, str], key: str, default: int = 0) -> int:
    """A whole number, or the default where the value is none."""
    text = values.get(key, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default
