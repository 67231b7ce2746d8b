# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration in force, and what is made from it once: a reload changes it for every part of
the broker at the same moment."""

from __future__ import annotations

from dataclasses import replace

from broker.config import agreement
from broker.config.host_certificates import Ends
from broker.config.machine import system_uuid
from broker.config.sections import Config


class InForce:
    """`problem`: why the present file is not in force, "": it is. `file_s`: when the file in force
    was changed last, UTC seconds since 1970, None: unknown. `agreed`, `agreed_lines`: the values
    that all hosts must have alike, and this host's slot lines of them. `system_uuid`: of this
    machine. `certificates`: those of this host, as they were looked at last.
    """

    def __init__(self, config: Config) -> None:
        self.file_s: float | None = None
        self._vm_memory_mb = 0.0
        self.certificates: list[Ends] = []
        self.use(config)
        self.system_uuid = system_uuid(config)

    def use(self, config: Config) -> None:
        """Use another configuration from now on."""
        self.config, self.problem = config, ""
        self.timing, self.rules = config.timing_rules(), config.rules(self._vm_memory_mb)
        self.agreed, self.agreed_lines = agreement.agreed(config), agreement.published(config)
        self.host_id, self.host_name = config.host.id, config.host_name
        self.io_timeout_s = float(config.storage.io_timeout)

    def learn_memory(self, vm_memory_mb: float) -> None:
        """What the engine takes of a host: the agent, which has its definition, says it."""
        if vm_memory_mb != self._vm_memory_mb:
            self._vm_memory_mb = vm_memory_mb
            self.rules = replace(self.rules, vm_memory_mb=vm_memory_mb)
