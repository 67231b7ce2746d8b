# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why a VM cannot be started, moved or stopped as it was asked for."""

from __future__ import annotations

from broker.daemon.errors import HaError
from broker.daemon.exit_codes import ExitCode


class VmError(HaError):
    """The VM, or its definition, does not allow the requested action."""


class DefinitionError(VmError):
    """The definition cannot be used: the message names it, its fault and what to do."""

    code = ExitCode.DEFINITION


class Unprotected(VmError):
    """The VM's process does not hold its lease."""


class TooMany(VmError):
    """Too many VMs are being started here: another start has to wait."""
