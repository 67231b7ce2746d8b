# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks whether libvirt answers between this host and the others, both ways, as a live migration
needs it. The other hosts' brokers answer for their side (broker/peers/reach_question.py)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import libvirt

from agent.storage.watched import read_slots
from broker.client.ask import BrokerError
from broker.client.other_host import ask_host
from broker.config.addresses import advertised, in_uri
from broker.config.cluster_key import ClusterKey
from broker.config.secrets import load_cluster_key
from broker.config.sections import Config
from broker.daemon.foreign import sentence
from broker.peers.errors import BadAnswer
from broker.peers.libvirt_reach import ask_libvirt
from broker.peers.reach_question import (
    DEADLINE_S,
    Question,
    is_host_name,
    new_nonce,
    problem_in,
)
from broker.peers.signed_answer import ANSWER_BYTES_MAX
from broker.whiteboard.slot import SlotReport

#: Time for a broker's answer: what the broker itself takes, and the network.
ANSWER_S = DEADLINE_S + 3.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Heard:
    """Another host's answer about its connection to this host's libvirt. `name`: of that host.
    `problem`: why it fails, empty: it works; or, where not `known`, why there is no answer."""

    name: str
    known: bool
    problem: str

    @property
    def is_good(self) -> bool:
        """Whether that host reaches this one's libvirt."""
        return self.known and not self.problem

    @property
    def what(self) -> str:
        """The answer in words, without the host's name."""
        if self.is_good:
            return "reaches the libvirt of this host"
        verb = "does not reach" if self.known else "does not say whether it reaches"
        return f"{verb} the libvirt of this host: {self.problem}"


#: How a problem begins where a libvirt answers, but would refuse the VM.
REFUSES = "it would refuse the VM"


def reach(
    config: Config,
    own: int,
    refusal_at: Callable[[str], str] | None = None,
    within_s: float = DEADLINE_S,
) -> list[tuple[str, str]]:
    """Name and problem (empty: it answers) of every other host that did not stop; none where no
    migration is configured. Takes at most `within_s`: all are asked at once. `refusal_at`: why the
    libvirt at an address would refuse the VM, "" where it would not; libvirtError where none
    answers there."""
    uri = config.libvirt.migration_uri
    others = others_of(config, own) if uri else {}

    def ask(host: int) -> str:
        name = in_uri(others[host].hostname)
        if not name:
            return f"{others[host].hostname!r} is no host name or address"
        there = uri.format(host=name)
        try:
            if refusal_at is None:
                ask_libvirt(there)
            elif refused := refusal_at(there):
                return f"{REFUSES}: {refused}"
        except libvirt.libvirtError as error:
            return f"{there}: {sentence(error)}"
        return ""

    found = at_once(others, ask, f"no answer within {within_s:.0f} s", within_s)
    return [(name_of(host, others[host]), problem) for host, problem in found.items()]


def reached(config: Config, own: int, within_s: float = ANSWER_S) -> list[Heard]:
    """Every other host's answer, of those that did not stop; none where no migration is
    configured. Takes at most `within_s`; ConfigError where the cluster key cannot be used."""
    others = others_of(config, own) if config.libvirt.migration_uri else {}
    key = load_cluster_key(config)
    name = config.host_name

    def ask(host: int) -> tuple[bool, str]:
        if key is None:
            return False, "there is no cluster-key here"
        if not is_host_name(name):
            return False, f"{name!r} is no host name"
        report = others[host]
        return _asked(key, name, report.extra.get("api", "") if report.extra_trusted else "")

    late = (False, f"no answer within {within_s:.0f} s")
    found = at_once(others, ask, late, within_s)
    return [Heard(name_of(host, others[host]), *said) for host, said in found.items()]


def command_to(config: Config, name: str) -> str:
    """The command that shows whether this host reaches another one's libvirt. `name`: as `reach`
    has it."""
    host = in_uri(name.rpartition(" (id ")[0])
    return f"virsh -c {config.libvirt.migration_uri.format(host=host)} hostname"


def command_there(config: Config) -> str:
    """The command that shows on another host whether it reaches this host's libvirt."""
    return f"virsh -c {config.libvirt.migration_uri.format(host=in_uri(config.host_name))} hostname"


def others_of(config: Config, own: int) -> dict[int, SlotReport]:
    """The slots of all other hosts that did not stop, by host id."""
    slots = sorted(read_slots(config.storage.whiteboard).reports.items())
    return {host: report for host, report in slots if host != own and not report.stopped}


def name_of(host: int, report: SlotReport) -> str:
    return f"{report.hostname} (id {host})"


def at_once(
    hosts: dict[int, SlotReport], ask: Callable[[int], T], late: T, deadline_s: float
) -> dict[int, T]:
    """The answers of `ask` for each, all asked at once; `late` where there is none in time."""
    found = dict.fromkeys(hosts, late)

    def take(host: int) -> None:
        found[host] = ask(host)

    threads = [threading.Thread(target=take, args=(host,), daemon=True) for host in hosts]
    until_s = time.monotonic() + deadline_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until_s - time.monotonic()))
    return dict(found)


def _asked(key: ClusterKey, name: str, api: str) -> tuple[bool, str]:
    """Whether a broker with these published addresses has answered, and its answer."""
    problem = "it publishes no address (api.listen)"
    for address in advertised(api):
        question = Question(name, new_nonce()).signed(key)
        try:
            return True, problem_in(
                key, ask_host(address, "GET", question.target, ANSWER_BYTES_MAX, ANSWER_S), question
            )
        except (BrokerError, BadAnswer) as error:
            problem = f"{address}: {error}"
    return False, problem
