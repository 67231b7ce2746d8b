# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks whether the other hosts' ports for heartbeats answer this one, and says what to open where
they do not: for `init`, `join` and `doctor`. It asks as the broker does, with this host's id and
key."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from enum import Enum

from agent.terminal.steps import Done
from agent.vm.reach import at_once, others_of
from broker.config.addresses import advertised, split
from broker.config.cluster_key import ClusterKey
from broker.config.secrets import load_cluster_key
from broker.config.sections import HEARTBEAT_PORT, Config
from broker.daemon.errors import why
from broker.daemon.kernel_boot import boot_id
from broker.peers.datagram import DATAGRAM_BYTES, Question, heard_in, question_bytes
from broker.peers.heartbeat import Fault, new_nonce

#: How often each address is asked, and how long each answer is waited for: a packet may be lost.
TRIES, ANSWER_S = 3, 1.0
#: Time for all addresses of a host, one after the other (broker/config/addresses.py,
#: ADDRESSES_MAX).
DEADLINE_S = 4 * TRIES * ANSWER_S + 1.0
#: The command that opens the usual port, where firewalld runs.
OPEN = "firewall-cmd --permanent --add-service=ha-agent && firewall-cmd --reload"


class Port(Enum):
    """The result of the questions to a host's port. NONE: the host publishes no port."""

    ANSWERS = "answers"
    SILENT = "silent"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Asked:
    """A host that was asked: its `name`, and the result `what`, in words."""

    name: str
    port: Port
    what: str


def ask_ports(config: Config, within_s: float = DEADLINE_S) -> list[Asked]:
    """Ask every host that did not stop; empty where this host has no cluster key. Takes at most
    `within_s`; ConfigError where the key cannot be used."""
    key = load_cluster_key(config)
    if key is None:
        return []
    others = others_of(config, config.host.id)

    def ask(host_id: int) -> tuple[Port, str]:
        report = others[host_id]
        published = report.extra.get("heartbeat", "") if report.extra_trusted else ""
        return _ask(key, config.host.id, host_id, advertised(published))

    late = (Port.SILENT, f"no answer within {within_s:.0f} s")
    found = at_once(others, ask, late, within_s)
    return [Asked(f"{others[host].hostname} (id {host})", *said) for host, said in found.items()]


def ports_done(config: Config) -> list[Done]:
    """The results as steps of a set-up, and the port that the other hosts need of this one."""
    found = []
    for asked in ask_ports(config):
        verdict = "ok" if asked.port is Port.ANSWERS else "warning"
        found.append(Done(f"heartbeat of {asked.name}", verdict, asked.what))
    listen = config.heartbeat_listen()
    if not listen:
        return found  # nothing is added; doctor explains the results
    where = ", ".join(f"{address}/udp" for address in listen)
    text = f"the other hosts ask this one at {where}; in its firewall: {how_to_open(listen)}"
    return [*found, Done("heartbeat", "ok", text)]


def how_to_open(addresses: tuple[str, ...]) -> str:
    """The command that opens the ports of these addresses in firewalld."""
    ports = sorted({split(address)[1] for address in addresses})
    if ports == [HEARTBEAT_PORT]:
        return OPEN
    opened = " ".join(f"--add-port={port}/udp" for port in ports)
    return f"firewall-cmd --permanent {opened} && firewall-cmd --reload"


def _ask(key: ClusterKey, own: int, host_id: int, addresses: tuple[str, ...]) -> tuple[Port, str]:
    """The first address that answers, or why none does."""
    if not addresses:
        text = "publishes no port for heartbeats: an earlier version, or it listens nowhere"
        return Port.NONE, text
    problems = []
    for address in addresses:
        problem = _problem_at(key, own, host_id, address)
        if not problem:
            return Port.ANSWERS, f"answers at {address}/udp"
        problems.append(f"{address}/udp: {problem}")
    return Port.SILENT, f"does not answer: {'; '.join(problems)}"


def _problem_at(key: ClusterKey, own: int, host_id: int, address: str) -> str:
    """Why there was no answer; empty: there was one."""
    host, port = split(address)
    problem = f"silent for {TRIES} questions"
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.connect(place)
            for _ in range(TRIES):
                number = time.monotonic_ns()
                question = Question(own, host_id, boot_id(), number, new_nonce())
                sock.send(question_bytes(key, question))
                found = _answer(sock, key, question)
                if found is None:
                    return ""
                problem = found or problem
    except OSError as error:
        return why(error)
    return problem


def _answer(sock: socket.socket, key: ClusterKey, question: Question) -> str | None:
    """Wait for the answer: None when it has come; else the text of what came instead (empty:
    nothing)."""
    until_s, wrong = time.monotonic() + ANSWER_S, ""
    while (left_s := until_s - time.monotonic()) > 0:
        sock.settimeout(left_s)
        try:
            answer = heard_in(key, sock.recv(DATAGRAM_BYTES + 1), question)
        except TimeoutError:
            break
        if not isinstance(answer, Fault):
            return None
        wrong = answer.value
    return wrong
