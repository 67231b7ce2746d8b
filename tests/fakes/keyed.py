# SPDX-License-Identifier: LGPL-2.1-or-later
"""A configuration with a cluster key."""

from __future__ import annotations

from pathlib import Path

import msgspec

from broker.config.cluster_key import ClusterKey
from broker.config.load import load
from broker.config.sections import Config


def with_cluster_key(site: Path, key: ClusterKey) -> Config:
    """The configuration of `site` with a secrets file beside it that holds the key."""
    secrets = site.parent / "secrets.toml"
    secrets.write_text(f'cluster-key = "{key.writes.hex()}"\n')
    secrets.chmod(0o600)
    config = load(str(site))
    replace = msgspec.structs.replace
    return replace(config, daemon=replace(config.daemon, secrets=str(secrets)))
