# SPDX-License-Identifier: LGPL-2.1-or-later
"""sanlock's answers about a process, one that it is too busy to give among them."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import sanlock

from broker.lockspace import process_leases as module
from broker.lockspace.process_leases import process_leases

HELD = [{"lockspace": b"hosted-engine", "resource": b"engine"}]


def answers(
    monkeypatch: pytest.MonkeyPatch, *given: int | list[dict[str, bytes]], patience_s: float = 60.0
) -> list[int]:
    """Let sanlock answer so, one after the other, the last for ever; the questions asked."""
    asked: list[int] = []

    def inquire(pid: int) -> Any:
        asked.append(pid)
        answer = given[min(len(asked), len(given)) - 1]
        if isinstance(answer, int):
            raise sanlock.SanlockException(answer, "Inquire error", "told by the test")
        return answer

    monkeypatch.setattr(sanlock, "inquire", inquire)
    monkeypatch.setattr(module, "BUSY_RETRY_S", 0.001)
    monkeypatch.setattr(module, "BUSY_PATIENCE_S", patience_s)
    return asked


def test_a_busy_sanlock_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, errno.EBUSY, errno.EBUSY, HELD)
    assert process_leases(7) == (("hosted-engine", "engine"),)
    assert asked == [7, 7, 7]


def test_one_that_stays_busy_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, errno.EBUSY, patience_s=0.05)
    with pytest.raises(sanlock.SanlockException):
        process_leases(7)
    assert asked


def test_an_unknown_process_and_another_error_are_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (answers(monkeypatch, errno.ESRCH), process_leases(7)) == ([7], None)
    asked = answers(monkeypatch, errno.ECONNREFUSED, HELD)
    with pytest.raises(sanlock.SanlockException):
        process_leases(7)
    assert asked == [7]
