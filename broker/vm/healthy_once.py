# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the VM was ever seen healthy by the health check in its present configuration.

A check that never succeeded proves nothing when it fails: the page may have another name, the
firewall may be closed, the word may not be in it. Only one that worked once may end a VM. Each host
remembers it, publishes it in its slot, and believes the others: they make the same check.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

from broker.config.sections import HealthSection
from broker.daemon.atomic_file import write_atomically

log = logging.getLogger("ha-broker")

#: The key of a slot's line; its value is the `digest` of a check that has worked.
LINE = "healthy-once"


def digest(check: HealthSection) -> str:
    """8 hex digits that change with the question, and with the answer that counts as good."""
    what = (check.page, check.expected, check.tcp, check.guest_agent)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:8]


class HealthyOnce:
    """`known`: the check has worked. `path`: the file that keeps this over restarts."""

    def __init__(self, path: Path, check: HealthSection) -> None:
        self._path = path
        try:
            self._worked = path.read_text().strip()
        except (OSError, UnicodeDecodeError):
            self._worked = ""
        self._check, self._digest = check, digest(check)

    def reconfigure(self, check: HealthSection) -> None:
        """Use another check, which has not worked yet."""
        if check != self._check:
            self._check, self._digest = check, digest(check)

    @property
    def known(self) -> bool:
        """Whether the present check was ever seen to succeed, here or on another host."""
        return self._worked == self._digest

    @property
    def line(self) -> str:
        """The value of the slot's line; empty: none."""
        return self._digest if self.known else ""

    def look(self, is_good: bool, lines: Iterable[str]) -> None:
        """`is_good`: the VM here is healthy now. `lines`: of the other hosts' slots."""
        if self.known or not (is_good or self._digest in lines):
            return
        self._worked = self._digest
        try:
            write_atomically(self._path, f"{self._worked}\n".encode())
        except OSError as error:
            log.warning("%s: cannot be written: %s", self._path, error.strerror)
