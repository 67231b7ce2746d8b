# SPDX-License-Identifier: LGPL-2.1-or-later
"""The witnesses of a host's life between real hosts: questions over the bridge, renewals on
disk; and what a cut of one direction of the network changes."""

from __future__ import annotations

from functools import partial

from broker.config.sections import HEARTBEAT_PORT

from . import ask
from .ask import says, seen
from .cluster import Cluster
from .idle_connections import idle_connections
from .layout import host_id_of

#: Two questions at the steady pace, and some.
ANSWERED_S = 25.0


def is_renewed(lab: Cluster, asker: str, peer: str) -> bool:
    return seen(lab, asker, peer)["renewal_age_s"] is not None


def is_live(lab: Cluster, asker: str, peer: str) -> bool:
    return bool(seen(lab, asker, peer)["sanlock_state"] == "live")


def lives(lab: Cluster, asker: str, peer: str) -> bool:
    host = ask.status(lab, asker)["hosts"][str(host_id_of(peer))]
    return bool(host["liveness"] == "live" and host["witnesses"]["whiteboard_age_s"] < 3.0)


def nft(lab: Cluster, host: str, line: str) -> None:
    done = lab.sh(host, ["nft", line])
    assert done.returncode == 0, done.stderr


def test_each_host_answers_each_other_one_over_the_bridge(lab: Cluster) -> None:
    for asker in lab.hosts:
        for peer in lab.hosts:
            if peer != asker:
                ask.until(
                    f"{peer} answers {asker}",
                    ANSWERED_S,
                    partial(says, lab, asker, peer, "answered"),
                )
                found = seen(lab, asker, peer)
                assert found["bad_answers"] == {} and found["unanswered_s"] is None
                assert found["generation"] >= 1
                # sanlock's word on a host that has just come up is "unknown" until its next look.
                ask.until(
                    f"sanlock of {asker} calls {peer} live",
                    ANSWERED_S,
                    partial(is_live, lab, asker, peer),
                )
                ask.until(
                    "its renewal is known",
                    10,
                    partial(is_renewed, lab, asker, peer),
                )


def test_a_network_cut_in_one_direction_is_told_and_the_whiteboard_goes_on(lab: Cluster) -> None:
    """Packets from the second host to the first are dropped at the first: neither of the two
    gets an answer of the other, and nobody is thought dead."""
    first, second, third = lab.hosts
    ask.until("answered", ANSWERED_S, partial(says, lab, first, second, "answered"))
    before = lab.status()["hosts"]
    address = lab.layout.host(host_id_of(second)).address
    nft(lab, first, "add table inet cut")
    try:
        nft(lab, first, "add chain inet cut in { type filter hook input priority 0; }")
        nft(lab, first, f"add rule inet cut in ip saddr {address} drop")
        for asker, peer in ((first, second), (second, first)):
            ask.until(
                f"{asker} misses the answer of {peer}",
                ANSWERED_S,
                partial(says, lab, asker, peer, "unanswered"),
            )
        found = seen(lab, first, second)
        assert found["unanswered_s"] is not None
        assert found["port_problem"].startswith(f"{address}:{HEARTBEAT_PORT}/udp: ")
        # A busy machine is late with a beat now and then, and so with an answer.
        ask.until("its slot is fresh", ANSWERED_S, lambda: lives(lab, first, second))
        for peer in (second, first):
            ask.until(
                f"{third} hears {peer}", ANSWERED_S, partial(says, lab, third, peer, "answered")
            )
    finally:
        nft(lab, first, "delete table inet cut")
    ask.until("answered again", ANSWERED_S, partial(says, lab, first, second, "answered"))
    after = lab.status()["hosts"]
    for host in lab.hosts:
        assert after[host]["engine_pids"] == before[host]["engine_pids"]


def test_a_dead_host_is_silent_in_each_way_and_the_status_says_so(lab: Cluster) -> None:
    victim = next(host for host in lab.hosts if host != lab.engine_host())
    asker = next(host for host in lab.hosts if host != victim)
    ask.until("answered", ANSWERED_S, partial(says, lab, asker, victim, "answered"))
    lab.cut(victim)
    ask.until("unanswered", ANSWERED_S, partial(says, lab, asker, victim, "unanswered"))

    def line() -> str:
        shown = map(str.strip, lab.sh(asker, ["ha-agent", "--status"]).stdout.splitlines())
        return next((text for text in shown if text.startswith(f"{victim} is silent: ")), "")

    def is_told() -> bool:
        return all(part in line() for part in ("whiteboard ", " without answer, sanlock "))

    ask.until("the status has its line, with each way", ANSWERED_S, is_told)
    lab.power_on(victim)
    lab.wait_booted(victim)
    ask.until("it answers again", 90, partial(says, lab, asker, victim, "answered"))
    # The broker answers before sanlock lets it have its host id, and so its slot, again.
    ask.until("it is silent no more", 90, lambda: not line())


#: Less than sanlock gives the owner of a lease at the lab's io_timeout.
STALL_S = 5.0


def test_who_fills_the_listener_takes_no_heartbeat_away(lab: Cluster) -> None:
    """Strangers take all places of the owner's listener, and its storage hangs for a moment. Its
    heartbeats are still answered, so nobody switches it off."""
    owner = str(lab.engine_host())
    asker, source = (host for host in lab.hosts if host != owner)
    before = lab.status()["hosts"][owner]["engine_pids"]

    def is_heard() -> bool:
        found = seen(lab, asker, owner)
        return found.get("unanswered_s") is None and found.get("port_silent_s") is None

    def is_asked_each_beat() -> bool:
        return float(seen(lab, asker, owner)["heartbeat_age_s"]) < 3.0

    ask.until("answered", ANSWERED_S, partial(says, lab, asker, owner, "answered"))
    with idle_connections(lab, source, owner):
        ask.during("the owner answers", 12.0, is_heard)
        lab.storage(owner, "hang")
        try:
            ask.until("its slot stands still, and it is asked", 3.0, is_asked_each_beat)
            ask.during("it answers", STALL_S - 3.0, lambda: is_heard() and is_asked_each_beat())
        finally:
            lab.storage(owner, "ok")
        ask.during("the owner answers", 5.0, is_heard)
    assert lab.status()["hosts"][owner]["engine_pids"] == before, "its VM was never touched"
