# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make demo`: VMs survive a power cut, printed as it happens, on real parts.

Every step is checked on the machine itself; the exit code is 0 only if all of them held.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable

from .cluster import Cluster
from .errors import EXIT_OK, LabError, MachineError
from .layout import VM_NAME
from .timeline import Takeover, cut_and_watch
from .vms import of
from .watch import EngineWatcher

HEALTHY_S = 90.0
TAKEOVER_S = 60.0
REJOIN_S = 60.0


class StepFailed(Exception):
    """A step of the story did not hold."""


def run(cluster: Cluster, say: Callable[[str], None], storage: str, disk: str, vms: int) -> int:
    """Bring the lab up, tell the story, take the lab down; EXIT_OK only if it all held."""
    try:
        cluster.up(3, storage=storage, disk=disk, vms=vms)
        protected = of(cluster.settings)
        with contextlib.ExitStack() as stack:
            watchers = {
                vm.name: stack.enter_context(EngineWatcher(cluster, vm.name)) for vm in protected
            }
            _story(cluster, watchers[VM_NAME], say)
            for name, watcher in watchers.items():
                _check(
                    watcher.most_running_at_once() == 1,
                    f"at most one QEMU ran {name} at any moment "
                    f"({len(watcher.history())} processes seen, sampled every 20 ms)",
                    say,
                )
    except MachineError:
        raise  # nothing was started, and that has its own exit code
    except (StepFailed, LabError) as error:
        say(f"FAILED: {error}")
        return LabError.exit_code
    finally:
        say("taking everything down")
        cluster.down()
    say("all steps held")
    return EXIT_OK


def _story(cluster: Cluster, watcher: EngineWatcher, say: Callable[[str], None]) -> None:
    victim = cluster.wait_healthy(HEALTHY_S)
    _check(True, f"the engine runs on {victim}, its page answers", say)
    others = of(cluster.settings)[1:]
    for vm in others:
        host = cluster.wait_vm_healthy(vm, HEALTHY_S)
        _check(True, f"{vm.name} runs on {host}: {(cluster.vm_page(vm) or '').strip()}", say)
    if others:
        _check_shop(cluster, say)
    _show_status(cluster, victim)
    boots = cluster.status()["engine"]["boots"]

    say(f"pulling the plug of {victim}")
    takeover = cut_and_watch(cluster, watcher, TAKEOVER_S)
    _check(takeover.heir != victim, f"{takeover.heir} took over from {victim}", say)
    _print_timeline(takeover)
    missing = [step.name for step in takeover.steps if step.at_s is None]
    _check(not missing, "every step of the takeover was seen", say, f"not seen: {missing}")
    again = cluster.status()["engine"]["boots"]
    if boots is not None and again is not None:
        _check(
            again == boots + 1, f"the guest's disk says: boot {again}, one more than before", say
        )

    for vm in others:
        host = cluster.wait_vm_healthy(vm, HEALTHY_S)
        _check(True, f"{vm.name} answers on {host}: {(cluster.vm_page(vm) or '').strip()}", say)
    if others:
        _check_shop(cluster, say)

    say(f"switching {victim} on again")
    cluster.power_on(victim)
    cluster.wait_booted(victim)
    _wait_rejoined(cluster, takeover.heir, victim)
    _check(True, f"{victim} is back: live, in EngineDown, ready to take over", say)
    _check(
        cluster.wait_healthy(10.0) == takeover.heir,
        f"the engine stayed on {takeover.heir} all the while",
        say,
    )
    _show_status(cluster, takeover.heir)


def _check_shop(cluster: Cluster, say: Callable[[str], None]) -> None:
    """The engine's page that needs the other VMs' answers."""
    deadline = time.monotonic() + HEALTHY_S
    while (said := cluster.shop()) is None and time.monotonic() < deadline:
        time.sleep(0.5)
    _check(said is not None, f"the shop, which needs all of them, answers: {said}", say)


def _check(holds: bool, what: str, say: Callable[[str], None], why: str = "") -> None:
    if not holds:
        raise StepFailed(f"not true: {what}" + (f" ({why})" if why else ""))
    say(f"ok: {what}")


def _show_status(cluster: Cluster, host: str) -> None:
    shown = cluster.sh(host, ["ha-agent", "--status"])
    print(f"\n{host}# ha-agent --status\n{shown.stdout}", flush=True)
    if shown.returncode != 0:
        raise StepFailed(f"ha-agent --status on {host} ended with {shown.returncode}")


def _print_timeline(takeover: Takeover) -> None:
    print("\n  seconds after the power cut", flush=True)
    for step in takeover.steps:
        at = "   ?  " if step.at_s is None else f"{step.at_s:6.2f}"
        print(f"  {at}  {step.name}")
    print(flush=True)


def _wait_rejoined(cluster: Cluster, witness: str, host: str) -> None:
    """Until `witness` sees `host` live and waiting."""
    number = host.removeprefix("host")
    deadline = time.monotonic() + REJOIN_S
    while True:
        shown = cluster.sh(witness, ["ha-agent", "--status", "--json"])
        seen = json.loads(shown.stdout).get("hosts", {}).get(number, {})
        is_back = (seen.get("liveness"), seen.get("state")) == ("live", "EngineDown")
        if is_back and seen.get("score", 0) > 0:
            return
        if time.monotonic() > deadline:
            raise StepFailed(f"{host} did not rejoin within {REJOIN_S:.0f} s: {seen}")
        time.sleep(0.5)
