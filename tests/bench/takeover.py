# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.bench takeover [--runs N] [--io-timeout 2 10] [--vms 1 3] [--what cut kill …]
[--storage KIND] [--logs FOLDER]`

How long a VM is away, whatever happens to its host: its power is cut, it hangs, its cable is
pulled, it alone loses the storage, or QEMU alone is killed. Seconds from the fault to each phase,
as p50, p95 and maximum. Real sanlock, libvirt, QEMU and IPMI; three hosts in one machine. With
several VMs those that ran on the host count too: "all VMs run" is when the last of them does.
--logs keeps the hosts' logs of each lab.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import re
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.lab import ask, boot_journal, configs, guest, vms
from tests.lab.cluster import Cluster
from tests.lab.errors import LabError
from tests.lab.storages import kinds
from tests.lab.timeline import first_line_s
from tests.lab.watch import EngineWatcher

from .fencing import IN_PLACE_S, noise, on_lab

HEALTHY_S = 180.0
POLL_S = 0.02
#: What the heir's agent writes at each phase; the others are what the lab itself sees.
LOGGED = {
    "power asked": re.compile(r"AskPower|power-asked"),
    "fence lease held": re.compile(r"FenceLeaseAnswer\(held=True"),
    "ordered off": re.compile(r"switching host \d+ off \(order"),
    "id freed": re.compile(r"freed host id \d+"),
    "start begun": re.compile(r"EngineDown -> EngineStart "),
    "healthy seen": re.compile(r"EngineStarting -> EngineUp"),
}
PHASES = (
    "power asked",
    "fence lease held",
    "ordered off",
    "id freed",
    "start begun",
    "VM runs",
    "all VMs run",
    "page answers",
    "healthy seen",
    "healthy seen after the page",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """`strike`: does it to a host. `mend`: makes it usable again. `config`: more configuration.
    `prepare`: what else the lab needs. `target`: by phase, p50 and maximum in seconds, by
    io_timeout where that matters. `elsewhere`: the VM is served again only by another host."""

    strike: Callable[[Cluster, str], None]
    mend: Callable[[Cluster, str], None]
    target: Mapping[str, tuple[float, float]]
    config: str = ""
    prepare: Callable[[Cluster], None] = lambda cluster: None
    elsewhere: bool = True


def _cut(cluster: Cluster, host: str) -> None:
    cluster.cut(host)


def _kill(cluster: Cluster, host: str) -> None:
    for vm in vms.of(cluster.settings):
        for pid in cluster.census().engines(host, vm.name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _power(cluster: Cluster, host: str) -> None:
    cluster.thaw(host)
    cluster.power_on(host)
    cluster.wait_booted(host)


def _health_by_the_disk(cluster: Cluster) -> None:
    """The engine's health is a page that writes to its disk. The lab's other pages lie in the
    guest's memory: with them a VM whose storage has gone is well until sanlock ends it."""
    for host in cluster.hosts:
        path = cluster.config_path(host)
        text = path.read_text().replace(guest.HEALTH_PATH, guest.DISK_PATH)
        path.write_text(text.replace('"DB Up"', f'"{guest.DISK_TEXT}"'))
        cluster.reload(host)


def _storage_and_power(cluster: Cluster, host: str) -> None:
    cluster.storage(host, "ok")
    _power(cluster, host)


def _new_agent(cluster: Cluster, host: str) -> None:
    """A new agent does not remember that its VM died; an old one does, for 560 s."""
    cluster.stop(host, "agent")
    cluster.start(host, "agent")


FAULTS = {
    "cut": Fault(_cut, _power, {"VM runs": (2.8, 4.0)}),
    "hang": Fault(
        lambda cluster, host: cluster.freeze(host), _power, {"VM runs": (16.0, 16.0)}, configs.HASTE
    ),
    "unplug": Fault(
        lambda cluster, host: cluster.partition(host),
        lambda cluster, host: cluster.heal(host),
        {"page answers": (30.0, 30.0)},
    ),
    "storage": Fault(
        lambda cluster, host: cluster.storage(host, "hang"),
        _storage_and_power,
        {"VM runs": (40.0, 40.0)},
        configs.HASTE,
        _health_by_the_disk,
    ),
    # The host is fine: where it runs again does not matter.
    "kill": Fault(_kill, _new_agent, {"VM runs": (1.5, 3.0)}, elsewhere=False),
}


def main(argv: list[str]) -> int:
    """0 when every figure holds its target, 1 when one does not, 3 where no lab can run."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench takeover")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="of each kind")
    parser.add_argument("--io-timeout", type=int, nargs="+", default=[2, 10], metavar="S")
    parser.add_argument("--vms", type=int, nargs="+", default=[1, 3], choices=(1, 2, 3))
    parser.add_argument("--what", nargs="+", default=[*FAULTS], choices=[*FAULTS])
    parser.add_argument("--storage", default=kinds.FUSE, choices=kinds.KINDS)
    parser.add_argument(
        "--logs", type=Path, metavar="FOLDER", help="keep the logs of each lab here"
    )
    options = parser.parse_args(argv)
    if options.storage not in kinds.NETWORK and "storage" in options.what:
        print(f"storage is left out: the VM's disk does not lie on it (--storage {kinds.NFS})")
        options.what.remove("storage")
    print(f"{os.cpu_count()} CPUs; {noise()}", flush=True)
    held = []
    try:
        for io_timeout_s in options.io_timeout:
            for count in options.vms:
                logs = options.logs and options.logs / f"{options.storage}-{io_timeout_s}-{count}"
                with on_lab(
                    3, io_timeout_s, bmc=True, vms=count, storage=options.storage, logs=logs
                ) as cluster:
                    for name in options.what:
                        title = f"{name}, io_timeout {io_timeout_s}, {count} VM(s)"
                        cluster.configure(FAULTS[name].config)
                        FAULTS[name].prepare(cluster)
                        runs = repeated(cluster, FAULTS[name], options.runs, title)
                        held.append(show(title, runs, FAULTS[name].target))
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    print(noise())
    return int(not all(held))


def repeated(cluster: Cluster, fault: Fault, runs: int, title: str) -> list[dict[str, float]]:
    """The phases of each run, in seconds since the fault."""
    found = []
    for number in range(runs):
        for host in cluster.hosts:
            ask.until(f"{host} is in its place", IN_PLACE_S, partial(ask.in_place, cluster, host))
        # At another phase of the beats and of sanlock's renewals each time.
        time.sleep(random.uniform(0.0, 2.0 * cluster.settings.io_timeout_s))
        load = os.getloadavg()[0]
        victim, phases = _once(cluster, fault)
        assert not boot_journal.doubts(boot_journal.read(cluster))
        found.append(phases)
        runs_s = phases.get("VM runs", phases.get("page answers", math.nan))
        print(
            f"  {title}: {number + 1}/{runs}: {runs_s:.2f} s (load {load:.1f}); {victim}",
            flush=True,
        )
        told = sorted(((at_s, name) for name, at_s in phases.items()))
        print("    " + ", ".join(f"{name} {at_s:.1f}" for at_s, name in told), flush=True)
        fault.mend(cluster, victim)
    return found


def _once(cluster: Cluster, fault: Fault) -> tuple[str, dict[str, float]]:
    protected = vms.of(cluster.settings)
    victim = cluster.wait_healthy(HEALTHY_S)
    there = [vm for vm in protected if cluster.vm_host(vm) == victim]
    with contextlib.ExitStack() as stack:
        watchers = {vm.name: stack.enter_context(EngineWatcher(cluster, vm.name)) for vm in there}
        wall_s, struck_s = time.time(), time.monotonic()
        fault.strike(cluster, victim)
        end_s = struck_s + HEALTHY_S
        while not (
            (
                _moved(cluster, victim)
                if fault.elsewhere
                else _runs_s(watchers[vms.ENGINE.name], struck_s) is not None
            )
            and cluster.page_answers(0.3)
        ):
            if time.monotonic() > end_s:
                where = "from elsewhere" if fault.elsewhere else "again"
                raise LabError(f"the VM is not served {where} after {HEALTHY_S:g} s")
            time.sleep(POLL_S)
        page_s = time.monotonic() - struck_s
        heir = cluster.wait_healthy(HEALTHY_S)
        for vm in there:
            cluster.wait_vm_healthy(vm, HEALTHY_S)
        # The agent's line about it comes with its next beat.
        time.sleep(2.0)
    phases = {"page answers": page_s}
    runs_s = {name: _runs_s(watcher, struck_s) for name, watcher in watchers.items()}
    for watcher in watchers.values():
        assert watcher.most_running_at_once() <= 1, watcher.history()
    known = [at_s for at_s in runs_s.values() if at_s is not None]
    if (engine_s := runs_s.get(vms.ENGINE.name)) is not None:
        phases["VM runs"] = engine_s
    if known and len(known) == len(there) > 1:
        phases["all VMs run"] = max(known)
    log = cluster.log_path(heir, "agent").read_text().splitlines()
    for name, pattern in LOGGED.items():
        if (at_s := first_line_s(log, pattern, wall_s)) is not None:
            phases[name] = at_s
    if "healthy seen" in phases:
        phases["healthy seen after the page"] = phases["healthy seen"] - page_s
    return victim, phases


def _moved(cluster: Cluster, victim: str) -> bool:
    return cluster.engine_host() not in (None, victim)


def _runs_s(watcher: EngineWatcher, struck_s: float) -> float | None:
    later = [
        each.ran_at
        for each in watcher.history()
        if each.ran_at is not None and each.appeared > struck_s
    ]
    return min(later) - struck_s if later else None


def show(
    title: str, runs: list[dict[str, float]], target: Mapping[str, tuple[float, float]]
) -> bool:
    """Print a row for each phase; whether the targets hold."""
    holds = True
    for phase in PHASES:
        times = sorted(run[phase] for run in runs if phase in run)
        if not times:
            continue
        p50, p95 = statistics.median(times), times[math.ceil(0.95 * len(times)) - 1]
        wanted, verdict = "–", ""
        if phase in target:
            p50_max, most = target[phase]
            fine = p50 <= p50_max and times[-1] <= most
            holds, wanted = holds and fine, f"p50 {p50_max:g}, max {most:g}"
            verdict = "" if fine else " **missed**"
        print(
            f"| {title} | {phase} | {len(times)} | {p50:.2f} | {p95:.2f} | {times[-1]:.2f} | "
            f"{wanted}{verdict} |",
            flush=True,
        )
    return holds
