# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keeps this host's copy of the shared configuration up to date.

A newer one replaces the copy only where this host can use it together with its own file, as a
reload would. One that is damaged, unsigned, older, or has keys that this version does not know
changes nothing here: it is logged, and the copy stays.
"""

from __future__ import annotations

import logging

import msgspec

from broker.config.errors import ConfigError
from broker.config.load import load
from broker.config.reload import needs_restart, refusal
from broker.config.secrets import load_fence_secrets, load_notify_secrets
from broker.config.sections import Config
from broker.config.shared import SharedCopy, copy_at, read_copy
from broker.daemon.atomic_file import write_atomically
from broker.registry.shared import SharedConfig
from broker.registry.volume import BadRegistry, Blocks
from broker.whiteboard.signatures import Signatures

log = logging.getLogger("ha-broker.config")


def check_fits(path: str, text: str, now: Config) -> Config:
    """The configuration that the shared text makes with the file at `path`; ConfigError where it
    cannot be used here, or not without a restart. `now`: the one in force."""
    config = load(path, shared=text)
    load_fence_secrets(config)
    load_notify_secrets(config)
    keys = needs_restart(now, config)
    if keys:
        raise ConfigError(refusal("the shared configuration", keys))
    return config


def keep(state_dir: str, copy: SharedCopy) -> None:
    """Write the copy; OSError."""
    write_atomically(copy_at(state_dir), msgspec.json.encode(copy), 0o644)


class SharedUpdates:
    """`look` is called in the registry's thread whenever the volume was read. `problem`: why the
    newest shared configuration is not in force here, "": it is."""

    def __init__(self, path: str, config: Config, signatures: Signatures) -> None:
        self._path, self._config, self._signatures = path, config, signatures
        self.problem = ""

    def look(self, volume: Blocks) -> None:
        """Take a newer shared configuration over, if this host can use it."""
        state_dir, cluster = self._config.daemon.state_dir, self._config.cluster.id
        try:
            kept = read_copy(state_dir, cluster)
        except ConfigError:
            kept = None  # damaged: the storage has it
        known = 0 if kept is None else kept.generation
        try:
            shared = SharedConfig(volume, cluster, self._signatures)
            head = shared.head()
            if head.generation < known:
                raise ConfigError(
                    f"the shared configuration has generation {head.generation}, and {known} was"
                    " read before: an older copy of the volume?"
                )
            if head.generation > known and head.texts:
                text = shared.text(head.texts[0])
                check_fits(self._path, text, self._config)
                keep(state_dir, SharedCopy(cluster, head.generation, text))
                log.info("shared configuration of generation %d", head.generation)
            self._say("")
        except (BadRegistry, ConfigError) as error:
            self._say(str(error))
        except OSError as error:
            self._say(f"{copy_at(state_dir)}: cannot be written: {error.strerror}")

    def _say(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.error("the shared configuration stays as it was here: %s", problem)
        self.problem = problem
