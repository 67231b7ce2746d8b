# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each precondition of switching a host off and of freeing its id is held up by a story.

A story holds as it is; with one precondition taken away it breaks the law that the precondition
is there for. A precondition is asked by the decision and by each last look anew: it is taken away
in both. Where something else in the product stands before it, that is taken away as well (`and_`),
and the table says what it is.

Three have no story, for where they are asked they cannot be false: `lease-owner-known` (a takeover
is of the lease's owner, `start._wait_for_owner`; another owner is another takeover),
`fence-log-readable` (the log is read with the whiteboard: one that was not read is a whiteboard
that was not read, `own-storage-fine`), and of `reads-on-while-holding` what is not
`fence-lease-held`: the device reads power and GUID in the login in which it takes the order
(test_bmc.py). Unit tests hold them (tests/unit/test_evidence.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from agent.last_look import LastLook
from agent.leases.freeing import free_host_id
from scoring.hosts import last_look, takeover
from scoring.hosts.evidence import Evidence, Precondition, may_free, may_power_off
from scoring.hosts.state import Takeover
from scoring.observation import HostIdFreed, PowerAnswer
from scoring.rules import Rules
from scoring.timing import Timing
from scoring.vm import gates
from tests.simulation.scenario import Player, parse

Patch = Callable[[pytest.MonkeyPatch], None]
Conditions = Callable[[Takeover, Evidence, float, Rules], tuple[Precondition, ...]]

OFF, FREE = "may_power_off", "may_free"
#: Asked only of a host that asks to be switched off.
OF_AN_ASK = ("no-other-vm-is-well-there", "nobody-reaches-its-vm")


def without(conditions: Conditions, *names: str) -> Conditions:
    """The list of conditions in which these hold whatever happens."""

    def these(
        takeover: Takeover, evidence: Evidence, now_s: float, rules: Rules
    ) -> tuple[Precondition, ...]:
        found = conditions(takeover, evidence, now_s, rules)
        assert {each.name for each in found} >= {*names} - {"not-too-often", *OF_AN_ASK}
        return tuple(replace(each, holds=each.holds or each.name in names) for each in found)

    return these


def take_away(monkeypatch: pytest.MonkeyPatch, act: str, *names: str) -> None:
    """In the decision and in the last look."""
    lists: dict[str, Conditions] = {OFF: may_power_off, FREE: may_free}
    for module in (takeover, last_look):
        monkeypatch.setattr(module, act, without(lists[act], *names))


# --- what stands before a precondition -------------------------------------------------------


def the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """GlobalMaintenance, the state, comes before everything."""
    monkeypatch.setattr(gates, "global_maintenance", lambda turn: None)


def _frees(monkeypatch: pytest.MonkeyPatch, **instead: object) -> None:
    """The freeing itself is given these instead of what it is called with."""

    async def freed(*given: object) -> HostIdFreed:
        names = inspect.signature(free_host_id).parameters
        taken: dict[str, Any] = {**dict(zip(names, given, strict=True)), **instead}
        return await free_host_id(**taken)

    monkeypatch.setattr("tests.simulation.ports.free_host_id", freed)


def the_lease_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last look asks the agent itself whether it holds the fence lease."""
    monkeypatch.setattr(LastLook, "_of_this_host", lambda look, known, under_lease=True: "")
    _frees(monkeypatch, fence_held=lambda: True)


def the_age_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The freeing itself asks how old the reading is (agent/leases/freeing.py)."""
    _frees(monkeypatch, io_timeout_s=1e9)


def the_word_of_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an unproven device reads is not even kept (takeover.with_power)."""
    with_power = takeover.with_power

    def kept(step: Takeover, answer: PowerAnswer, timing: Timing) -> Takeover:
        step = with_power(step, replace(answer, identity_proven=True), timing)
        offs = tuple(replace(off, identity_proven=answer.identity_proven) for off in step.offs)
        return replace(step, offs=offs)

    monkeypatch.setattr(takeover, "with_power", kept)


# --- the stories ------------------------------------------------------------------------------

UP = "expect engine healthy on host1 within 150\nwait 30\n"
THREE = f"hosts 3 chance preconditions\n{UP}"
TWO = f"hosts 2 chance preconditions\n{UP}"
#: A host that lost the storage does not give its VM up: that is another list of conditions.
KEEPS = "timing storage-patience 0 all\n"
HANGS = "power freeze host1 50\nexpect fenced 0 for 50\nexpect engine healthy within 60\n"


@dataclass(frozen=True, slots=True)
class Case:
    """`names`: what is taken away of `act`, the first is what the case is about. `law`, `text`: how
    it is broken then."""

    act: str
    names: tuple[str, ...]
    story: str
    law: str
    text: str
    and_: Patch | None = None

    def __str__(self) -> str:
        return f"{self.act}-{self.names[0]}"


def off(
    name: str, story: str, text: str, *more: str, law: str = "fenced", and_: Patch | None = None
) -> Case:
    return Case(OFF, (name, *more), story, law, text, and_)


def free(
    name: str, story: str, text: str, *more: str, law: str = "freed-off", and_: Patch | None = None
) -> Case:
    return Case(FREE, (name, *more), story, law, text, and_)


CASES = (
    off(
        "allowed",
        f"hosts 3 power-off no chance preconditions\n{UP}{HANGS}",
        "its configuration forbids it",
    ),
    off(
        "no-global-maintenance",
        f"{THREE}maintenance global on\nwait 10\n{HANGS}",
        "in global maintenance",
        law="global",
        and_=the_state,
    ),
    off(
        "not-stopped-in-order",
        f"{THREE}set agent off host1\nwait 10\n{HANGS}",
        "stopped in order",
    ),
    off(
        "not-in-maintenance",
        f"hosts 3 migration no chance preconditions\n{UP}maintenance local on host1\n"
        f"wait 10\n{HANGS}",
        "it is in maintenance",
    ),
    off(
        "network-witness",
        f"{THREE}power freeze host1 50\nkill broker others\nexpect fenced 0 for 50\n"
        "expect engine healthy within 60\n",
        "never heard it",
    ),
    off(
        "nobody-hears-it",
        f"hosts 3 chance preconditions\n{KEEPS}{UP}network cut host2 host1\n"
        "storage hangs host1\nexpect fenced 0 for 60\n"
        "storage fine host1\nnetwork joined\nexpect engine healthy within 60\n",
        "heard by the network of host3",
    ),
    off(
        "does-not-answer",
        f"hosts 2 chance preconditions\n{KEEPS}{UP}storage hangs host1\n"
        "expect fenced 0 for 60\nstorage fine host1\n"
        "expect engine healthy within 60\n",
        "heard by the network",
    ),
    off(
        "own-storage-fine",
        "hosts 2 chance preconditions\ntiming fence-after 20 host2\n"
        f"{UP}network down host1\nstorage hangs all\nwait 30\nstorage fine host2\n"
        "expect fenced 0 for 15\nstorage fine host1\nnetwork up host1\n"
        "expect fenced 0 for 60\nexpect engine healthy within 60\n",
        "it has read the whiteboard for",
        # A slot is looked at anew after a gap.
        "slot-stands-still",
    ),
    off(
        "slot-stands-still",
        f"{TWO}stop sanlock host1 45\nnetwork down host1\nwait 32\nstorage hangs host1 whiteboard\n"
        "expect fenced 0 for 9\nstorage fine host1\nnetwork up host1\nexpect fenced 0 for 60\n",
        "which can be heard by the storage",
    ),
    off(
        "does-not-renew",
        f"{THREE}set daemons off host1\nexpect fenced 0 for 60\nset daemons on host1\n"
        "expect engine healthy within 60\n",
        "the renewals of its sanlock",
    ),
    off(
        "not-too-often",
        "hosts 3 guest-boot 5 chance preconditions\n"
        f"{UP}power freeze host1 50\nexpect engine healthy on host2 within 45\n"
        # The fencer gives the fence lease back meanwhile.
        "wait 10\npower freeze host2 38\nexpect fenced 1 for 60\n",
        "others were switched off lately",
    ),
    off(
        "fence-lease-held",
        f"{THREE}power freeze host1 50\nexpect engine healthy on host2 within 60\n",
        "without the fence lease",
        "reads-on-while-holding",
        and_=the_lease_of_now,
    ),
    free(
        "no-global-maintenance",
        f"{THREE}maintenance global on\nwait 10\npower off host1\n"
        "expect not id of host1 free for 60\n",
        "in global maintenance",
        law="global",
        and_=the_state,
    ),
    free(
        "fence-lease-held",
        f"{THREE}storage slow host2 1.5 leases\npower off host1\n"
        "expect engine healthy on host2 within 90\n",
        "frees the id of host1",
        "read-while-holding",
        and_=the_lease_of_now,
    ),
    free(
        "power-off-read-twice",
        f"{THREE}bmc off-early host1\npower freeze host1 50\n"
        "expect engine healthy on host2 within 70\n",
        "which was not off",
    ),
    free(
        "read-while-holding",
        f"{THREE}storage slow host2 1.5 leases\npower off host1\n"
        "expect engine healthy on host2 within 90\n",
        "before the fence lease was held",
    ),
    free(
        "read-fresh",
        f"hosts 3 io-timeout 5 chance preconditions\n{UP}bmc slow host1\npower off host1\n"
        "expect not id of host1 free for 60\n",
        "the power was read",
        and_=the_age_of_now,
    ),
    free(
        "device-proven-its",
        f"{THREE}bmc nameless-off host1\npower freeze host1 45\n"
        "expect not id of host1 free for 60\n",
        "which was not off",
        and_=the_word_of_a_stranger,
    ),
    free(
        "no-sign-of-life-since",
        f"{TWO}bmc says-off host1\nstorage hangs host1 whiteboard\n"
        "expect not id of host1 free for 60\n",
        "which was not off",
    ),
    # The host's network is gone, its BMC lies, and its slot stands still for a moment.
    free(
        "slot-missed-beats",
        f"{TWO}bmc says-off host1\nnetwork down host1\nwait 0.58\n"
        "storage hangs host1 whiteboard\nwait 1.5\nstorage fine host1\n"
        "expect not id of host1 free for 20\n",
        "which was not off",
    ),
)
#: A host whose agent is dead for good: its broker asks for it to be switched off, and nobody on it
#: would take that back.
AGENT_DEAD = (
    "hosts 3 chance preconditions\n"
    "timing bad-health 20 all\ntiming agent-dead-after 30 all\ntiming engine-starting 60 all\n"
    f"{UP}"
)
#: The cases of a host that asks to be switched off, in place of its silence. Without a story are
#: `asks-for-it` (what does not amount to an ask is none: look.py asks the same) and
#: `its-vm-is-sick` (nobody waits for a VM that is well: HostTurn.is_given_up); the others are those
#: of the list above. tests/unit/test_fence_ask.py holds them.
ASKED = (
    off(
        "no-other-vm-is-well-there",
        f"{AGENT_DEAD}vm db memory 1024 prefer host1\nexpect vm db healthy on host1 within 100\n"
        "wait 20\nset agent dead host1\nguest db hangs\nexpect fenced 0 for 120\n"
        "expect engine healthy on host1\n",
        "which can be heard by",
    ),
    off(
        "nobody-reaches-its-vm",
        f"{AGENT_DEAD}set agent dead host1\nset own-check no host1\nexpect fenced 0 for 120\n"
        "expect engine healthy on host1\n",
        "which can be heard by",
    ),
    off(
        "not-in-maintenance",
        f"{AGENT_DEAD}set agent dead host1\nguest hangs\nmaintenance local on host1\n"
        "expect fenced 0 for 120\n",
        "which can be heard by",
    ),
)
#: See the head.
WITHOUT_STORY = {
    (OFF, "lease-owner-known"),
    (FREE, "lease-owner-known"),
    (OFF, "reads-on-while-holding"),
    (OFF, "fence-log-readable"),
}


def told(case: Case) -> Player:
    return Player(parse("story.txt", f"# {case}.\n{case.story}"))
