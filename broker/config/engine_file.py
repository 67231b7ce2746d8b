# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the engine's definition is: in the configured file, or, once `ha-agent vm define engine`
has put it into the registry, in this host's copy of that."""

from __future__ import annotations

from pathlib import Path

#: The folder of the registry's copy in the state folder, and the engine's definition in it.
FOLDER, ENGINE_FILE = "vms", "engine.xml"


def copy_of_engine(state_dir: str) -> Path:
    """The path of the engine's definition in the copy of the registry."""
    return Path(state_dir) / FOLDER / ENGINE_FILE


def engine_file(configured: str, registry: str, state_dir: str) -> str:
    """The path of the engine's definition. `configured`: the one in the configuration; `registry`:
    the path of its volume, "": there is none."""
    copy = copy_of_engine(state_dir)
    try:
        return str(copy) if registry and copy.is_file() else configured
    except OSError:
        return configured
