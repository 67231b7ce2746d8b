# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the configuration leaves to the machine that it is on."""

from __future__ import annotations

from pathlib import Path

from broker.config.sections import Config


def system_uuid(config: Config) -> str:
    """This machine's UUID in lower case, or "" where it cannot be read."""
    if config.host.system_uuid:
        return config.host.system_uuid.lower()
    try:
        return Path("/sys/class/dmi/id/product_uuid").read_text().strip().lower()
    except OSError:
        return ""
