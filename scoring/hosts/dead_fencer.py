# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fence lease is owned by a silent host, whose own death its power may prove.

Who fences holds the fence lease. A fencer that loses its power takes the lease with it, and sanlock
gives it to nobody before its host-dead time is over (140 s), although the fencer's own BMC says
within seconds that it is off. So who comes next frees the fencer's host id as it would that of the
VM's host, and then has the fence lease.

Rules of this file:

1. A fencer is only ever found off. Nobody is switched off for this: that needs the fence lease. One
   that hangs, or lives and only looks dead, reads on, and sanlock's own verdict is waited for.
2. `evidence.may_free_fencer` lists what must be true. It is what frees the VM's host, but for the
   fence lease, which nobody can hold here. That lease stood for two things:
   a) One host alone acts. Two may free this id here, and both write the same; a write that lands
      late is what would do harm, and b) is for that.
   b) Whoever is back knows that its id may still be freed (docs/decisions/0038). The fence log is
      not this host's to write, so it stands in this host's own slot, before the id is looked at for
      the last time and until the process that writes has ended (`announced`).
3. Only the owner of the fence lease as it is now is such a fencer: two that die in turn are two
   acts, one after the other.
4. What the fencer left half done is judged by who has the fence lease then, from the beginning:
   the power of the VM's host is read anew, and every precondition holds for its own acts.
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
    """The fence lease's owner where that is another host that sanlock does not call gone."""
    answer = current.fence_owner
    if answer is None or not answer.known or not answer.keeps_out(own_id):
        return None
    return answer


def forgotten(current: Takeover) -> Takeover:
    """Without what was found of a fencer; what is under way is waited for."""
    fencer = current.fencer
    if fencer is not None and not fencer.freeing:
        fencer = None
    return replace(current, fencer=fencer, fence_owner=None)


def step(turn: HostTurn, current: Takeover, evidence: Evidence | None) -> Takeover:
    """The next step towards a fence lease that is not given. `evidence`: of the host that owns it,
    None: nobody, or not known."""
    observation, now_s = turn.observation, turn.now_s
    before = turn.state.takeover
    # sanlock may hold an acquire back for long; one that has only just begun needs no answer.
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
    if host in known:
        turn.because(Code.FENCE_LEASE_ELSEWHERE, f"host {host} holds the fence lease, and lives")
        return current
    if host not in observation.fence_devices:
        turn.because(
            Code.FENCE_LEASE_ELSEWHERE,
            f"host {host} owns the fence lease and is silent; no fence device is configured for it",
        )
        return current
    fencer = current.fencer
    if fencer is None or (fencer.host_id != host and not fencer.freeing):
        fencer = Takeover(host, now_s)
    fencer = takeover.with_lease(fencer, evidence.lease)
    if fencer.freeing:
        turn.because(Code.PROVEN_OFF, f"host {host} is proven off, freeing its id")
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
    text = f"host {fencer.host_id}, which owns the fence lease, is proven off, freeing its id"
    turn.because(Code.PROVEN_OFF, f"{text} ({values})")
    return replace(fencer, freeing=True, withdrawn="")


def _ask_power(turn: HostTurn, current: Takeover, fencer: Takeover) -> tuple[Takeover, Takeover]:
    """Read its power, unless that is under way; the VM's host may be the same one."""
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
    text = f"host {host} owns the fence lease and is silent: {found}"
    turn.because(Code.FENCE_LEASE_ELSEWHERE, text)
    return current, fencer
