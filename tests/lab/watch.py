# SPDX-License-Identifier: LGPL-2.1-or-later
"""A witness of law 1: watches every QEMU process of a VM, all the time.

libvirt starts QEMU with its CPUs stopped and takes the lease only when it lets them
run. So a start that the lease refuses shows a QEMU process for half a second without
breaking the law, and so does the target of a live migration. What must never be two
is processes that *ran the guest*; that is told by the CPU time of their vCPU threads.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from .cluster import Cluster
from .layout import VM_NAME
from .processes import FirstProcess, command_line, is_engine, is_kernel_thread, pid_namespace, pids

SAMPLE_S = 0.02
# A stopped vCPU thread uses well under a millisecond to set itself up; one that runs a
# booting guest uses all of every sample.
RAN_CPU_NS = 10_000_000


@dataclass(slots=True)
class EngineProcess:
    """One QEMU process of the VM; times are time.monotonic(), in seconds."""

    host: str
    pid: int
    incoming: bool
    appeared: float
    vanished: float | None = None
    ran_at: float | None = None
    # The vCPU time at which another process began to run the guest; see _sample.
    _stopped_at_ns: int | None = field(default=None, repr=False)
    _vcpus: list[Path] = field(default_factory=list, repr=False)

    @property
    def ran(self) -> bool:
        """Whether it was ever seen to execute guest code."""
        return self.ran_at is not None


class EngineWatcher:
    """Samples in a thread of its own from ``start`` to ``stop``; a context manager too.
    ``vm_name``: the VM, by default the engine."""

    def __init__(self, cluster: Cluster, vm_name: str = VM_NAME) -> None:
        self._cluster = cluster
        self._vm_name = vm_name
        self._seen: set[int] = set()
        self._processes: list[EngineProcess] = []
        self._most = 0
        self._most_running = 0
        self._samples = 0
        self._failure: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-watcher", daemon=True)

    def __enter__(self) -> EngineWatcher:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns after the first sample."""
        self._sample()
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch; raises what broke it, for a blind witness proves nothing."""
        self._stopping.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def most_at_once(self) -> int:
        """The most engine processes of any one sample, stopped ones included."""
        return self._most

    def most_running_at_once(self) -> int:
        """The most engine processes that ran the guest at once.

        One whose vCPUs stand still from the moment on in which another begins to run is not
        counted, unless it runs on: a live migration's source, a guest that panicked.
        """
        return self._most_running

    def history(self) -> list[EngineProcess]:
        """All engine processes seen, in the order they appeared."""
        return list(self._processes)

    def _run(self) -> None:
        try:
            while not self._stopping.wait(SAMPLE_S):
                self._sample()
        except BaseException as error:
            self._failure = error

    def _sample(self) -> None:
        now = time.monotonic()
        self._samples += 1
        here = set(pids())
        for process in self._processes:
            if process.vanished is None and not self._alive(process, here):
                process.vanished = now
        # A pid that ended may come back as another process: forget it.
        self._seen &= here
        for pid in here - self._seen:
            self._look_at(pid, now)
        living = [process for process in self._processes if process.vanished is None]
        for process in living:
            used_ns = _vcpu_time_ns(process)
            if process.ran_at is None and used_ns > RAN_CPU_NS:
                process.ran_at = now
                for other in living:
                    if other is not process:
                        other._stopped_at_ns = _vcpu_time_ns(other)
            stopped = process._stopped_at_ns
            if stopped is not None and used_ns > stopped + RAN_CPU_NS:
                process._stopped_at_ns = None
        self._most = max(self._most, len(living))
        running = sum(p.ran and p._stopped_at_ns is None for p in living)
        self._most_running = max(self._most_running, running)

    def _alive(self, process: EngineProcess, here: set[int]) -> bool:
        # A zombie has no command line: it runs nothing and holds nothing.
        return process.pid in here and is_engine(command_line(process.pid), self._vm_name)

    def _look_at(self, pid: int, now: float) -> None:
        argv = command_line(pid)
        if not argv:
            # A kernel thread will never have one; anything else is between fork and
            # exec, or dead: look again next time.
            if is_kernel_thread(pid):
                self._seen.add(pid)
            return
        if os.path.basename(argv[0]) == "libvirtd":
            # Perhaps a QEMU to be, still with its parent's command line.
            return
        self._seen.add(pid)
        if not is_engine(argv, self._vm_name):
            return
        host = self._host_of(pid)
        if host is not None:
            incoming = "-incoming" in argv
            self._processes.append(EngineProcess(host, pid, incoming, appeared=now))

    def _host_of(self, pid: int) -> str | None:
        try:
            namespace = pid_namespace(pid)
        except OSError:
            return None
        layout = self._cluster.layout
        for host_id in self._cluster.settings.host_ids():
            record = FirstProcess.from_file(layout.host(host_id).power_record)
            # The number of a dead host's namespace may be one of another lab's by now.
            if record is not None and record.namespace == namespace and record.here() is not None:
                return layout.host(host_id).name
        return None


def _vcpu_time_ns(process: EngineProcess) -> int:
    try:
        if not process._vcpus:
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                # libvirt has QEMU name its threads: "CPU 0/TCG", "CPU 0/KVM".
                if (task / "comm").read_text().startswith("CPU "):
                    process._vcpus.append(task / "schedstat")
        return sum(int(path.read_text().split()[0]) for path in process._vcpus)
    except (OSError, ValueError, IndexError):
        return 0
