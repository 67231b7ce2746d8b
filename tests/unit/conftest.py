# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures that several files share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.fakes.definitions import Shared
from tests.unit.namespace import own_network

DOMAIN = """<domain type='qemu'><name>HostedEngine</name>
<uuid>6e67696e-0000-4000-8000-000000000001</uuid><memory unit='MiB'>256</memory>
<devices><lease><lockspace>hosted-engine</lockspace><key>engine</key>
<target path='{leases}' offset='1048576'/></lease></devices></domain>"""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Processes side by side (tests/side_by_side.py) share what runs commands, if a test does."""
    if session.config.getoption("processes", 0) and "tests.unit.commands" in sys.modules:
        sys.modules["tests.unit.commands"].start()


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Path]:
    """/sys/class/net of a network namespace in which this thread is for the time of a test."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    with own_network(tmp_path) as path:
        yield path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A configuration whose files are all there; what a test breaks is broken on purpose."""
    (tmp_path / "whiteboard").write_bytes(bytes(4096 * 2001))
    (tmp_path / "leases").write_bytes(bytes(8 << 20))
    (tmp_path / "engine.xml").write_text(DOMAIN.format(leases=tmp_path / "leases"))
    (tmp_path / "qemu.conf").write_text('lock_manager = "sanlock"\n')
    config = tmp_path / "ha-agent.toml"
    config.write_text(
        "[host]\nid = 1\n"
        f'[storage]\nwhiteboard = "{tmp_path}/whiteboard"\nleases = "{tmp_path}/leases"\n'
        f'[vm]\ndefinition = "{tmp_path}/engine.xml"\n'
        f'[libvirt]\nqemu-conf = "{tmp_path}/qemu.conf"\n'
        f'uri = "qemu+unix:///system?socket={tmp_path}/no-libvirt"\n'
        f'[daemon]\nsocket = "{tmp_path}/broker.sock"\nstate-dir = "{tmp_path}/state"\n'
    )
    return config


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Shared]:
    """The node of libvirt's test driver that whoever opens libvirt in this test is given."""
    libvirt.registerErrorHandler(lambda context, error: None, None)
    shared = Shared(tmp_path / "node.xml")
    monkeypatch.setattr(libvirt, "open", lambda uri: shared)
    yield shared
    shared.real.close()
