# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides whether a path lies where every host of the cluster finds it.

The rule: a file does if its file system also holds the whiteboard, the lease volume or a disk that
the definition names (the cluster starts from these already); a block device does if the definition
or the configuration names it; a network disk does if it is reached over the network. Everything
else counts as this host's own, and so does what cannot be checked.

Its calls ask the file system, so they may block for any time.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from broker.vm.domain_facts import Layer

_BY_NETWORK = frozenset({"network"})


class SharedPaths:
    """`known`: paths that every host has: the volumes, and those in the definition."""

    def __init__(self, known: Iterable[str]) -> None:
        self._known = {os.path.realpath(path) for path in known}
        self._are_there = all(os.path.exists(path) for path in self._known)  # noqa: PTH110
        self._file_systems = {found for path in self._known if (found := _device(path)) is not None}

    def has_file(self, path: str) -> bool:
        """Whether every host finds this file; for a missing one its folder decides."""
        place = os.path.realpath(path)
        if place in self._known:
            return True
        found = _device(place)
        if found is None:
            found = _device(os.path.dirname(place))  # noqa: PTH120  (a path that may be gone)
        return found in self._file_systems

    def has(self, layer: Layer) -> bool:
        """Whether every host finds this image."""
        if layer.kind in _BY_NETWORK:
            # A UNIX socket is an address of this host alone.
            return "socket=" not in layer.place
        if layer.kind == "block":
            return os.path.realpath(layer.place) in self._known
        return layer.kind in ("file", "dir") and self.has_file(layer.place)

    def may_have(self, layer: Layer) -> bool:
        """Whether every host finds this image, as far as is known: where one of the known paths
        cannot be looked at, the storage fails or is not mounted, and no file is known to lie
        elsewhere."""
        is_unknown = layer.kind in ("file", "dir") and not self._are_there
        return is_unknown or self.has(layer)


def _device(path: str) -> int | None:
    """The file system that holds it; None where that cannot be read. A device's own file says
    nothing about the device's content."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    is_device = stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode)
    return None if is_device else found.st_dev
