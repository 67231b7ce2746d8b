# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the VM was ever healthy by the check as it is now (broker/vm/healthy_once.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.config.sections import HealthSection
from broker.vm.healthy_once import HealthyOnce, digest

PAGE = HealthSection(url="http://shop.example.org/")


def made(tmp_path: Path, check: HealthSection = PAGE) -> HealthyOnce:
    return HealthyOnce(tmp_path / "state" / "healthy-once", check)


def test_it_is_known_once_the_vm_was_healthy_and_after_a_restart(tmp_path: Path) -> None:
    ours = made(tmp_path)
    ours.look(False, [])
    assert (ours.known, ours.line) == (False, "")
    ours.look(True, [])
    ours.look(False, [])
    assert (ours.known, ours.line) == (True, digest(PAGE))
    assert made(tmp_path).known


def test_another_host_s_word_counts_for_the_same_check_alone(tmp_path: Path) -> None:
    ours = made(tmp_path)
    ours.look(False, ["", "00000000", "\x00"])
    assert not ours.known
    ours.look(False, ["", digest(PAGE)])
    assert ours.known and made(tmp_path).known, "also when that host is gone"


@pytest.mark.parametrize(
    "other",
    [
        HealthSection(url="http://shop.example.org/ready"),
        HealthSection(url="http://shop.example.org/", expect="ready"),
        HealthSection(tcp="shop.example.org:443"),
        HealthSection(guest_agent=True),
    ],
)
def test_another_check_has_not_worked_yet(other: HealthSection, tmp_path: Path) -> None:
    ours = made(tmp_path)
    ours.look(True, [])
    ours.reconfigure(other)
    assert not ours.known and not ours.line
    ours.reconfigure(PAGE)
    assert ours.known
    assert not made(tmp_path, other).known


def test_how_long_it_may_take_is_no_other_check() -> None:
    same = HealthSection(url="http://shop.example.org/", timeout=9.0, failures=7)
    assert digest(same) == digest(PAGE)


def test_what_cannot_be_read_or_written_costs_only_the_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "healthy-once").write_bytes(b"\xff\xfe")
    assert not made(tmp_path).known
    (tmp_path / "file").write_text("")
    ours = HealthyOnce(tmp_path / "file" / "healthy-once", PAGE)
    ours.look(True, [])
    assert ours.known and "cannot be written" in caplog.text
