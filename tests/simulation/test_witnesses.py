# SPDX-License-Identifier: LGPL-2.1-or-later
"""The witnesses of a host's life in simulated clusters: what each says, and how soon."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from agent.status.text import as_text
from broker.whiteboard.lines import Ways
from broker.wire.status import WitnessStatus
from scoring.observation import PeerReport
from tests.simulation.earlier import Metadata
from tests.simulation.host import Host
from tests.simulation.world import Settings, World

UP_S = 90.0


class Cluster:
    """Three hosts under global maintenance, so that nothing is done about what is seen."""

    def __init__(self, victim: Metadata = Metadata.THIS, **settings: Any) -> None:
        self.world = World(Settings(hosts=3, host_boot_s=20.0, **settings), random.Random(7))
        self.world.hosts[2].metadata = victim
        self.world.fault_began("test")
        self.world.power_all_on(1.0)
        self.run(UP_S)
        self.world.set_global_maintenance(True)
        self.run(15.0)
        self.victim = self.world.hosts[2]

    def run(self, for_s: float) -> None:
        self.world.run(for_s)

    def close(self) -> None:
        self.world.stop()
        self.world.close()

    @property
    def asker(self) -> Host:
        return self.world.hosts[1]

    def peer(self) -> PeerReport:
        """The victim as host 1's agent is told of it."""
        broker = self.world.brokers[1]
        view = broker.view(self.asker.clock_s())
        return next(peer for peer in view.observed().peers if peer.host_id == 2)

    def seen(self) -> WitnessStatus:
        """The victim in host 1's status."""
        found = self.world.brokers[1].status(self.asker.clock_s()).hosts[2].witnesses
        assert found is not None
        return found

    def text(self) -> str:
        return as_text(self.world.brokers[1].status(self.asker.clock_s()))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


def test_a_healthy_peer_is_seen_in_each_way(cluster: Cluster) -> None:
    seen = cluster.seen()
    assert (seen.heartbeat, seen.unanswered_s, seen.bad_answers) == ("answered", None, {})
    assert seen.heartbeat_age_s is not None and seen.heartbeat_age_s <= 10.1
    assert seen.whiteboard_age_s is not None and seen.whiteboard_age_s < 2.0
    assert seen.renewal_age_s is not None and seen.renewal_age_s <= 20.0 + 2.0
    assert (seen.sanlock_state, seen.generation) == ("live", 1)


def test_a_power_cut_silences_all_of_them_within_the_suspicion(cluster: Cluster) -> None:
    cluster.victim.power_off("cut")
    cut_s = cluster.asker.clock_s()
    cluster.run(4.0)
    peer = cluster.peer()
    assert peer.unanswered_since_s is not None and peer.unanswered_since_s <= cut_s + 3.0
    assert peer.heartbeat_s is not None and peer.heartbeat_s <= cut_s
    assert peer.renewal_s is not None and peer.renewal_s <= cut_s + 1.0
    words = r"host2 is silent: whiteboard [345] s, network [123] s without answer, sanlock renewed "
    assert re.search(words + r"\d+ s ago\n", cluster.text())
    cluster.run(10.0)
    later = cluster.peer()
    assert (later.unanswered_since_s, later.renewal_s) == (peer.unanswered_since_s, peer.renewal_s)


def test_a_host_whose_storage_hangs_answers_every_beat(cluster: Cluster) -> None:
    cluster.victim.break_storage("hang")
    cluster.run(8.0)
    peer = cluster.peer()
    assert peer.unanswered_since_s is None
    assert peer.heartbeat_s is not None and cluster.asker.clock_s() - peer.heartbeat_s < 1.5
    assert "network answered" in cluster.text()


def test_a_cut_link_silences_the_network_alone(cluster: Cluster) -> None:
    """One way is enough: an answer that does not arrive is none."""
    cluster.world.cut_links.add((2, 1))
    cluster.run(15.0)
    seen = cluster.seen()
    assert seen.heartbeat == "unanswered"
    assert seen.unanswered_s is not None and seen.whiteboard_age_s is not None
    assert seen.whiteboard_age_s < 2.0
    assert cluster.world.brokers[3].heartbeats.word(2).value == "answered"
    cluster.world.cut_links.clear()
    cluster.run(12.0)
    assert cluster.seen().heartbeat == "answered"


def test_a_frozen_host_answers_nothing_and_one_that_thaws_says_nothing_of_others(
    cluster: Cluster,
) -> None:
    cluster.victim.freeze(30.0)
    cluster.run(5.0)
    assert cluster.peer().unanswered_since_s is not None
    cluster.run(27.0)
    assert cluster.peer().unanswered_since_s is None
    cluster.asker.freeze(30.0)
    cluster.run(30.2)
    peer = cluster.peer()
    assert peer.unanswered_since_s is None
    assert peer.heartbeat_s is not None


def test_a_dead_broker_is_no_sign_of_life_but_its_host_id_is_renewed(cluster: Cluster) -> None:
    before = cluster.peer().renewal_s
    cluster.victim.agent_wanted = False
    for _ in range(30):
        cluster.victim.crash("broker")
        cluster.run(1.0)
    peer = cluster.peer()
    assert peer.unanswered_since_s is not None
    assert before is not None and peer.renewal_s is not None and peer.renewal_s > before
    assert cluster.asker.clock_s() - peer.renewal_s < 20.0


def test_renewals_of_a_silent_host_are_read_from_disk_within_a_second(cluster: Cluster) -> None:
    """sanlock's daemon of the asker would tell up to 20 s later."""
    cluster.victim.processes["broker"].kill()
    cluster.victim.crash("broker")
    for _ in range(25):
        cluster.victim.crash("broker")
        cluster.run(1.0)
        sanlock = cluster.victim.sanlock
        assert sanlock is not None
        age_s = cluster.world.timeline.now_s - sanlock.last_renewal_s
        renewal_s = cluster.peer().renewal_s
        assert renewal_s is not None
        if age_s > 2.1:
            assert cluster.asker.clock_s() - renewal_s == pytest.approx(age_s, abs=2.1)


def test_without_a_key_the_network_says_nothing() -> None:
    cluster = Cluster(heartbeat=False)
    cluster.victim.power_off("cut")
    cluster.run(5.0)
    peer = cluster.peer()
    assert (peer.heartbeat_s, peer.unanswered_since_s) == (None, None)
    assert cluster.seen().heartbeat == "no-key"
    assert "network not asked: no cluster-key" in cluster.text()
    cluster.close()


def test_hosts_answer_each_other_at_their_ports_and_leave_the_listeners_alone(
    cluster: Cluster,
) -> None:
    cluster.run(30.0)
    for broker in cluster.world.brokers.values():
        assert broker.gate.answered > 0 and not broker.gate.refused
        assert all(pulse.port_answers for pulse in broker.heartbeats.pulses.values())
    before = cluster.world.brokers[2].gate.answered
    cluster.run(30.0)
    assert cluster.world.brokers[2].gate.answered - before == 6, "two hosts, every ten seconds"


def test_during_an_upgrade_both_ways_are_spoken() -> None:
    """Host 2 is of the version before: it has no port, and knows of none."""
    cluster = Cluster(victim=Metadata.PREVIOUS)
    own, its = cluster.world.brokers[1], cluster.world.brokers[2]
    assert own.heartbeats.pulses[2].ways == Ways((), ("host2:8765",))
    assert its.heartbeats.pulses[1].ways == Ways((), ("host1:8765",))
    assert cluster.seen().heartbeat == "answered" and cluster.seen().heartbeat_trouble == ""
    assert its.heartbeats.word(1).value == "answered"
    cluster.victim.metadata = Metadata.THIS
    cluster.victim.crash("broker")
    cluster.run(40.0)
    assert cluster.world.brokers[1].heartbeats.pulses[2].port_answers
    assert cluster.world.brokers[2].heartbeats.pulses[1].port_answers
    cluster.close()


def test_a_host_that_lives_and_does_not_answer_is_a_trouble(cluster: Cluster) -> None:
    cluster.world.cut_links.add((2, 1))
    cluster.run(20.0)
    assert cluster.seen().heartbeat_trouble == "", "two questions may be lost"
    cluster.run(20.0)
    assert cluster.seen().heartbeat_trouble == "heartbeat-unanswered"
    assert "HEARTBEAT: host2 does not answer over the network" in cluster.text()
    cluster.world.cut_links.clear()
    cluster.run(12.0)
    assert cluster.seen().heartbeat_trouble == "" and "HEARTBEAT" not in cluster.text()
    cluster.victim.power_off("cut")
    cluster.run(60.0)
    assert cluster.seen().heartbeat_trouble == "", "of a silent host it is none"


def test_a_port_that_a_firewall_shuts_is_a_trouble_and_the_listener_speaks_for_the_host(
    cluster: Cluster,
) -> None:
    del cluster.world.by_address[cluster.victim.heartbeat_address]
    cluster.run(45.0)
    seen = cluster.seen()
    assert (seen.heartbeat, seen.unanswered_s) == ("answered", None)
    assert seen.heartbeat_trouble == "heartbeat-port-silent"
    assert "HEARTBEAT: host2 answers at its listener alone" in cluster.text()
