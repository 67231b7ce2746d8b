# SPDX-License-Identifier: LGPL-2.1-or-later
"""Carries out an operator's orders on this host: move the VM, start it, stop it.

A command must not be able to do harm that the cluster itself would not do, such as starting the VM
twice or moving it to a host that cannot run it. So an order is an input of the decision like any
other, and passes the same checks.

Rules of this file:

1. An order passes the same checks as the agent's own decisions: one action on the VM at a time, the
   lease, maintenance. An order that must not be carried out is refused at once, with the reason.
2. Each order gets an answer: under way, done or refused. The agent takes each order once. An order
   that comes while another is under way is refused and does not affect that one; only the
   cancellation of a migration may come while the migration is under way.
3. In global maintenance the VM is not moved. Orders to start and stop it are carried out: that mode
   exists so that people do this by hand.
4. No order waits for long: the lease's owner is asked, and a start that the lease does not allow
   now is refused, not kept for later.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from scoring.decision import AskLease, CancelMigration, PowerOffVm, ShutDownVm, StartVm
from scoring.hosts.turn import name_of
from scoring.observation import (
    LeaseAnswer,
    MigrationCancelled,
    Order,
    OrderKind,
    Outcome,
    StartResult,
    VmMigrationEnded,
    VmStartEnded,
    VmStopEnded,
)
from scoring.vm.move import can_migrate, why_not
from scoring.vm.pause import is_paused
from scoring.vm.room import secure
from scoring.vm.state import OrderAnswer, StateName, VmState
from scoring.vm.targets import targets
from scoring.vm.turn import VmTurn, begin_move, entered
from scoring.vm_facts import ENGINE, VmStatus

_S = StateName

#: States in which the VM is up here and may be moved.
_UP = frozenset({_S.ENGINE_UP, _S.ENGINE_UP_BAD_HEALTH})
#: States in which the VM may be started by an order.
_STARTABLE = frozenset({_S.ENGINE_DOWN, _S.ENGINE_UNEXPECTEDLY_DOWN, _S.ENGINE_MAYBE_AWAY})
#: Orders that may wait: a start for the answer about the lease, a move for the room on the target.
_PENDING = frozenset({OrderKind.START, OrderKind.MIGRATE})
#: How long an order waits for the answer about the lease, or for the room.
LEASE_PATIENCE_S = 15.0
#: How many answers are kept, for the commands that ask about their orders.
ANSWERS_MAX = 8


def take(turn: VmTurn) -> None:
    """Begin a new order, or continue one that waits."""
    order, state = turn.observation.order, turn.state
    if order is not None and order.vm != turn.number:
        order = None
    if order is not None and order.number > max((a.number for a in state.answers), default=0):
        turn.state = _with_answer(turn, state, OrderAnswer(order.number, None, "under way"))
        refused = _begin(turn, order)
        if refused:
            turn.state = _with_answer(turn, turn.state, OrderAnswer(order.number, False, refused))
        elif order.kind is OrderKind.CANCEL:
            turn.state = replace(turn.state, cancelling=order.number)
        else:
            turn.state = replace(turn.state, order=order)
    elif state.order is not None and not state.acting and state.order.kind in _PENDING:
        is_start = state.order.kind is OrderKind.START
        refused = _start(turn, state.order) if is_start else _migrate(turn, state.order)
        if refused:
            turn.state = _answered(turn, turn.state, False, refused)


def with_outcome(turn: VmTurn, state: VmState, outcome: Outcome) -> VmState:
    """The memory `state` with an answer to the order that this outcome ends, if it ends one."""
    if isinstance(outcome, MigrationCancelled):
        if state.cancelling is None:
            return state
        text = "the migration is cancelled" if outcome.ok else outcome.detail
        answer = OrderAnswer(state.cancelling, outcome.ok, text)
        return replace(_with_answer(turn, state, answer), cancelling=None)
    if state.order is None:
        return state
    match state.order.kind, outcome:
        case OrderKind.START, VmStartEnded(result=result, detail=detail):
            done = result is StartResult.STARTED
            text = "the VM runs here under its lease" if done else detail
            return _answered(turn, state, done, text)
        case OrderKind.MIGRATE, VmMigrationEnded(target=target, ok=ok, detail=detail):
            text = f"the VM runs on {turn.host.title(target)} now" if ok else detail
            return _answered(turn, state, ok, text)
        case OrderKind.SHUTDOWN, VmStopEnded(ok=ok, detail=detail):
            text = "the guest of the VM was asked to shut down" if ok else detail
            return _answered(turn, state, ok, text)
        case OrderKind.POWER_OFF, VmStopEnded(ok=ok, detail=detail):
            text = "the VM's process is gone" if ok else detail
            return _answered(turn, state, ok, text)
        case _:
            return state


def _answered(turn: VmTurn, state: VmState, ok: bool, text: str) -> VmState:
    assert state.order is not None
    answer = OrderAnswer(state.order.number, ok, text)
    return replace(_with_answer(turn, state, answer), order=None)


def _with_answer(turn: VmTurn, state: VmState, answer: OrderAnswer) -> VmState:
    """The memory with this answer, which names the VM, instead of an earlier one to the same order.
    Orders that are under way keep their answer; of the others the oldest are dropped."""
    answer = replace(answer, text=turn.named(answer.text))
    others = [a for a in state.answers if a.number != answer.number]
    kept = sorted([*others, answer], key=lambda a: (a.ok is None, a.number))[-ANSWERS_MAX:]
    return replace(state, answers=tuple(sorted(kept, key=lambda a: a.number)))


def _begin(turn: VmTurn, order: Order) -> str:
    """Begin an order: why it is refused; empty: it is under way."""
    if turn.observation.stopping:
        return "the agent on this host is ending"
    earlier = turn.state.order
    if earlier is not None and order.kind is not OrderKind.CANCEL:
        return f"an earlier order is still under way: {earlier.kind.value}"
    match order.kind:
        case OrderKind.MIGRATE:
            return _migrate(turn, order)
        case OrderKind.CANCEL:
            return _cancel(turn)
        case OrderKind.START:
            return _start(turn, order)
        case OrderKind.SHUTDOWN | OrderKind.POWER_OFF:
            return _stop(turn, order.kind)
        case _:
            assert_never(order.kind)


def _busy(turn: VmTurn) -> str:
    return f"the agent is busy with the VM ({turn.state.name})" if turn.state.acting else ""


def _not_here(turn: VmTurn) -> str:
    """Why an order about a running VM cannot be given here; empty: the VM is up here."""
    if turn.vm_up_here:
        return ""
    if turn.vm is VmStatus.UNKNOWN:
        return "the state of the VM on this host is not known (ha-agent why)"
    up = turn.up_elsewhere()
    if up is None:
        return "the VM is not up"
    return f"the VM runs on {name_of(up)}: give the order there"


def _migrate(turn: VmTurn, order: Order) -> str:
    if turn.observation.global_maintenance is not False:
        return "global maintenance is set: nothing moves; end it first (ha-agent maintenance none)"
    refused = _not_here(turn) or _busy(turn)
    if refused:
        return refused
    if turn.state.name not in _UP:
        return f"this host is in {turn.state.name}: the VM can be moved once it is up and healthy"
    if is_paused(turn):
        return "the VM is paused: resume it first (virsh resume)"
    if not can_migrate(turn):
        return "libvirt.migration-uri is not set: no live migration is possible"
    if order.target is None:
        candidates = targets(turn)
        if not candidates:
            return "no other live host can take the VM"
        target = candidates[0].host_id
    else:
        target = order.target
        refused = why_not(turn, target)
        if refused:
            return refused
    if not secure(turn, target):
        since_s = turn.state.order_since_s
        since_s = turn.now_s if since_s is None else since_s
        is_over = turn.now_s - since_s > LEASE_PATIENCE_S
        turn.state = replace(turn.state, order_since_s=None if is_over else since_s)
        return "the room on the target is claimed by other VMs" if is_over else ""
    turn.state = replace(entered(turn, _S.ENGINE_MIGRATING_AWAY), order_since_s=None)
    begin_move(turn, target)
    return ""


def _cancel(turn: VmTurn) -> str:
    if turn.state.name is not _S.ENGINE_MIGRATING_AWAY:
        return "no migration of the VM is under way here"
    if turn.state.cancelling is not None or turn.state.asking_cancel:
        return "it is being cancelled already"
    turn.ask(CancelMigration())
    return ""


def _stop(turn: VmTurn, kind: OrderKind) -> str:
    refused = _not_here(turn) or _busy(turn)
    if refused:
        return refused
    turn.act(ShutDownVm() if kind is OrderKind.SHUTDOWN else PowerOffVm())
    return ""


def _start(turn: VmTurn, order: Order) -> str:
    state = turn.state
    if turn.number != ENGINE:
        return "say it to the cluster, which finds its host: ha-agent vm start NAME"
    refused = _no_start(turn) or _busy(turn)
    if refused:
        return refused
    lease = state.lease
    since_s = state.order_since_s
    if since_s is None:
        turn.state = state = replace(state, order_since_s=turn.now_s)
        since_s = turn.now_s
    if lease is None or lease.asked_s < since_s:
        if turn.now_s - since_s > LEASE_PATIENCE_S:
            turn.state = replace(turn.state, order_since_s=None)
            return f"who owns {turn.lease_name} is not known: sanlock does not answer"
        if not state.asking_lease:
            turn.ask(AskLease())
            turn.state = replace(state, asking_lease=True)
        return ""
    turn.state = state = replace(state, order_since_s=None)
    refused = _owned(turn, lease)
    if refused:
        return refused
    turn.act(StartVm())
    if state.name in _STARTABLE:
        if state.name is not _S.ENGINE_DOWN:
            turn.state = entered(turn, _S.ENGINE_DOWN)
        turn.state = entered(turn, _S.ENGINE_START)
    return ""


def _no_start(turn: VmTurn) -> str:
    """Why the VM must not be started here, whoever owns the lease."""
    observation = turn.observation
    if turn.vm_up_here:
        return "the VM runs on this host already"
    if turn.vm is VmStatus.UNKNOWN:
        return "the state of the VM on this host is not known (ha-agent why)"
    up = turn.up_elsewhere()
    if up is not None:
        return f"the VM runs on {name_of(up)}"
    if observation.local.shutdown is not None:
        return "this host is shutting down"
    if observation.local.maintenance:
        return "this host is in local maintenance (ha-agent maintenance none ends it)"
    if observation.storage_good_since_s is None:
        return "the whiteboard cannot be read: nothing is known of the other hosts"
    if not observation.lockspace_joined:
        return "this host has not joined the lockspace: the VM would have no lease"
    if turn.here.unfit:
        return turn.here.unfit[0].text
    if observation.unsure:
        hosts = ", ".join(map(str, observation.unsure))
        return (
            f"not known yet whether host(s) {hosts} write to the storage that is read here: try"
            " again in a few seconds"
        )
    if turn.state.name not in _STARTABLE and turn.state.name is not _S.GLOBAL_MAINTENANCE:
        return f"this host is in {turn.state.name}"
    return ""


def _owned(turn: VmTurn, lease: LeaseAnswer) -> str:
    """Why the lease cannot be taken now; empty: it can."""
    name = turn.lease_name
    if not lease.known:
        return f"who owns {name} is not known: {lease.detail}"
    if lease.owner is None or not lease.keeps_out(turn.observation.local.host_id):
        return ""
    text = f"{turn.host.title(lease.owner)} owns {name} and is not known to be dead"
    if lease.dead_in_s is None:
        return text
    return f"{text}; sanlock frees it in {lease.dead_in_s:.0f} s at the latest if it is"
