# SPDX-License-Identifier: LGPL-2.1-or-later
"""A live host asks the others to switch it off, since its VM is sick and cannot be ended.

A QEMU that hangs in the kernel survives every signal, and it keeps the VM's lease as long as it
exists. Its host tries to stop it again and again, and no other host may start the VM. Only the loss
of power ends such a process, and only its own host can know that; so that host asks the others.

This holds for every protected VM. A host asks for one VM at a time.

Rules of this file:

1. Only the host itself asks, in its own slot, which must be signed with the cluster key
   (broker/whiteboard/lines.py). Its agent asks when the VM's health is bad and ending the VM has
   failed for `force_stop_patience`. When the agent is dead, the broker publishes since when, and
   since when the VM's health has been bad. If both have lasted for `agent_dead_after`, and longer
   than a start may take, the other hosts take that as the same request.
2. A VM that outsiders reach is not sick: if one live host has had an answer of the VM within
   `isolation_after`, nobody switches the host off, whatever the host itself says.
3. Unknown is not sick: a host whose libvirt does not answer, or whose health check has no result,
   does not ask.
4. A host in global or local maintenance, or one that shuts down, neither asks nor is switched off.
5. The request replaces the silence of the host, and nothing else: all other preconditions of
   switching off must hold (`evidence.may_power_off`).
6. A VM that is well is never stopped for this: while any other protected VM on that host, also the
   engine, is up and not known to be sick, nobody switches the host off. Its agent first moves such
   VMs away, live. Rule 2 holds for these VMs as well.
7. The request is valid only while it is published by a live host. When it is withdrawn, an order
   that is under way is withdrawn as well (`last_look`). A host that falls silent is treated as any
   silent host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from scoring.hosts.turn import HostTurn, name_of
from scoring.observation import FenceAsk, PeerReport
from scoring.rules import Rules
from scoring.vm_facts import ENGINE, OutsideView, VmSpec, VmStatus


def asking(
    live: Iterable[PeerReport], rules: Rules, specs: Sequence[VmSpec] = ()
) -> PeerReport | None:
    """The live host that asks to be switched off. None: no host asks, or several do: then the fault
    is one that all hosts have. `specs`: the VMs of the registry."""
    given = [peer for peer in live if peer.fence_ask is not None]
    found = [p for p in given if is_asked(p.fence_ask, rules, spec_of(p.fence_ask, specs))]
    return found[0] if len(found) == 1 else None


def spec_of(given: FenceAsk | None, specs: Sequence[VmSpec]) -> VmSpec | None:
    """The VM that a host asks for, by the registry; None: the registry does not have it."""
    return next((v for v in specs if given is not None and v.number == given.vm), None)


def is_asked(given: FenceAsk | None, rules: Rules, spec: VmSpec | None = None) -> bool:
    """Whether what a host publishes counts as the request to switch it off (rule 1). `spec`: that
    VM by the registry; it may have durations of its own."""
    if given is None:
        return False
    if given.unstopped_s is not None:
        return True
    timing = rules.timing
    if given.agent_dead_s is None or given.bad_s is None or timing.agent_dead_after == 0:
        return False
    starting_s, bad_s = timing.engine_starting, timing.bad_health
    if spec is not None:
        starting_s = starting_s if spec.starting_s is None else spec.starting_s
        bad_s = bad_s if spec.bad_health_s is None else spec.bad_health_s
    bad_after_s = max(timing.agent_dead_after, starting_s, bad_s)
    return given.agent_dead_s >= timing.agent_dead_after and given.bad_s >= bad_after_s


def in_words(given: FenceAsk, name: str = "") -> str:
    """Why the host asks to be switched off, as a sentence. `name`: the VM's name, if known."""
    its = "VM" if given.vm == ENGINE else f"VM {name or given.vm}"
    if given.unstopped_s is not None:
        return f"its {its} is sick, and could not be ended for {given.unstopped_s:.0f} s"
    dead_s, bad_s = given.agent_dead_s, given.bad_s
    return f"its agent is dead for {dead_s:.0f} s, its {its} sick for {bad_s:.0f} s"


def reached_by(turn: HostTurn, owner: int, stay: int, vm: int = ENGINE) -> tuple[str, ...]:
    """The hosts that have reached the VM on `owner` lately, as its users do (rule 2)."""
    oldest_s = turn.now_s - turn.rules.timing.isolation_after
    return tuple(who for who, good_s in _last_answers(turn, owner, stay, vm) if good_s > oldest_s)


def others_reached(turn: HostTurn, owner: PeerReport, but: int) -> tuple[int, ...]:
    """The VMs other than `but` that are up on `owner` and that a host has reached lately."""
    return tuple(
        number
        for number, its in sorted(owner.vms.items())
        if number != but
        and its.report.vm is VmStatus.UP
        and reached_by(turn, owner.host_id, its.last_ran, number)
    )


def reached_s(turn: HostTurn, owner: PeerReport) -> float | None:
    """When the last question was asked, as users ask, that a VM on `owner` answered, the engine or
    another one; None: they have answered none."""
    answers = (
        _last_answers(turn, owner.host_id, its.last_ran, number)
        for number, its in owner.vms.items()
    )
    return max((good_s for of_one in answers for _, good_s in of_one), default=None)


def _last_answers(turn: HostTurn, owner: int, stay: int, vm: int) -> Iterator[tuple[str, float]]:
    """Each host that has reached the VM on `owner` in this stay, and when it last asked with
    success."""
    for who, view in _outside_views(turn, vm):
        if (view.owner, view.stay) == (owner, stay) and view.good_s is not None:
            yield who, view.good_s


def _outside_views(turn: HostTurn, vm: int) -> Iterator[tuple[str, OutsideView]]:
    """Each host that asks the VM from outside, with what it sees."""
    for here in turn.observation.local.vms:
        if here.number == vm and here.outside is not None:
            yield "this host", here.outside
    for peer in turn.live:
        if (its := peer.reached.get(vm)) is not None:
            yield name_of(peer), its
