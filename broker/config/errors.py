# SPDX-License-Identifier: LGPL-2.1-or-later
"""The error of a configuration that cannot be used."""

from __future__ import annotations

from broker.daemon.errors import HaError
from broker.daemon.exit_codes import ExitCode


class ConfigError(HaError):
    """The configuration cannot be used: the message names the file, the key and the remedy."""

    code = ExitCode.CONFIG
