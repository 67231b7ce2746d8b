# SPDX-License-Identifier: LGPL-2.1-or-later
"""What of the VM lives on one host, as `init`, `join`, `config check` and `doctor` tell it."""

from __future__ import annotations

from pathlib import Path

from broker.config.sections import Config
from broker.vm.domain_facts import BadDomain
from broker.vm.host_local import OneHost, one_host
from broker.vm.shared_paths import SharedPaths


def found_in(config: Config) -> tuple[OneHost, ...]:
    """Of the definition that the configuration names, what costs data first; nothing where it
    cannot be read: that is told by who checks the definition."""
    storage = config.storage
    try:
        xml = Path(config.vm.definition).read_text()
        return one_host(xml, SharedPaths([storage.whiteboard, storage.leases]).has)
    except (OSError, UnicodeDecodeError, BadDomain):
        return ()
