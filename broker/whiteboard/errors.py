# SPDX-License-Identifier: LGPL-2.1-or-later
"""The base of what goes wrong on the shared volume."""

from __future__ import annotations

from enum import StrEnum

from broker.daemon.errors import HaError
from broker.daemon.exit_codes import ExitCode


class WhiteboardError(HaError):
    """A volume, or what stands on it, cannot be used: the storage's fault, or the writer's."""

    code = ExitCode.STORAGE


class SlotFault(StrEnum):
    """Why a slot cannot be read. The values are stable: they go into logs, JSON and metrics."""

    SHORT = "short"
    NUL_FIRST = "nul-first"
    NUL_INSIDE = "nul-inside"
    NOT_UTF8 = "not-utf8"
    NO_VERSION = "no-version"
    NEWER_VERSION = "newer-version"
    OLDER_VERSION = "older-version"
    TOO_FEW_FIELDS = "too-few-fields"
    NO_CRC = "no-crc"
    CRC = "crc"
    NOT_A_NUMBER = "not-a-number"
    WRONG_HOST = "wrong-host"
    SCORE_RANGE = "score-range"
    TIMESTAMP_RANGE = "timestamp-range"
    FLAG_RANGE = "flag-range"
    ENGINE_STATUS = "engine-status"
    NO_EQUALS_SIGN = "no-equals-sign"
    MAINTENANCE_VALUE = "maintenance-value"
    MAINTENANCE_CONFLICT = "maintenance-conflict"
    MAINTENANCE_MISSING = "maintenance-missing"
    UNSIGNED = "unsigned"
    WRONG_MAC = "wrong-mac"
    REPLAYED = "replayed"


class BadSlot(WhiteboardError):
    """A slot that cannot be read: whose it is, a stable code and a sentence.

    The writer of the slot (or the storage) is at fault, never the reader. `cause` is code and
    sentence in one line of printable ASCII.
    """

    def __init__(self, host_id: int, fault: SlotFault, sentence: str) -> None:
        super().__init__(host_id, fault, sentence)
        self.host_id = host_id
        self.fault = fault
        self.sentence = sentence

    @property
    def cause(self) -> str:
        return f"{self.fault}: {self.sentence}"

    def __str__(self) -> str:
        owner = f"slot of host {self.host_id}" if self.host_id else "cluster slot"
        return f"{owner}: {self.cause}"
