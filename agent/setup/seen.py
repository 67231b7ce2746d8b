# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks whether the members see what a joining host writes to the whiteboard: it writes its slot,
asks their brokers (broker/peers/slot_question.py), and leaves the slot as it was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from agent.storage.watched import storage_error
from agent.terminal.errors import CommandError
from agent.terminal.progress import progress
from agent.vm.reach import at_once, name_of, others_of
from broker.client.ask import BrokerError
from broker.client.other_host import ask_host
from broker.config.addresses import advertised
from broker.config.cluster_key import ClusterKey
from broker.config.errors import ConfigError
from broker.config.secrets import load_cluster_key
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.peers.errors import BadAnswer
from broker.peers.heartbeat import new_nonce
from broker.peers.signed_answer import ANSWER_BYTES_MAX
from broker.peers.slot_question import Seen, SlotQuestion, digest_of, seen_in
from broker.whiteboard.signatures import COUNTER_LINE, SLOT, Signatures, next_counter
from broker.whiteboard.slot import EMPTY_SLOT, SlotReport, encode_slot
from broker.whiteboard.volume import Volume, VolumeError
from scoring.vm_facts import EngineStatus, Health, VmStatus

#: Time for one question to a member, which reads one slot meanwhile.
ASK_S = 5.0
#: An acknowledged write may be seen late (scoring/hosts/same_storage.py): a member that does not
#: see it is asked again.
TRIES, PAUSE_S = 3, 1.0
DEADLINE_S = TRIES * (ASK_S + PAUSE_S)


@dataclass(frozen=True, slots=True)
class Word:
    """A member's answer. `name`: of that host; `problem`: why it does not know, else empty."""

    name: str
    seen: Seen
    problem: str = ""


def words(config: Config, own: int) -> list[Word]:
    """The answers of all members that did not stop, about a slot that is written for them to see;
    empty where there is none. CommandError where it cannot be written; takes DEADLINE_S at most."""
    others = others_of(config, own)
    try:
        key = load_cluster_key(config)
    except ConfigError as error:
        raise CommandError(ExitCode.CONFIG, str(error)) from None
    if not others:
        return []
    progress(f"asking the members whether they see slot {own}")
    with _written(config, own, key) as digest:
        found = at_once(
            others,
            lambda host: _word(key, own, digest, others[host]),
            (Seen.UNKNOWN, f"no answer within {DEADLINE_S:.0f} s"),
            DEADLINE_S,
        )
    return [Word(name_of(host, others[host]), *said) for host, said in found.items()]


@contextmanager
def _written(config: Config, own: int, key: ClusterKey | None) -> Iterator[str]:
    """Write a signed slot for a while, of this host as a stopped one; gives its digest."""
    path = config.storage.whiteboard
    claim = encode_slot(
        SlotReport(
            host_id=own,
            timestamp=int(time.monotonic()),
            score=0,
            engine_status=EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN),
            hostname=config.host_name,
            maintenance=False,
            stopped=True,
            # The nonce makes each claim different.
            extra={COUNTER_LINE: str(next_counter(0, time.time())), "claim": new_nonce()},
        ),
        partial(Signatures(key).sign, SLOT, own),
    )
    try:
        with Volume(path) as volume:
            before = volume.read_slots([own]).get(own, EMPTY_SLOT)
            volume.write_slot(own, claim)
            try:
                yield digest_of(claim)
            finally:
                volume.write_slot(own, before)
    except VolumeError as error:
        raise storage_error(error) from None


def _word(key: ClusterKey | None, own: int, digest: str, report: SlotReport) -> tuple[Seen, str]:
    """One member's last answer."""
    if key is None:
        return Seen.UNKNOWN, "there is no cluster-key here"
    said = Seen.UNKNOWN, "it publishes no address (api.listen)"
    api = report.extra.get("api", "") if report.extra_trusted else ""
    for number in range(TRIES):
        for address in advertised(api):
            ask = partial(SlotQuestion, own, digest)
            question = ask(new_nonce()).signed(key)
            try:
                raw = ask_host(address, "GET", question.target, ANSWER_BYTES_MAX, ASK_S)
                found = seen_in(key, raw, question)
            except (BrokerError, BadAnswer) as error:
                if said[0] is Seen.UNKNOWN:
                    said = Seen.UNKNOWN, f"{address}: {error}"
                continue
            said = found.seen, found.problem
            break
        if said[0] is not Seen.NO:
            break
        if number + 1 < TRIES:
            time.sleep(PAUSE_S)
    return said


def judged(config: Config, own: int, said: list[Word], unproven: bool) -> str:
    """The conclusion in a sentence; CommandError where a member reads the slot and sees something
    else, unless that is accepted (`unproven`)."""
    path = config.storage.whiteboard
    blind = [word.name for word in said if word.seen is Seen.NO]
    if blind:
        text = (
            f"{' and '.join(blind)} did not see what this host wrote to slot {own} of {path}: it"
            " is not the same storage there and here"
        )
        if unproven:
            return text
        raise CommandError(
            ExitCode.STORAGE,
            f"{text}; compare findmnt --target {path} there and here (a replica, a snapshot or a"
            " clone shows the members' writes for a while); to join nevertheless: --unproven",
        )
    seers = [word.name for word in said if word.seen is Seen.YES]
    if seers:
        return f"{' and '.join(seers)} saw what this host wrote to slot {own} of {path}"
    return ""


def unknown(config: Config, said: list[Word]) -> str:
    """The text where no member has seen the slot and none has not; "": a member has answered."""
    if any(word.seen is not Seen.UNKNOWN for word in said):
        return ""
    why = "; ".join(f"{word.name}: {word.problem}" for word in said) or "there is no member to ask"
    return (
        f"whether a member sees what this host writes to {config.storage.whiteboard} is not known"
        f" ({why}); a member of an earlier version does not answer that. Once the daemons run the"
        " hosts compare it over the network and start nothing where it differs; on a member:"
        " ha-agent --status"
    )
