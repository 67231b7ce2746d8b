# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt-guests: the service that saves or shuts down a host's VMs at its shutdown, and starts
them at its boot. `init`, `join` and `doctor` check it."""

from __future__ import annotations

import shlex
from pathlib import Path

#: The files of its settings in distributions (Debian, EL).
PLACES = (Path("/etc/default/libvirt-guests"), Path("/etc/sysconfig/libvirt-guests"))
#: The service's script, with the defaults: upstream's are ON_BOOT=start and ON_SHUTDOWN=suspend.
SCRIPTS = (Path("/usr/lib/libvirt/libvirt-guests.sh"), Path("/usr/libexec/libvirt-guests.sh"))
#: systemd's link that makes it start at boot.
ENABLED = Path("/etc/systemd/system/multi-user.target.wants/libvirt-guests.service")
_GOOD = {"ON_BOOT": "ignore", "ON_SHUTDOWN": "shutdown"}
_UPSTREAM = {"ON_BOOT": "start", "ON_SHUTDOWN": "suspend"}
_COSTS = {
    "ON_BOOT": "it starts the VM at boot without the agent",
    "ON_SHUTDOWN": "it saves the VM's memory at a shutdown, to be resumed over newer disks",
}


def problem(
    places: tuple[Path, ...] = PLACES,
    scripts: tuple[Path, ...] = SCRIPTS,
    enabled: Path = ENABLED,
) -> tuple[str, str]:
    """What the service would do to the VM, and what to type; both empty where it does nothing bad,
    is not enabled or not installed. OSError where a file cannot be read."""
    script = next((path for path in scripts if path.exists()), None)
    if script is None or not enabled.is_symlink():
        return "", ""
    place = next((path for path in places if path.exists()), places[0])
    found = {**_UPSTREAM, **_settings(script)}
    if place.exists():
        found |= _settings(place)
    bad = [name for name, good in _GOOD.items() if found[name] != good]
    if not bad:
        return "", ""
    text = "; ".join(f"{name}={found[name]}: {_COSTS[name]}" for name in bad)
    lines = " ".join(shlex.quote(f"{name}={_GOOD[name]}") for name in bad)
    return f"libvirt-guests has {text} ({place})", f"printf '%s\\n' {lines} >> {place}"


def _settings(path: Path) -> dict[str, str]:
    """The variables that a shell script sets at the beginning of lines; the last one counts."""
    found = {}
    for line in path.read_text(errors="replace").splitlines():
        name, is_set, value = line.partition("=")
        if is_set and name in _GOOD:
            words = shlex.split(value, comments=True)
            found[name] = words[0] if words else ""
    return found
