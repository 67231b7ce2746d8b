# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``up`` was asked for, kept in the run directory for everyone who comes later."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from .errors import LabError
from .layout import Layout


@dataclass(frozen=True, slots=True)
class Settings:
    """One lab's settings."""

    hosts: int
    io_timeout_s: int
    bmc: bool
    daemons: bool
    accelerator: str
    bmc_password: str
    cluster_key: str
    #: Whether the configuration names the volumes: an earlier version does not know those keys.
    named: bool = True
    #: One of storages.kinds.KINDS, and the format of the VM's disk where it lies on the storage.
    storage: str = "fuse"
    disk: str = "raw"
    #: How many of vms.VMS are protected: the engine alone, or others beside it.
    vms: int = 1

    def host_ids(self) -> range:
        return range(1, self.hosts + 1)

    def save(self, layout: Layout) -> None:
        """Written once by ``up``; readable by root alone, for the BMCs' password
        and the cluster key are in it."""
        layout.settings.touch(mode=0o600)
        layout.settings.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @staticmethod
    def load(layout: Layout) -> Settings:
        """LabError if no lab is up there."""
        try:
            return Settings(**json.loads(layout.settings.read_text()))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise LabError(f"no lab in {layout.directory}; start one with: up") from error
        except (ValueError, TypeError) as error:
            raise LabError(f"{layout.settings}: {error}; run: down") from error
