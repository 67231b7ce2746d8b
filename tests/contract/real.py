# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sites of the real adapters: a file, a sanlock daemon of its own, libvirt's test driver."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import libvirt
import pytest
import sanlock

from agent.leases.sanlock import SanlockLeases
from agent.vm import hypervisor
from agent.vm.definition import Definition
from agent.vm.hypervisor import LibvirtHypervisor
from agent.vm.protected import Engine
from broker.config.sections import (
    Config,
    DaemonSection,
    HostSection,
    LibvirtSection,
    StorageSection,
    VmSection,
)
from broker.lockspace.delta_leases import FENCE_RESOURCE
from broker.lockspace.joined_mark import JoinedMark
from broker.lockspace.rejoin import Rejoin
from broker.lockspace.sanlock import SanlockLockspace
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.store import VolumeStore
from tests.fakes.definitions import XML, Shared

T = TypeVar("T")

LOCKSPACE, NAME = "contract", "contract-host"
ALIGN = 1 << 20
IO_TIMEOUT_S = 1
PATIENCE_S = 60.0


class Real:
    """Calls run in one event loop, as in a daemon."""

    host_id = 1
    other_id = 2

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._tasks: list[asyncio.Task[None]] = []

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.pass_s(0.0)
        self._runner.close()

    def pass_s(self, seconds: float) -> None:
        self._runner.run(asyncio.sleep(min(seconds, 3.0)))

    def call(self, act: Callable[[], Awaitable[T]]) -> T:
        async def run() -> T:
            return await act()

        return self._runner.run(run())


class RealStore(Real):
    """SlotStore on a file. Only the kernel's two calls are held up, or fail, where a fault is."""

    #: The deadline of a call that hangs, so that a test need not wait for the product's; the others
    #: have time, however busy the machine is.
    HANGS_S, DEADLINE_S = 0.2, 60.0

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        path = folder / "whiteboard"
        path.write_bytes(bytes(100 * SLOT_BYTES))
        self.store = VolumeStore(str(path), self.DEADLINE_S)
        self.second = VolumeStore(str(path), self.DEADLINE_S)
        self._fault = ""
        self._over = threading.Event()
        pwrite, preadv = os.pwrite, os.preadv

        def gate() -> None:
            # Only this host's way to the storage has the gate, not the other one's.
            if threading.current_thread() not in self._threads():
                return
            if self._fault == "error":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if self._fault == "hang":
                assert self._over.wait(PATIENCE_S)

        def write(*arguments: Any) -> int:
            gate()
            return pwrite(*arguments)

        def read(*arguments: Any) -> int:
            gate()
            return preadv(*arguments)

        monkeypatch.setattr(os, "pwrite", write)
        monkeypatch.setattr(os, "preadv", read)

    def _threads(self) -> list[threading.Thread | None]:
        return [side._worker._thread for side in self._sides()]

    def _sides(self) -> list[Any]:
        return [self.store._reads, self.store._writes]

    def _give_deadline(self, deadline_s: float) -> None:
        for side in self._sides():
            side._deadline_s = deadline_s

    def close(self) -> None:
        self._over.set()
        super().close()

    def fails(self) -> None:
        self._fault = "error"

    def hangs(self) -> None:
        self._fault = "hang"
        self._give_deadline(self.HANGS_S)
        self._over.clear()

    def is_well(self) -> None:
        self._fault = ""
        self._give_deadline(self.DEADLINE_S)
        self._over.set()


class RealSanlock(Real):
    """A lease volume of its own; `folder`: short, for it holds a lockspace path."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "leases"
        self.path.touch()
        os.truncate(self.path, 3 * ALIGN)
        for number, resource in ((1, "engine"), (2, FENCE_RESOURCE)):
            sanlock.write_resource(
                LOCKSPACE.encode(), resource.encode(), [(str(self.path), number * ALIGN)]
            )
        sanlock.write_lockspace(LOCKSPACE.encode(), str(self.path), iotimeout=IO_TIMEOUT_S)
        storage = StorageSection(
            whiteboard="/no/whiteboard",
            leases=str(self.path),
            lockspace=LOCKSPACE,
            io_timeout=IO_TIMEOUT_S,
        )
        self.config = Config(
            host=HostSection(id=self.host_id, name="one"),
            storage=storage,
            daemon=DaemonSection(state_dir=str(folder / "state")),
        )

    def close(self) -> None:
        super().close()
        if sanlock.inq_lockspace(LOCKSPACE.encode(), self.host_id, str(self.path)):
            self._remove()

    def _remove(self) -> None:
        """Refused while a process holds a lease under the id."""
        where = (LOCKSPACE.encode(), self.host_id, str(self.path))
        until_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                sanlock.rem_lockspace(*where, unused=True)
                return
            except sanlock.SanlockException as error:
                if error.errno != errno.EBUSY or time.monotonic() > until_s:
                    raise
                time.sleep(0.05)


class RealLeases(RealSanlock):
    """Leases, of a host that is in the lockspace."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        sanlock.add_lockspace(
            LOCKSPACE.encode(), self.host_id, str(self.path), iotimeout=IO_TIMEOUT_S
        )
        self.leases = SanlockLeases(self.config, ALIGN)

    def close(self) -> None:
        # sanlock would end this very process, which holds it.
        self.call(self.leases.drop_fence)
        super().close()

    def leave(self) -> None:
        """Give the host id back."""
        self._remove()


class RealLockspace(RealSanlock):
    """Lockspace, of a host that is not in it yet; it looks more often, for nobody to wait."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder)
        monkeypatch.setattr("broker.lockspace.sanlock.RETRY_S", 0.1)
        rejoin = Rejoin(frozenset({NAME}), IO_TIMEOUT_S, JoinedMark(folder / "state", "boot"))
        self.lockspace = SanlockLockspace(
            LOCKSPACE, self.host_id, str(self.path), IO_TIMEOUT_S, rejoin
        )

    def run(self) -> None:
        async def begin() -> None:
            self._tasks.append(asyncio.create_task(self.lockspace.run()))

        self._runner.run(begin())


class Gone:
    """libvirt's socket of a host on which it does not run."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"qemu+unix:///system?socket={folder}/no-libvirt"


class RealHypervisor(Real):
    """Hypervisor on libvirt's test driver, which knows the VM and has no processes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        libvirt.registerErrorHandler(lambda context, error: None, None)
        real_open = libvirt.open
        self._shared = Shared(folder / "node.xml")
        self._gone, self._is_gone = Gone(folder), False
        self._hangs, self._over = False, threading.Event()

        def opened(uri: str) -> Any:
            if self._hangs:
                assert self._over.wait(PATIENCE_S)
            return real_open(self._gone.uri) if self._is_gone else self._shared

        monkeypatch.setattr(libvirt, "open", opened)
        path = folder / "engine.xml"
        path.write_text(XML)
        config = Config(
            host=HostSection(id=self.host_id, name="one"),
            storage=StorageSection(whiteboard="/no/whiteboard", leases="/no/leases"),
            vm=VmSection(name="vm", definition=str(path)),
            daemon=DaemonSection(state_dir=str(folder / "state")),
            libvirt=LibvirtSection(),
        )
        definition = Definition(XML, "vm", 64, ALIGN, "test")
        self.hypervisor = LibvirtHypervisor(
            config, Engine(config, definition), SanlockLeases(config, 0)
        )
        self._domain = self._shared.real.defineXML(XML)
        self._monkeypatch = monkeypatch

    def close(self) -> None:
        self._over.set()
        super().close()
        self._shared.real.close()

    def run_here(self) -> None:
        self._domain.create()

    def runs(self) -> bool:
        return bool(self._domain.isActive())

    def lose_libvirt(self) -> None:
        self._is_gone = True

    def hang_libvirt(self) -> None:
        """Until the test is over; the deadlines are cut short, so that it need not wait."""
        self._hangs = True
        for name in ("START_DEADLINE_S", "STOP_DEADLINE_S", "CANCEL_DEADLINE_S"):
            self._monkeypatch.setattr(hypervisor, name, 0.1)
