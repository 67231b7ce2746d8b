# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures that several files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.namespace import own_network


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Path]:
    """/sys/class/net of a network namespace in which this thread is for the time of a test."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    with own_network(tmp_path) as path:
        yield path
