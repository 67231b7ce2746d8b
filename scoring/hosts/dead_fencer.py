# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to do when the fence lease is owned by a silent host.

A host that fences holds the fence lease. When it loses its power itself, sanlock gives that lease
to no other host before its host-dead time is over (140 s), although the fencer's own BMC says
within seconds that the fencer is off. So the next host proves the fencer dead in the same way as
the VM's host, frees its host id, and then gets the fence lease.

Rules of this file:

1. The fencer is never switched off: that would need the fence lease. It can only be found off. A
   fencer that hangs, or that lives and only looks dead, reads on; then sanlock's host-dead time has
   to pass.
2. `evidence.may_free_fencer` lists the preconditions. They are those of freeing the VM's host,
   without the fence lease, which nobody can hold here. That lease guarantees two things, which are
   guaranteed otherwise here:
   a) Only one host acts. Here two hosts may free the same id; both write the same, so this does no
      harm by itself. Harm could come from a write that is late; see b).
   b) A host that returns learns that its id may still be freed (docs/decisions/0038). This host may
      not write the fence log without the fence lease, so it says it in its own slot (`announced`):
      from before the last check of the id until the process that writes has ended.
3. Only the present owner of the fence lease counts as such a fencer. If two fencers die in turn,
   their ids are freed one after the other.
4. What the dead fencer had begun is not continued. The host that gets the fence lease starts from
   the beginning: it reads the power of the VM's host anew, and checks every precondition.
"""

from __future__ import annotations

from dataclasses import replace

from scoring.decision import AskFenceOwner, AskPower, Code, FreeHostId
from scoring.hosts import takeover
from scoring.hosts.evidence import Evidence, Precondition, evidence_text, may_free_fencer
from scoring.hosts.state import Takeover
from scoring.hosts.turn import HostTurn
from scoring.observation import LeaseAnswer


def owner_of(current: Takeover, own_id: int) -> LeaseAnswer | None:
    """The answer that another host owns the fence lease and is not gone; None: no such answer."""
    answer = current.fence_owner
    if answer is None or not answer.known or not answer.keeps_out(own_id):
        return None
    return answer


def forgotten(current: Takeover) -> Takeover:
    """The takeover without what was found about the fencer. A freeing that is under way stays."""
    fencer = current.fencer
    if fencer is not None and not fencer.freeing:
        fencer = None
    return replace(current, fencer=fencer, fence_owner=None)


def step(turn: HostTurn, current: Takeover, evidence: Evidence | None) -> Takeover:
    """The next step towards a fence lease that sanlock does not give. `evidence`: about the host
    that owns it (None: nobody does, or the owner is not known)."""
    observation, now_s = turn.observation, turn.now_s
    before = turn.state.takeover
    # sanlock may delay an acquire for long. In the first beat of one the owner is not asked yet.
    is_waited_for = before is not None and before.taking_fence and current.taking_fence
    if observation.fence_lease_held or not (is_waited_for or current.refused):
        return forgotten(current)
    rules = turn.rules
    owner = current.fence_owner
    is_old = owner is None or now_s - owner.asked_s >= 2 * rules.timing.beat
    if is_old and not current.asking_owner:
        turn.actions.append(AskFenceOwner())
        current = replace(current, asking_owner=True)
    if evidence is None or evidence.lease.owner is None:
        return current if owner is None else forgotten(replace(current, fence_owner=owner))
    host = evidence.lease.owner
    known = {peer.host_id for peer in (*turn.live, *turn.uncertain)}
    title = turn.title(host)
    if host in known:
        turn.because(Code.FENCE_LEASE_ELSEWHERE, f"{title} holds the fence lease, and lives")
        return current
    if host not in observation.fence_devices:
        turn.because(
            Code.FENCE_LEASE_ELSEWHERE,
            f"{title} owns the fence lease and is silent; no fence device is configured for it",
        )
        return current
    fencer = current.fencer
    if fencer is None or (fencer.host_id != host and not fencer.freeing):
        fencer = Takeover(host, now_s)
    fencer = takeover.with_lease(fencer, evidence.lease)
    if fencer.freeing:
        turn.because(Code.PROVEN_OFF, f"{title} is proven off, freeing its id")
    elif now_s >= fencer.not_before_s:
        conditions = may_free_fencer(fencer, evidence, observation.announced, now_s, rules)
        if all(condition.holds for condition in conditions):
            fencer = _free(turn, fencer, evidence, conditions)
        else:
            current, fencer = _ask_power(turn, current, fencer)
    return replace(current, fencer=fencer)


def _free(
    turn: HostTurn, fencer: Takeover, evidence: Evidence, conditions: tuple[Precondition, ...]
) -> Takeover:
    lease, values = evidence.lease, evidence_text(conditions)
    turn.actions.append(
        FreeHostId(
            fencer.host_id,
            lease.owner_generation,
            lease.owner_timestamp,
            fencer.offs[-1].read_s,
            evidence=values,
            fencer=True,
        )
    )
    text = (
        f"{turn.title(fencer.host_id)}, which owns the fence lease, is proven off, freeing its id"
    )
    turn.because(Code.PROVEN_OFF, f"{text} ({values})")
    return replace(fencer, freeing=True, withdrawn="")


def _ask_power(turn: HostTurn, current: Takeover, fencer: Takeover) -> tuple[Takeover, Takeover]:
    """Ask for the fencer's power, unless that is under way. The fencer may be the VM's host."""
    host, timing = fencer.host_id, turn.rules.timing
    is_same = host == current.host_id
    is_asked = fencer.asking_power or (is_same and current.asking_power)
    if not is_asked and takeover.may_ask(fencer, turn.now_s, timing, bool(fencer.offs)):
        turn.actions.append(AskPower(host))
        fencer = replace(fencer, asking_power=True)
        current = replace(current, asking_power=current.asking_power or is_same)
    found = "its power is asked"
    if fencer.power is not None:
        found = f"its power reads {fencer.power.power}"
        found += "" if fencer.power.identity_proven else " from a device not proven to be its own"
    text = f"{turn.title(host)} owns the fence lease and is silent: {found}"
    turn.because(Code.FENCE_LEASE_ELSEWHERE, text)
    return current, fencer
