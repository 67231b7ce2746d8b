# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.bench vms [--no-lab]`: what several VMs cost, and how soon they run again.

Without a lab: the bytes that 50 VMs take of one slot, and how much later than one VM alone six of
a dead host are started, in virtual time.

In the lab, three hosts with ten VMs: the engine, the lab's two others, and seven of 16 MiB without
a disk and without a system, whose QEMUs have nothing to do (ten emulated guests would leave two
cores nothing to measure with). To the daemons they are as any other: a lease, a domain, and a
health page each, which is a file that host1 serves. Then the host with six of those loses its
power, and before that one with a single VM, for the comparison.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

from broker.whiteboard import vm_lines
from broker.whiteboard.extra import line_bytes
from broker.wire.exchange import VmReportOnWire
from scoring.vm_facts import (
    DETAIL_MIGRATION_SOURCE,
    Claim,
    EngineStatus,
    Health,
    VmHere,
    VmStatus,
)
from tests.lab import ask
from tests.lab.cluster import Cluster
from tests.lab.errors import LabError
from tests.simulation.dead_host import started_s

from .daemons import Pair, lab
from .figure import Figure
from .steady import SETTLE_S, costs

CPU_S = 60.0
CPU_PERCENT_MAX, RSS_MB_MAX = 2.5, 140.0
SLOT_BYTES_MAX = 1100
#: How much later than one VM alone the first and the last of six may run.
FIRST_LATER_S, LAST_LATER_S = 1.0, 3.0
PAGE_PORT = 8790
UP_S = 240.0
POLL_S = 0.05
#: The host that dies with one VM, and the one that dies with six.
ONE, SIX = "host2", "host3"
_UP = EngineStatus(VmStatus.UP, Health.GOOD, "up")
_LEAVING = EngineStatus(VmStatus.UP, Health.UNKNOWN, DETAIL_MIGRATION_SOURCE)

TINY = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features><devices>
<emulator>/usr/bin/qemu-system-x86_64</emulator><memballoon model='none'/></devices></domain>
"""


def slot_bytes(vms: int, moving: bool) -> int:
    """What so many VMs that run on one host take of its slot, without sentences; `moving`: each of
    them is being migrated, and four more are claimed."""
    numbers = range(129 - vms, 129)
    here = [VmHere(_LEAVING if moving else _UP, 1.0, last_ran=9999, number=n) for n in numbers]
    said = {
        n: VmReportOnWire(n, "EngineMigratingAway", 9999, moving_to=200, moving_until_s=340.0)
        if moving
        else VmReportOnWire(n, "EngineUp", 9999)
        for n in numbers
    }
    claims = tuple(Claim(n, 200, 3, 340.0) for n in range(2, 6)) if moving else ()
    memory = vm_lines.Memory(262_144.0, 65_536.0, 0.0)
    made = vm_lines.lines(2**53, memory, here, said, claims, {}, 1.0, 3400)
    prose = f"{vm_lines.SENTENCE}-"
    return sum(line_bytes(key, text) for key, text in made.items() if not key.startswith(prose))


def without_a_lab() -> Iterator[Figure]:
    """Bytes, and virtual time."""
    at_rest, moving = (float(slot_bytes(50, is_moving)) for is_moving in (False, True))
    yield Figure("50 VMs in one slot, at rest", "bytes", [at_rest], SLOT_BYTES_MAX)
    yield Figure("50 VMs in one slot, all moving", "bytes", [moving], SLOT_BYTES_MAX)
    (one_s,), six_s = started_s(1), started_s(6)
    yield from _later(one_s, six_s, "virtual time")


def _later(one_s: float, six_s: list[float], where: str) -> Iterator[Figure]:
    yield Figure(f"dead host, its one VM runs ({where})", "s", [one_s])
    first_s, last_s = min(six_s) - one_s, max(six_s) - one_s
    yield Figure(f"first of its six VMs, later ({where})", "s", [first_s], FIRST_LATER_S)
    yield Figure(f"last of its six VMs, later ({where})", "s", [last_s], LAST_LATER_S)


def in_the_lab(cpu_s: float) -> Iterator[Figure]:
    """Ten VMs on three hosts of real parts."""
    with lab(3, vms=3) as cluster, _page(cluster) as page:
        one, six = ("t0",), tuple(f"t{number}" for number in range(1, 7))
        _run(cluster, "storage", "grow", "--vms", "12")
        for name in one + six:
            (cluster.directory / f"{name}.xml").write_text(TINY.format(name=name))
            prefer = ONE if name in one else SIX
            path = str(cluster.directory / f"{name}.xml")
            _run(cluster, "vm", "add", path, "--prefer", prefer, "--health", page)
        _wait(cluster, "ten healthy VMs", lambda vms: len(_healthy(vms)) == 10)
        time.sleep(SETTLE_S)
        pairs = [Pair.of(cluster, host) for host in cluster.hosts]
        yield from costs(cluster, pairs, cpu_s, CPU_PERCENT_MAX, RSS_MB_MAX)
        # The others are not on the hosts that die. An order about the engine goes to its host.
        for name in ("HostedEngine", "db", "sso"):
            place = _places(cluster, {name}).get(name)
            if place != "host1":
                which = ("--host", str(place)) if name == "HostedEngine" else (name,)
                _run(cluster, "migrate", *which, "--to", "host1")
                shown = "engine" if name == "HostedEngine" else name
                _wait(cluster, f"{name} on host1", _is_on(shown, "host1"))
        one_s = _died(cluster, ONE, one)
        six_s = _died(cluster, SIX, six)
        yield from _later(one_s[0], six_s, "lab")


def _died(cluster: Cluster, host: str, names: tuple[str, ...]) -> list[float]:
    """How long after the host's power cut each of its VMs runs elsewhere."""
    for name in names:
        if _places(cluster, {name}).get(name) != host:
            _run(cluster, "migrate", name, "--to", host)
            _wait(cluster, f"{name} on {host}", _is_on(name, host))
    for each in cluster.hosts:
        ask.until(f"{each} is in its place", UP_S, partial(ask.in_place, cluster, each))
    cut_s = cluster.cut(host)
    found: dict[str, float] = {}
    while len(found) < len(names):
        for name in _places(cluster, set(names) - found.keys()):
            found[name] = time.monotonic() - cut_s
        if time.monotonic() - cut_s > UP_S:
            raise LabError(f"{host} is dead for {UP_S:g} s, and of {names} only {found} run")
        time.sleep(POLL_S)
    cluster.power_on(host)
    cluster.wait_booted(host)
    _wait(cluster, "ten healthy VMs", lambda vms: len(_healthy(vms)) == 10)
    return sorted(found.values())


@contextlib.contextmanager
def _page(cluster: Cluster) -> Iterator[str]:
    """A page that always answers, on host1."""
    address = cluster.layout.host(1).address
    folder = cluster.directory / "page"
    folder.mkdir()
    argv = [sys.executable, "-m", "http.server", str(PAGE_PORT), "--bind", address]
    command, environment = cluster.sh_command("host1", [*argv, "--directory", str(folder)])
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield f"http://{address}:{PAGE_PORT}/"
    finally:
        server.kill()
        server.wait()


def _run(cluster: Cluster, *words: str) -> str:
    done = cluster.sh("host1", ["ha-agent", *words])
    if done.returncode != 0:
        raise LabError(f"host1: ha-agent {' '.join(words)}: {(done.stdout + done.stderr).strip()}")
    return done.stdout


def _places(cluster: Cluster, names: Collection[str]) -> dict[str, str]:
    """Where those VMs run that run anywhere."""
    census = cluster.census()
    return {name: h for name in names for h in census.first if census.engines(h, name)}


def _is_on(name: str, host: str) -> Callable[[list[dict[str, Any]]], bool]:
    return lambda vms: any(vm["name"] == name and vm["hostname"] == host for vm in _healthy(vms))


def _healthy(vms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [vm for vm in vms if vm["healthy"]]


def _wait(cluster: Cluster, what: str, holds: Callable[[list[dict[str, Any]]], bool]) -> None:
    def seen() -> bool:
        shown = cluster.sh("host1", ["ha-agent", "--status", "--json"])
        with contextlib.suppress(ValueError, KeyError):
            return holds(json.loads(shown.stdout)["vms"])
        return False

    ask.until(what, UP_S, seen)


def main(words: list[str]) -> int:
    """The command; 1 where a target is missed, 3 where the lab cannot run."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench vms", description=__doc__)
    parser.add_argument("--no-lab", action="store_true", help="only what needs no lab")
    parser.add_argument("--seconds", type=float, default=CPU_S, help="CPU is measured for so long")
    options = parser.parse_args(words)
    good = True
    try:
        for measure in (
            without_a_lab(),
            *(() if options.no_lab else (in_the_lab(options.seconds),)),
        ):
            for figure in measure:
                good = good and figure.holds
                print(figure.line(), flush=True)
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    return int(not good)
