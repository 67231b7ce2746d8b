# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM's state that exists on one host alone, for `init`, `join`, `config check` and `doctor`."""

from __future__ import annotations

from pathlib import Path

from broker.config.sections import Config
from broker.vm.errors import BadDomain
from broker.vm.host_local import OneHost, one_host
from broker.vm.shared_paths import SharedPaths


def found_in(config: Config) -> tuple[OneHost, ...]:
    """The state by the configured definition, what costs data first; empty where the definition
    cannot be read, which its own check reports."""
    storage = config.storage
    try:
        xml = Path(config.vm.definition).read_text()
        return one_host(xml, SharedPaths([storage.whiteboard, storage.leases]).may_have)
    except (OSError, UnicodeDecodeError, BadDomain):
        return ()
