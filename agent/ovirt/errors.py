# SPDX-License-Identifier: LGPL-2.1-or-later
"""What in oVirt's files cannot be imported."""

from __future__ import annotations

from broker.daemon.errors import HaError
from broker.daemon.exit_codes import ExitCode


class ImportFault(HaError):
    """The description lacks something, or holds what the import does not take: what."""

    code = ExitCode.FILE
