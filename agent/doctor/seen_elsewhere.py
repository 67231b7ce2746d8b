# SPDX-License-Identifier: LGPL-2.1-or-later
"""How soon another host sees a write, and whether it ever reads what was there before.

Nothing is written for it: this host's broker writes its slot each beat. As soon as a new slot is
read here, other members' brokers are asked whether they read these very bytes
(broker/peers/slot_question.py), each with a read of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.doctor.host import Found
from agent.vm.reach import name_of, others_of
from broker.client.ask import BrokerError
from broker.client.other_host import ask_host
from broker.config.addresses import advertised
from broker.config.cluster_key import ClusterKey
from broker.config.errors import ConfigError
from broker.config.secrets import load_cluster_key
from broker.config.sections import Config
from broker.peers.errors import BadAnswer
from broker.peers.heartbeat import new_nonce
from broker.peers.signed_answer import ANSWER_BYTES_MAX
from broker.peers.slot_question import Seen, SlotQuestion, digest_of, seen_in
from broker.whiteboard.slot import SlotReport
from broker.whiteboard.volume import Volume

#: So many members are asked about each write, one after the other.
MEMBERS_MAX = 3
ASK_S = 2.0
#: How often the own slot is read here, and a member asked again.
LOOK_S = 0.005
#: What is read here may not have been acknowledged yet; so long after it a member that reads
#: something else reads old data.
ACKNOWLEDGED_S = 0.25

Ask = Callable[[str], Seen]


@dataclass(slots=True)
class Looks:
    """What one member saw. `took_s`: for each write, from when it was read here until the member
    read it, its answer included; `looks`, `stale`: how often it was asked, and how often it read
    old data; `problem`: why it did not answer at last."""

    took_s: list[float] = field(default_factory=list)
    looks: int = 0
    stale: int = 0
    problem: str = ""


def visible(config: Config, seconds: float) -> Found:
    """The findings of so many seconds, about each member."""
    own, path = config.host.id, config.storage.whiteboard
    others = dict(list(others_of(config, own).items())[:MEMBERS_MAX])
    try:
        key = load_cluster_key(config)
    except ConfigError as error:
        yield _unknown(str(error))
        return
    if key is None or not others:
        yield _unknown("there is no cluster-key here" if others else "there is no other member")
        return
    with Volume(path, read_only=True) as volume:
        asks = {host: _asker(key, own, report) for host, report in others.items()}
        found = measured(lambda: volume.read_slots([own]).get(own, b""), asks, seconds)
    for host, looks in found.items():
        yield judged(name_of(host, others[host]), looks, config.rules(0).timing.beat)


def measured(read: Callable[[], bytes], asks: dict[int, Ask], seconds: float) -> dict[int, Looks]:
    """What the members see of each new slot that `read` finds, until the time is over."""
    found = {host: Looks() for host in asks}
    ends_s, known = time.monotonic() + seconds, read()
    while time.monotonic() < ends_s:
        now = read()
        if now == known:
            time.sleep(LOOK_S)
            continue
        known, since_s = now, time.monotonic()
        for host, ask in asks.items():
            _look(ask, digest_of(now), since_s, found[host], read)
    return found


def _look(ask: Ask, digest: str, since_s: float, looks: Looks, read: Callable[[], bytes]) -> None:
    """Ask one member until it sees the slot, or until there is a newer one."""
    while True:
        began_s = time.monotonic()
        try:
            seen = ask(digest)
        except (BrokerError, BadAnswer) as error:
            looks.problem = str(error)
            return
        looks.looks += 1
        if seen is Seen.YES:
            looks.took_s.append(time.monotonic() - since_s)
            return
        if digest_of(read()) != digest:
            return  # it may have read the newer one
        looks.stale += began_s - since_s > ACKNOWLEDGED_S
        time.sleep(LOOK_S)


def judged(name: str, looks: Looks, beat_s: float) -> tuple[str, str, str]:
    """The finding about one member."""
    if not looks.took_s:
        if looks.looks:
            text = f"{name} read none of this host's writes in {looks.looks} looks"
            return "fail", text, "is it the same storage? ha-agent storage show, there and here"
        return _unknown(f"{name}: {looks.problem or 'the broker here wrote nothing meanwhile'}")
    took = sorted(looks.took_s)
    p99 = took[min(len(took) - 1, len(took) * 99 // 100)]
    shown = " / ".join(f"{1000 * each:.1f}" for each in (took[len(took) // 2], p99, took[-1]))
    text = (
        f"{name} sees a write of this host after {shown} ms (p50 / p99 / max of {len(took)}, the"
        f" question included); old data read in {looks.stale} of {looks.looks} looks"
    )
    if looks.stale:
        return "fail", text, "docs/storage.md#settings: Gluster: group virt; NFS: noac or actimeo=0"
    if took[-1] > beat_s:
        fix = "a longer timing.beat, or a faster storage"
        return "warn", f"{text}; a beat is {beat_s:g} s", fix
    return "ok", text, ""


def _unknown(why: str) -> tuple[str, str, str]:
    return (
        "warn",
        f"how soon another host sees a write was not measured: {why}",
        "again, once the daemons run on two hosts",
    )


def _asker(key: ClusterKey, own: int, report: SlotReport) -> Ask:
    """Asks that member whether it reads a slot of that digest here."""
    api = report.extra.get("api", "") if report.extra_trusted else ""
    addresses = list(advertised(api))

    def ask(digest: str) -> Seen:
        error: BrokerError | BadAnswer = BadAnswer("it publishes no address (api.listen)")
        for address in addresses:
            question = SlotQuestion(own, digest, new_nonce()).signed(key)
            try:
                raw = ask_host(address, "GET", question.target, ANSWER_BYTES_MAX, ASK_S)
                found = seen_in(key, raw, question)
            except (BrokerError, BadAnswer) as failed:
                error = failed
                continue
            if found.seen is not Seen.UNKNOWN:
                return found.seen
            error = BadAnswer(f"{address}: {found.problem}")
        raise error

    return ask
