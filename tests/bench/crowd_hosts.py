# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hosts that are only played: each writes its slot once a second, answers heartbeats on a port of
its own, and asks the real brokers for theirs.

`python -m tests.bench.crowd_hosts WHITEBOARD FIRST LAST ADDRESS REAL,REAL`, REAL a host id and
its address: `1@10.77.0.11:8766`, the cluster key in
hexadecimal on standard input. Runs until it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
import uuid
from functools import partial

from broker.config.cluster_key import ClusterKey
from broker.peers.asker import QUESTION_S, steady_s
from broker.peers.datagram import Question, answer_bytes, question_bytes
from broker.peers.heartbeat import Heartbeat, new_nonce
from broker.peers.heartbeat_port import HeartbeatPort, NetworkTransport
from broker.peers.question_gate import QuestionGate, Refusal
from broker.whiteboard.signatures import COUNTER_LINE, SLOT, Signatures, next_counter
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import SlotReport, encode_slot
from scoring.vm_facts import EngineStatus, Health, VmStatus

BEAT_S = 1.0
FIRST_PORT = 20_000
#: Below that of the real ones, so that the engine stays among them.
SCORE = 3000
_DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "unknown", "vm not running on this host")


def slot(host_id: int, timestamp: int, address: str, signatures: Signatures) -> bytes:
    """What the host writes: as long as what a real one writes, which 97 neighbours read."""
    extra = {
        "state": "EngineDown",
        "agent": "ok",
        COUNTER_LINE: str(next_counter(0, time.time())),
        "boot-id": str(uuid.UUID(int=host_id)),
        "system-uuid": str(uuid.UUID(int=1000 + host_id)),
        "last-ran": "0",
        "domain-type": "kvm",
        "beat": str(timestamp),
        "reason": "the VM runs on host1 (id 1)",
        "network": "10.77.0.1 1.00",
        "heartbeat": f"{address}:{FIRST_PORT + host_id}",
        **{f"fence-path-{n}": "ok 1800000000 1800000000 0.31" for n in (1, 2, 3)},
    }
    return encode_slot(
        SlotReport(host_id, timestamp, SCORE, _DOWN, f"played{host_id}", extra=extra),
        partial(signatures.sign, SLOT, host_id),
    )


async def main() -> None:
    """All of them, in one event loop."""
    whiteboard, first, last, address, real = sys.argv[1:]
    key = ClusterKey(bytes.fromhex(sys.stdin.readline()))
    hosts = range(int(first), int(last) + 1)
    volume = os.open(whiteboard, os.O_RDWR)
    async with asyncio.TaskGroup() as group:
        for host_id in hosts:
            answer = partial(_answer, key, host_id, QuestionGate(host_id))
            port = HeartbeatPort(answer)
            await port.start([(address, FIRST_PORT + host_id)])
            group.create_task(_ask(key, real.split(","), host_id, steady_s(int(last))))
        group.create_task(_write(volume, hosts, address, Signatures(key)))
        print("ready", flush=True)


async def _write(volume: int, hosts: range, address: str, signatures: Signatures) -> None:
    """One slot after the other, all within each beat."""
    began_s, number = time.monotonic(), 0
    while True:
        host_id = hosts[number % len(hosts)]
        data = slot(host_id, 1000 + number // len(hosts), address, signatures)
        os.pwrite(volume, data, host_id * SLOT_BYTES)
        number += 1
        await asyncio.sleep(began_s + number * BEAT_S / len(hosts) - time.monotonic())


def _answer(
    key: ClusterKey, host_id: int, gate: QuestionGate, datagram: bytes, source: str
) -> bytes | None:
    question = gate.admit(key, datagram, source, time.monotonic())
    if isinstance(question, Refusal):
        return None
    boot_id = str(uuid.UUID(int=host_id))
    life = Heartbeat(host_id, boot_id, 1, VmStatus.DOWN, question.nonce)
    return answer_bytes(key, question, life)


async def _ask(key: ClusterKey, real: list[str], host_id: int, between_s: float) -> None:
    transport = NetworkTransport()
    boot_id = str(uuid.UUID(int=host_id))
    await asyncio.sleep(host_id * 0.618 % 1.0 * between_s)
    while True:
        for each in real:
            asked, _, address = each.partition("@")
            number = time.monotonic_ns()
            question = Question(host_id, int(asked), boot_id, number, new_nonce())
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(QUESTION_S):
                    raw = question_bytes(key, question)
                    await transport.ask_port(address, raw, lambda answer: True)
        await asyncio.sleep(between_s)


if __name__ == "__main__":
    asyncio.run(main())
