# SPDX-License-Identifier: LGPL-2.1-or-later
"""The error of a definition that cannot be read."""

from __future__ import annotations

from broker.daemon.errors import HaError
from broker.daemon.exit_codes import ExitCode


class BadDomain(HaError):
    """The text is no libvirt domain: the message says why."""

    code = ExitCode.DEFINITION
