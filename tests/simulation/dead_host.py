# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host with several VMs loses its power: when each of them is started elsewhere, in virtual
time."""

from __future__ import annotations

from tests.simulation.scenario import Player, parse


def started_s(vms: int) -> list[float]:
    """How long after their host's power cut each of so many VMs was started; the first one first.
    Three hosts, and the engine is not on the one that dies."""
    names = [f"v{number}" for number in range(vms)]
    lines = [
        "# All VMs of a host lose their power.",
        "hosts 3 host-boot 10 guest-boot 5 chance dead",
        "wait 50",
        *(f"vm {name} memory 2048 prefer host3" for name in names),
        *(f"expect vm {name} healthy on host3 within 100" for name in names),
        "wait 10",
        "power off host3",
        *(f"expect vm {name} running within 60" for name in names),
    ]
    player = Player(parse("dead.txt", "\n".join(lines)))
    player.play()
    trace = player.world.trace
    cut_s = next(at_s for at_s, _, text in trace if text == "power off host3")
    began = [at_s - cut_s for at_s, _, text in trace if text.startswith("started v")]
    return sorted(at_s for at_s in began if at_s > 0)
