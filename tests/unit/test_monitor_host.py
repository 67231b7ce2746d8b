# SPDX-License-Identifier: LGPL-2.1-or-later
"""CPU load, memory, pressure and definition, on /proc and /sys trees that a test makes."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.monitors.cpu_load import CpuLoadMonitor, Ticks, parse_ticks
from broker.monitors.definition import DefinitionMonitor
from broker.monitors.memory import MemoryMonitor, hugepage_kb
from broker.monitors.pressure import PressureMonitor
from broker.monitors.runner import Unknown
from tests.fakes.waiting import until
from tests.simulation.timeline import HostLoop, Timeline

# --- CPU load -------------------------------------------------------------------------------------

HZ = 100
WINDOW_S, INTERVAL_S = 60.0, 10.0
Cpu = tuple[int | None, float]


class Machine:
    """A host's CPUs: what runs on them, tick by tick, and a monitor that looks every 10 s."""

    def __init__(self, tmp_path: Path, cpus: int = 4) -> None:
        self.stat = tmp_path / "stat"
        self.cpus = cpus
        self.ticks = dict.fromkeys(
            ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"), 10_000
        )
        self.vm: Cpu | None = None
        self.vm_is_known = True
        self.timeline = Timeline()
        self.loop = HostLoop(self.timeline, 0.0, 1.0)  # type: ignore[abstract]
        self.monitor = CpuLoadMonitor(WINDOW_S, self.engine_cpu_s, INTERVAL_S, tmp_path, HZ)
        self.seen: list[float | str] = []
        self.write()

    def engine_cpu_s(self) -> Cpu | None:
        if not self.vm_is_known:
            raise Unknown("the VM's own share is not known")
        return self.vm

    def write(self) -> None:
        rows = " ".join(map(str, self.ticks.values()))
        self.stat.write_text(f"cpu  {rows} 0 0\ncpu0 1 2 3\nintr 1\n")

    def look(self) -> float | str:
        async def sample() -> None:
            try:
                self.seen.append(await self.monitor.sample())
            except Unknown as error:
                self.seen.append(str(error))

        self.timeline.call_within(self.loop, self.loop.create_task, sample())
        self.timeline.run_until(self.timeline.now_s)
        return self.seen[-1]

    def run(self, for_s: float, kind: str = "user", load: float = 0.0, vm_cpus: float = 0) -> None:
        """Let time pass and look every 10 s. `load`: of the ticks of all CPUs, those of `kind`;
        `vm_cpus`: CPUs' worth of them that the VM uses."""
        for _ in range(int(for_s / INTERVAL_S)):
            whole = int(INTERVAL_S * HZ * self.cpus)
            self.ticks[kind] += int(whole * load)
            self.ticks["idle"] += whole - int(whole * load)
            if self.vm is not None:
                self.vm = (self.vm[0], self.vm[1] + vm_cpus * INTERVAL_S)
            self.write()
            self.timeline.run_until(self.timeline.now_s + INTERVAL_S)
            self.look()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.look()
    return made


def test_no_load_is_told_before_a_full_first_window(machine: Machine) -> None:
    machine.run(WINDOW_S - INTERVAL_S, load=0.9)
    assert all(isinstance(seen, str) for seen in machine.seen)
    assert machine.seen[-1] == "40 of 60 s seen"
    machine.run(INTERVAL_S, load=0.9)
    assert machine.seen[-1] == pytest.approx(0.9)


def test_load_is_a_mean_over_the_window_and_not_the_last_look(machine: Machine) -> None:
    machine.run(WINDOW_S, load=0.0)
    machine.run(30.0, load=1.0)
    half = machine.seen[-1]
    assert isinstance(half, float) and 0.3 < half < 0.6
    machine.run(WINDOW_S + INTERVAL_S, load=1.0)
    assert machine.seen[-1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kind", "counts"),
    [("user", 1), ("system", 1), ("softirq", 1), ("steal", 1), ("iowait", 0), ("idle", 0)],
)
def test_what_counts_as_load(machine: Machine, kind: str, counts: int) -> None:
    machine.run(WINDOW_S, kind, load=0.5)
    assert machine.seen[-1] == pytest.approx(0.5 * counts)


def test_the_vm_s_own_share_does_not_count(machine: Machine) -> None:
    machine.vm = (4711, 1000.0)
    machine.look()
    machine.run(WINDOW_S + INTERVAL_S, load=0.75, vm_cpus=2)
    assert machine.seen[-1] == pytest.approx(0.25), "3 of 4 CPUs are busy, 2 of them with the VM"


def test_a_vm_that_starts_goes_or_is_another_one_subtracts_nothing_at_that_look(
    machine: Machine,
) -> None:
    machine.run(WINDOW_S, load=0.5)
    machine.vm = (1, 500_000.0)  # migrated here: what it used elsewhere is no share of this host
    machine.run(INTERVAL_S, load=0.5)
    machine.vm = (2, 3.0)  # started anew
    machine.run(INTERVAL_S, load=0.5)
    machine.vm = None
    machine.run(INTERVAL_S, load=0.5)
    assert machine.seen[-1] == pytest.approx(0.5)


def test_a_share_that_is_not_known_is_made_up_for_by_the_next_look(machine: Machine) -> None:
    machine.vm = (4711, 0.0)
    machine.look()
    machine.run(WINDOW_S, load=0.5, vm_cpus=2)
    machine.vm_is_known = False
    machine.run(3 * INTERVAL_S, load=0.5, vm_cpus=2)
    assert machine.seen[-1] == "the VM's own share is not known"
    machine.vm_is_known = True
    machine.run(INTERVAL_S, load=0.5, vm_cpus=2)
    assert machine.seen[-1] == pytest.approx(0.0)


def test_cpus_that_go_offline_take_their_share_with_them(machine: Machine) -> None:
    machine.run(WINDOW_S, load=0.5)
    machine.cpus = 2
    machine.run(WINDOW_S + INTERVAL_S, load=0.5)
    assert machine.seen[-1] == pytest.approx(0.5)


def test_ticks_that_go_back_cost_one_look_and_no_penalty(machine: Machine) -> None:
    machine.run(WINDOW_S, load=0.5)
    machine.ticks["user"] -= 5000
    machine.ticks["idle"] -= 5000
    machine.write()
    machine.look()
    machine.run(2 * INTERVAL_S, load=0.5)
    assert machine.seen[-1] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "text",
    ["", "cpu", "cpu 1 2 3", "cpu0 1 2 3 4 5", "cpu a b c d", "cpu -1 2 3 4 5", "cpu ² 1 1 1"],
)
def test_what_is_no_stat_file_is_unknown(machine: Machine, text: str) -> None:
    machine.stat.write_text(text)
    assert machine.look() == "/proc/stat does not begin with the ticks of all CPUs"


def test_a_stat_file_that_is_missing_is_unknown_and_known_again(machine: Machine) -> None:
    machine.run(WINDOW_S, load=0.5)
    machine.stat.unlink()
    assert "No such file" in str(machine.look())
    machine.run(2 * INTERVAL_S, load=0.5)
    assert machine.seen[-1] == pytest.approx(0.5)


def test_an_old_kernel_s_line_is_enough() -> None:
    assert parse_ticks("cpu 1 2 3 4\n") == Ticks(6, 10)
    assert parse_ticks("cpu 1 2 3 4 5 6 7 8 9 9\n") == Ticks(27, 36), "guest time is in user"


def test_this_machine_has_a_stat_file() -> None:
    assert parse_ticks(Path("/proc/stat").read_text()).total > 0


# --- memory ---------------------------------------------------------------------------------------

MEMINFO = """MemTotal:       16000000 kB
MemFree:          100000 kB
MemAvailable:    8388608 kB
Hugepagesize:       2048 kB
"""


def domain(tmp_path: Path, backing: str) -> str:
    path = tmp_path / "engine.xml"
    path.write_text(f"<domain type='kvm'><memory>1</memory>{backing}</domain>")
    return str(path)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "meminfo").write_text(MEMINFO)
    return folder


def test_memory_is_what_the_kernel_calls_available(proc: Path) -> None:
    assert asyncio.run(MemoryMonitor(proc=proc).sample()) == 8192.0


def test_where_the_vm_wants_huge_pages_the_free_ones_count(proc: Path, tmp_path: Path) -> None:
    pages = tmp_path / "sys/kernel/mm/hugepages/hugepages-2048kB"
    pages.mkdir(parents=True)
    (pages / "free_hugepages").write_text("3000\n")
    monitor = MemoryMonitor(2048, proc=proc, sys=tmp_path / "sys")
    assert asyncio.run(monitor.sample()) == 6000.0
    (pages / "free_hugepages").write_text("many\n")
    with pytest.raises(Unknown, match="is no number"):
        asyncio.run(monitor.sample())


def test_a_host_without_pages_of_that_size_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(Unknown, match="hugepages-1048576kB"):
        asyncio.run(MemoryMonitor(1_048_576, sys=tmp_path).sample())


@pytest.mark.parametrize("text", [None, b"", b"MemFree: 1 kB\n", b"MemAvailable: x kB", b"\xff"])
def test_a_meminfo_that_does_not_tell_is_unknown(proc: Path, text: bytes | None) -> None:
    path = proc / "meminfo"
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text)
    with pytest.raises(Unknown, match="meminfo"):
        asyncio.run(MemoryMonitor(proc=proc).sample())


@pytest.mark.parametrize(
    ("backing", "wanted"),
    [
        ("", None),
        ("<memoryBacking/>", None),
        ("<memoryBacking><hugepages/></memoryBacking>", 2048),
        (
            "<memoryBacking><hugepages><page size='1' unit='G'/></hugepages></memoryBacking>",
            1 << 20,
        ),
        ("<memoryBacking><hugepages><page size='2048'/></hugepages></memoryBacking>", 2048),
        ("<memoryBacking><hugepages><page size='?'/></hugepages></memoryBacking>", 2048),
    ],
)
def test_the_pages_that_a_definition_wants(
    tmp_path: Path, proc: Path, backing: str, wanted: int | None
) -> None:
    assert hugepage_kb(domain(tmp_path, backing), proc) == wanted


@pytest.mark.parametrize("data", [None, b"<domain", b"\xff", b"<?xml version='1.0' encoding='x'?>"])
def test_a_definition_that_is_no_xml_wants_ordinary_pages(
    tmp_path: Path, data: bytes | None
) -> None:
    path = tmp_path / "engine.xml"
    if data is not None:
        path.write_bytes(data)
    assert hugepage_kb(str(path)) is None


# --- pressure -------------------------------------------------------------------------------------


def test_pressure_of_all_three_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "pressure"
    folder.mkdir()
    line = "avg10={} avg60=0.00 avg300=0.00 total=0\n"
    (folder / "cpu").write_text("some " + line.format("12.50"))
    (folder / "io").write_text("some " + line.format("3.00") + "full " + line.format("1.00"))
    (folder / "memory").write_bytes(b"\xff")
    found = asyncio.run(PressureMonitor(proc=tmp_path).sample())
    assert found == {"cpu-some": 12.5, "io-some": 3.0, "io-full": 1.0}


def test_a_kernel_without_pressure_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(Unknown, match="psi=1"):
        asyncio.run(PressureMonitor(proc=tmp_path).sample())


# --- definition -----------------------------------------------------------------------------------


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    local, shared = tmp_path / "engine.xml", tmp_path / "shared.xml"
    local.write_text("<domain/>")
    shared.write_text("<domain/>")
    return local, shared


def compared(local: Path, shared: Path | None) -> tuple[bool, str]:
    monitor = DefinitionMonitor(str(local), str(shared) if shared else None)
    value = asyncio.run(monitor.sample())
    return value, monitor.judge(value)


def test_the_same_text_a_newer_one_and_an_older_one(both: tuple[Path, Path]) -> None:
    local, shared = both
    os.utime(local, (1000, 1000))
    assert compared(local, shared) == (True, ""), "the same, whatever its date"
    shared.write_text("<domain type='kvm'/>")
    os.utime(shared, (2000, 2000))
    assert compared(local, shared) == (False, f"{local} is older than {shared}")
    os.utime(local, (3000, 3000))
    assert compared(local, shared) == (True, "")
    assert compared(local, None) == (True, "")


def test_a_shared_one_that_cannot_be_read_is_unknown(both: tuple[Path, Path]) -> None:
    local, shared = both
    shared.unlink()
    with pytest.raises(Unknown, match=r"shared\.xml"):
        compared(local, shared)


def test_a_storage_that_hangs_hangs_one_thread(
    both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, reads = threading.Event(), []
    read: Callable[[Path], bytes] = Path.read_bytes

    def hang(path: Path) -> bytes:
        reads.append(path)
        let_go.wait(30)
        return read(path)

    async def run() -> None:
        monitor = DefinitionMonitor(str(both[0]), str(both[1]))
        monkeypatch.setattr(Path, "read_bytes", hang)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as deadline:
                sampling = asyncio.ensure_future(monitor.sample())
                await until(lambda: reads)
                deadline.reschedule(0.0)
                await sampling
        with pytest.raises(Exception, match="comparing definitions has not answered"):
            await monitor.sample()
        assert reads == [both[0]]
        let_go.set()

    asyncio.run(run())
