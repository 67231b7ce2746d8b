# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a path lies where every host of the cluster finds it.

The rule: a file does whose file system also holds the whiteboard, the lease volume or a disk that
the definition names (what the cluster starts from already); a block device does that the definition
or the configuration names; a network's disk does that is reached over the network. Everything else
is taken for this host's own, what cannot be looked at too.

Its calls ask the file system: they block as long as that likes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from broker.vm.domain_facts import Layer

_BY_NETWORK = frozenset({"network"})


class SharedPaths:
    """`known`: paths that every host has: the volumes, and what the definition names."""

    def __init__(self, known: Iterable[str]) -> None:
        self._known = {os.path.realpath(path) for path in known}
        self._file_systems = {found for path in self._known if (found := _device(path)) is not None}

    def has_file(self, path: str) -> bool:
        """Whether every host finds this file; of one that is not there its folder counts."""
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


def _device(path: str) -> int | None:
    """The file system that holds it; None where it cannot be looked at. A device's own file says
    nothing of what is on it."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    is_device = stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode)
    return None if is_device else found.st_dev
