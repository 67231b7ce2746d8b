# SPDX-License-Identifier: LGPL-2.1-or-later
"""Does a member reach this host's libvirt: the signed question, a real listener that answers it,
and what `join` and `doctor` make of the answer."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.doctor.peers import libvirt_peers
from agent.setup import join
from agent.vm import reach as asking
from agent.vm.reach import Heard, reached
from broker.api import reach as answering
from broker.config.addresses import in_uri
from broker.config.cluster_key import ClusterKey
from broker.config.sections import Config
from broker.daemon.foreign import clean
from broker.peers.errors import BadAnswer
from broker.peers.reach_question import (
    Question,
    answer,
    is_host_name,
    new_nonce,
    problem_in,
)
from broker.peers.signed_answer import ANSWER_BYTES_MAX, PROBLEM_CHARS_MAX
from broker.whiteboard.slot import SlotReport, encode_slot
from broker.whiteboard.volume import Volume
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes.broker import make_broker
from tests.fakes.keyed import with_cluster_key
from tests.fakes.listener import listening
from tests.fakes.slot_store import MemoryVolume

KEY, OTHER = ClusterKey(b"k" * 32), ClusterKey(b"o" * 32)
#: libvirt's own driver for tests: it answers without a daemon.
ANSWERS = "test:///default?{host}"
AWAY = "qemu+unix:///system?socket=/nowhere/{host}"


# --- the messages -------------------------------------------------------------------------------


def test_a_question_counts_from_who_has_the_key_alone_and_as_it_was_asked() -> None:
    question = Question("host2", new_nonce()).signed(KEY)
    assert question.is_from(KEY)
    assert not question.is_from(OTHER)
    for changes in ({"name": "host3"}, {"nonce": new_nonce()}, {"mac": ""}, {"mac": "é" * 64}):
        assert not msgspec.structs.replace(question, **changes).is_from(KEY), changes


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a/b",
        "host2:16514/x?y",
        "a b",
        "host\n",
        "-a",
        "a@b",
        "é",
        "h" * 255,
        "a?b",
        "[::1]/x",
        "fe80::1%eth0",
    ],
)
def test_what_could_change_the_meaning_of_a_uri_is_no_name(name: str) -> None:
    assert not is_host_name(name)
    assert not Question(name, new_nonce(), "0" * 64).is_from(KEY)


@pytest.mark.parametrize(
    ("name", "stands"),
    [
        ("kvm1.example.com", "kvm1.example.com"),
        ("kvm1.example.com.", "kvm1.example.com"),
        ("kvm_1", "kvm_1"),
        ("2001:db8::7", "[2001:db8::7]"),
        ("[2001:db8::7]", "[2001:db8::7]"),
        ("192.0.2.7", "192.0.2.7"),
        ("kvm/1", ""),
        (".", ""),
    ],
)
def test_a_name_as_it_stands_in_a_uri(name: str, stands: str) -> None:
    assert in_uri(name) == stands
    assert is_host_name(name) == bool(stands)


@given(st.text(max_size=2 * PROBLEM_CHARS_MAX))
def test_an_answer_is_one_line_and_fits(problem: str) -> None:
    question = Question("host2", new_nonce()).signed(KEY)
    raw = answer(KEY, question, problem)
    assert len(raw) <= ANSWER_BYTES_MAX
    said = problem_in(KEY, raw, question)
    assert "\n" not in said
    assert said == clean(" ".join(problem.split())[:PROBLEM_CHARS_MAX])


def test_an_answer_counts_from_who_has_the_key_and_to_this_question_alone() -> None:
    question = Question("host2", new_nonce()).signed(KEY)
    raw = answer(KEY, question, "")
    assert problem_in(KEY, raw, question) == ""
    for wrong, why in (
        (answer(OTHER, question, ""), "another key"),
        (raw.replace(b'"problem":""', b'"problem":"x"'), "another key"),
        (answer(KEY, msgspec.structs.replace(question, nonce=new_nonce()), ""), "another question"),
        (answer(KEY, msgspec.structs.replace(question, name="host3"), ""), "another question"),
        (b"", "cannot be read"),
        (b"\xff{}", "cannot be read"),
        (msgspec.json.encode(question), "cannot be read"),
    ):
        with pytest.raises(BadAnswer, match=why):
            problem_in(KEY, wrong, question)


# --- a broker that is asked ---------------------------------------------------------------------


def served(
    tmp_path: Path,
    test: Callable[[int], Awaitable[None]],
    uri: str = ANSWERS,
    key: ClusterKey | None = KEY,
) -> None:
    """A broker's listener; `uri`: its migration-uri."""

    async def main() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        section = msgspec.structs.replace(broker.config.libvirt, migration_uri=uri)
        broker.in_force.use(msgspec.structs.replace(broker.config, libvirt=section))
        broker.heartbeats.key = key
        async with listening(broker) as port:
            await test(port)

    asyncio.run(main())


async def said(
    port: int, api: str = "", name: str = "host2", key: ClusterKey = KEY
) -> tuple[bool, str]:
    return await asyncio.to_thread(asking._asked, key, name, api or f"127.0.0.1:{port}")


def test_it_says_that_it_reaches_and_why_not(tmp_path: Path) -> None:
    async def reaches(port: int) -> None:
        assert await said(port) == (True, "")

    async def does_not(port: int) -> None:
        known, problem = await said(port)
        assert known
        assert problem.startswith("qemu+unix:///system?socket=/nowhere/host2: ")

    served(tmp_path, reaches)
    served(tmp_path, does_not, uri=AWAY)


def test_who_cannot_be_asked_has_said_nothing(tmp_path: Path) -> None:
    async def test(port: int) -> None:
        assert await said(port, key=OTHER) == (
            False,
            f"127.0.0.1:{port}: not signed with this cluster's key",
        )
        assert await said(port, "127.0.0.1:1,nonsense") == (
            False,
            "127.0.0.1:1: [Errno 111] Connection refused",
        )
        assert await said(port, "no address") == (False, "it publishes no address (api.listen)")
        assert await said(port, f"127.0.0.1:1,127.0.0.1:{port}") == (True, ""), "the second one"

    async def without(port: int) -> None:
        known, problem = await said(port)
        assert (known, "libvirt.migration-uri is not set" in problem) == (False, True)

    async def keyless(port: int) -> None:
        known, problem = await said(port)
        assert (known, "no cluster key" in problem) == (False, True)

    served(tmp_path, test)
    served(tmp_path, without, uri="")
    served(tmp_path, keyless, key=None)


def test_one_question_at_a_time_and_the_next_one_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(uri: str) -> None:
        begun.set()
        may_end.wait()

    monkeypatch.setattr(answering, "ask_libvirt", slow)

    async def test(port: int) -> None:
        first = asyncio.create_task(said(port))
        await asyncio.to_thread(begun.wait)
        known, problem = await said(port)
        assert (known, "busy" in problem) == (False, True)
        may_end.set()
        assert await first == (True, "")
        assert await said(port) == (True, "")

    served(tmp_path, test)


def test_a_libvirt_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    monkeypatch.setattr(answering, "ask_libvirt", lambda uri: may_end.wait())
    monkeypatch.setattr(answering, "DEADLINE_S", 0.05)

    async def test(port: int) -> None:
        known, problem = await said(port)
        assert (known, "has not answered for" in problem) == (True, True)
        may_end.set()

    served(tmp_path, test)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/libvirt-reach", 400),
        ("/libvirt-reach?name=host2&nonce=1", 400),
        (f"/libvirt-reach?name=a%2Fb&nonce={'0' * 32}&mac={'0' * 64}", 400),
        (f"/libvirt-reach?name=host2&nonce={'0' * 32}", 403),
        (f"/libvirt-reach?name=host2&nonce={'0' * 32}&mac={'0' * 64}", 403),
    ],
)
def test_without_the_key_nothing_is_asked_of_libvirt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, status: int
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(answering, "ask_libvirt", asked.append)

    async def test(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {target} HTTP/1.1\r\nHost: ha\r\nConnection: close\r\n\r\n".encode())
        assert (await reader.read()).startswith(f"HTTP/1.1 {status} ".encode())
        writer.close()
        assert asked == []

    served(tmp_path, test)


# --- the host that asks -------------------------------------------------------------------------


@pytest.fixture
def joined(site: Path) -> Config:
    """A configured host 1 named host1, with a key; nobody else is there yet."""
    config = with_cluster_key(site, KEY)
    replace = msgspec.structs.replace
    return replace(
        config,
        host=replace(config.host, name="host1"),
        libvirt=replace(config.libvirt, migration_uri=ANSWERS, migration_tls=True),
    )


def publish(config: Config, host: int, api: str, stopped: bool = False) -> None:
    """A slot of another host."""
    engine = EngineStatus(VmStatus.DOWN, Health.UNKNOWN, "off")
    report = SlotReport(
        host_id=host,
        timestamp=1,
        score=0,
        engine_status=engine,
        hostname=f"host{host}",
        maintenance=False,
        stopped=stopped,
        extra={"api": api},
    )
    with Volume(config.storage.whiteboard) as volume:
        volume.write_slot(host, encode_slot(report))


def told(config: Config) -> list[str]:
    """What `join` prints of it."""
    return [f"{way.verdict} {way.name}: {way.text}" for way in join._ways_here(config)]


def test_each_member_is_asked_and_its_word_told(tmp_path: Path, joined: Config) -> None:
    async def test(port: int) -> None:
        publish(joined, 2, f"127.0.0.1:{port}")
        publish(joined, 3, "127.0.0.1:1")
        publish(joined, 4, "", stopped=True)
        heard = await asyncio.to_thread(reached, joined, 1)
        assert heard[0] == Heard("host2 (id 2)", True, "")
        assert (heard[1].name, heard[1].known) == ("host3 (id 3)", False)
        assert len(heard) == 2, "one that has stopped is not asked"
        lines = await asyncio.to_thread(told, joined)
        assert lines[0] == "ok host2 (id 2): reaches the libvirt of this host"
        assert lines[1].startswith("warning host3 (id 3): does not say whether it reaches")
        assert lines[1].endswith("type there: virsh -c test:///default?host1 hostname")
        found = await asyncio.to_thread(lambda: list(libvirt_peers(joined)))
        assert [(verdict, fix) for verdict, _, fix in found[2:]] == [
            ("ok", ""),
            ("warn", "there: virsh -c test:///default?host1 hostname"),
        ]

    served(tmp_path, test)


def test_a_member_that_does_not_reach_it_is_a_failure(tmp_path: Path, joined: Config) -> None:
    async def test(port: int) -> None:
        publish(joined, 2, f"127.0.0.1:{port}")
        (line,) = await asyncio.to_thread(told, joined)
        assert line.startswith("warning host2 (id 2): does not reach the libvirt of this host: q")
        found = await asyncio.to_thread(lambda: list(libvirt_peers(joined)))
        assert found[-1][0] == "fail"

    served(tmp_path, test, uri=AWAY)


def test_where_no_migration_is_configured_nobody_is_asked(joined: Config) -> None:
    publish(joined, 2, "127.0.0.1:1")
    section = msgspec.structs.replace(joined.libvirt, migration_uri="")
    assert reached(msgspec.structs.replace(joined, libvirt=section), 1) == []


def test_who_answers_with_anything_else_has_said_nothing(joined: Config) -> None:
    """Whatever is at a published address: nothing it sends is believed, or ends the command."""
    answers = iter((b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000, b""))

    def serve(listening: Any) -> None:
        for sent in answers:
            connection, _ = listening.accept()
            connection.recv(65536)
            connection.sendall(sent)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        publish(joined, 2, f"127.0.0.1:{listening.getsockname()[1]}")
        for _ in range(3):
            (heard,) = reached(joined, 1)
            assert not heard.known
            assert heard.problem
        thread.join()
