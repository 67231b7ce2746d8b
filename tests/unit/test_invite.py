# SPDX-License-Identifier: LGPL-2.1-or-later
"""Invitations: a newcomer gets the cluster's files once, from the member that the token names."""

from __future__ import annotations

import os
import socket
import ssl
import string
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.invite import fetch, server
from agent.invite.offer import ANSWER_BYTES_MAX, Answer, Asked, Ids, Offer, Spec
from agent.invite.token import NoToken, Token, fingerprint_of, read, written
from agent.setup import invite
from agent.setup.fetched import FOLDER, source_of
from agent.setup.written import Files
from agent.terminal.errors import CommandError
from broker.daemon.exit_codes import ExitCode

OFFER = Offer(config="c", secrets="s", definition="d", ids={}, version="1")
TOKEN = Token(("192.0.2.1", "2001:db8::1"), 8767, bytes(range(16)), bytes(range(12)))

NAMES = st.text(string.ascii_letters + string.digits + ".-:", min_size=1, max_size=255)


def test_a_folder_brings_all_that_a_token_does(tmp_path: Path) -> None:
    from agent.setup.fetched import _ids_in, lay

    ids = {"ha-agent": Ids(990, 991)}
    lay(msgspec.structs.replace(OFFER, authority="a", ids=ids), tmp_path / "f")
    found = {path.name: path.read_text() for path in (tmp_path / "f").iterdir()}
    assert found.pop("ids.json") and _ids_in(tmp_path / "f") == ids
    wanted = {"ha-agent.toml": "c", "secrets.toml": "s", "engine.xml": "d", "authority.pem": "a"}
    assert found == wanted
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "f").iterdir()} == {0o600}


@given(
    st.lists(NAMES, min_size=1, max_size=3),
    st.integers(1, 65535),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=12, max_size=12),
)
def test_a_token_is_read_as_it_was_written(
    names: list[str], port: int, fingerprint: bytes, secret: bytes
) -> None:
    token = Token(tuple(names), port, fingerprint, secret)
    assert read(written(token)) == token


def test_a_token_of_one_address_is_short_enough_for_a_line_and_a_line_break_does_not_matter() -> (
    None
):
    text = written(Token(("192.168.100.100",), 8767, bytes(16), bytes(12)))
    assert len(text) <= 80
    assert read(f" {text[:30]}\n  {text[30:]}\n").port == 8767


def test_no_single_wrong_letter_and_no_part_of_a_token_is_taken_for_one() -> None:
    text = written(TOKEN)
    for place in range(len(text)):
        wrong = "A" if text[place] != "A" else "B"
        try:
            found = read(text[:place] + wrong + text[place + 1 :])
        except NoToken:
            continue
        assert found == TOKEN, "only bits that mean nothing may differ"
        pytest.fail(f"letter {place} may be wrong")
    for length in range(len(text)):
        with pytest.raises(NoToken):
            read(text[:length])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_token_or_are_refused(data: bytes) -> None:
    with pytest.raises(NoToken):
        read("ha1-" + data.hex())


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def invitation(clock: Clock) -> server.Invitation:
    return server.Invitation(Spec((), "", "aa", OFFER), clock)


def test_the_offer_is_given_once() -> None:
    one = invitation(Clock())
    assert one.answer(Asked("aa", "host2")).offer == OFFER
    again = one.answer(Asked("aa", "host3"))
    assert again.offer is None
    assert again.problem == (
        "the token was used already, by host2; type ha-agent invite there again"
    )


def test_the_offer_is_given_for_ten_minutes() -> None:
    clock = Clock()
    one = invitation(clock)
    clock.now_s += 600
    late = one.answer(Asked("aa", "host2"))
    assert late.offer is None
    assert late.problem == "the token is older than 10 minutes; type ha-agent invite there again"
    assert one.stays_s == 300


def test_who_does_not_know_the_secret_does_not_learn_whether_it_was_used() -> None:
    one = invitation(Clock())
    before = one.answer(Asked("ab", "host2"))
    assert one.answer(Asked("aa", "host2")).offer == OFFER
    assert one.answer(Asked("ab", "host2")) == before == Answer(problem=server.WRONG)


def test_what_a_newcomer_calls_itself_steers_no_terminal() -> None:
    one = invitation(Clock())
    one.answer(Asked("aa", "\x1b[2Jhost2"))
    assert "\x1b" not in one.answer(Asked("aa")).problem


def test_a_network_asks_so_often_a_minute_and_takes_no_place_of_another() -> None:
    clock = Clock()
    one = invitation(clock)
    asked = [one.is_let_in("2001:db8::1"), *(one.is_let_in(f"2001:db8::{n}") for n in range(30))]
    assert asked.count(True) == server.OF_ONE_NETWORK
    assert one.is_let_in("192.0.2.1")
    clock.now_s += server.RATE_S
    assert one.is_let_in("2001:db8::9")


def test_the_memory_for_networks_is_bounded() -> None:
    one = invitation(Clock())
    for number in range(2 * server.NETWORKS):
        assert one.is_let_in(f"10.{number >> 8}.{number & 255}.1")
    assert len(one._came) == server.NETWORKS


# --- the process ----------------------------------------------------------------------------


class Opened:
    """An invitation whose process runs."""

    def __init__(self, **spec: Any) -> None:
        certificate, der = invite._certificate()
        self.sock = socket.create_server(("127.0.0.1", 0))
        port = self.sock.getsockname()[1]
        self.token = Token(("127.0.0.1",), port, fingerprint_of(der), b"s" * 12)
        given = Spec((self.sock.fileno(),), certificate, self.token.secret.hex(), OFFER, **spec)
        self.process = invite._leave(given)
        self.pid = self.process.pid
        self.sock.close()


@pytest.fixture
def opened() -> Iterator[Opened]:
    one = Opened()
    yield one
    one.process.kill()
    one.process.wait()


def said(token: Token | str) -> str:
    with pytest.raises(CommandError) as caught:
        fetch.fetched(token if isinstance(token, str) else written(token), "host2")
    return str(caught.value)


def test_the_newcomer_has_the_offer_by_the_process(opened: Opened) -> None:
    assert fetch.fetched(written(opened.token), "host2") == OFFER
    assert "was used already, by host2" in said(opened.token)


def test_the_process_has_no_rights_left(opened: Opened) -> None:
    fetch.fetched(written(opened.token), "host2")
    status = Path(f"/proc/{opened.pid}/status").read_text()
    if os.geteuid() == 0:
        assert "Uid:\t65534\t65534\t65534\t65534" in status
        assert "CapEff:\t0000000000000000" in status
    assert "512" in Path(f"/proc/{opened.pid}/limits").read_text() or "536870912" in (
        Path(f"/proc/{opened.pid}/limits").read_text()
    )


def test_a_wrong_secret_does_not_use_the_token_up(opened: Opened) -> None:
    wrong = Token(opened.token.addresses, opened.token.port, opened.token.fingerprint, b"x" * 12)
    assert "it does not know this token" in said(wrong)
    assert fetch.fetched(written(opened.token), "host2") == OFFER


def test_who_stands_in_for_the_member_does_not_learn_the_secret(opened: Opened) -> None:
    other = Token(opened.token.addresses, opened.token.port, bytes(16), opened.token.secret)
    assert "is not the member that made this token" in said(other)
    assert fetch.fetched(written(opened.token), "host2") == OFFER, "the secret was not sent"


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + b"x" * 9000])
def test_strangers_take_no_place_from_the_newcomer(opened: Opened, sent: bytes) -> None:
    port = opened.token.port
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
    for each in strangers:
        each.sendall(sent)
    assert fetch.fetched(written(opened.token), "host2") == OFFER
    for each in strangers:
        each.close()


def test_a_process_whose_time_is_over_ends() -> None:
    one = Opened(holds_s=0.0, says_s=0.0)
    assert one.process.wait() == 0
    text = said(one.token)
    assert "Connection refused" in text
    assert "the token holds for ten minutes and once" in text


def test_a_member_that_answers_nonsense_is_one_sentence() -> None:
    certificate, der = invite._certificate()
    context = server._context(certificate)
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def answer() -> None:
            with context.wrap_socket(sock.accept()[0], server_side=True) as talk:
                talk.recv(1024)
                talk.sendall(b"[1]\n")

        thread = threading.Thread(target=answer)
        thread.start()
        port = sock.getsockname()[1]
        text = said(Token(("127.0.0.1",), port, fingerprint_of(der), bytes(12)))
        thread.join()
    assert text == f"127.0.0.1:{port}: answered in part"


@pytest.mark.parametrize("text", ["", "ha1-", "ha2-abc", "hello", "ha1-" + "A" * 5000])
def test_what_is_no_token_is_one_sentence_and_nobody_is_asked(text: str) -> None:
    assert said(text).startswith("TOKEN: it is n")


def test_what_is_no_tls_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def answer() -> None:
            with sock.accept()[0] as talk:
                talk.recv(1024)
                talk.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        token = Token(("127.0.0.1",), sock.getsockname()[1], bytes(16), bytes(12))
        assert "speaks no TLS that this host knows" in said(token)
        thread.join()


def test_the_largest_offer_fits() -> None:
    text = "x" * (2 * 1024 * 1024)
    offer = Offer(config=text, secrets=text, definition=text)
    assert len(msgspec.json.encode(Answer(offer))) < ANSWER_BYTES_MAX


# --- join -----------------------------------------------------------------------------------


class Words:
    """The arguments of `join`."""

    def __init__(self, token: str | None, source: str | None = None) -> None:
        self.token, self.source, self.name, self.dry_run = token, source, "host2", False


@pytest.mark.parametrize("words", [Words(None), Words("ha1-x", "/root/ha")])
def test_join_takes_a_token_or_a_folder(words: Any, tmp_path: Path) -> None:
    with (
        pytest.raises(CommandError, match="one of the two is needed"),
        source_of(words, Files(tmp_path / "ha-agent.toml")),
    ):
        pass


def test_what_a_token_fetched_is_roots_alone_and_gone_after_the_join(
    opened: Opened, tmp_path: Path
) -> None:
    files = Files(tmp_path / "etc" / "ha-agent.toml")
    words: Any = Words(written(opened.token))
    with source_of(words, files) as source:
        assert source.folder.stat().st_mode & 0o777 == 0o700
        modes = {path.name: path.stat().st_mode & 0o777 for path in source.folder.iterdir()}
        names = ("ha-agent.toml", "secrets.toml", "engine.xml", "ids.json")
        assert modes == dict.fromkeys(names, 0o600)
        assert (source.folder / "secrets.toml").read_text() == "s"
    assert not source.folder.exists()


def test_a_join_that_fails_keeps_what_the_token_fetched_and_says_how_to_go_on(
    opened: Opened, tmp_path: Path
) -> None:
    files = Files(tmp_path / "ha-agent.toml")
    words: Any = Words(written(opened.token))
    with (
        pytest.raises(CommandError) as caught,
        source_of(words, files),
    ):
        raise CommandError(ExitCode.STORAGE, "not mounted")
    folder = tmp_path / FOLDER
    assert str(caught.value) == (
        f"not mounted; what the token fetched is kept: ha-agent join --from {folder}"
    )
    later: Any = Words(None, str(folder))
    with source_of(later, files) as source:
        assert (source.folder / "ha-agent.toml").read_text() == "c"


def test_the_talk_takes_tls_1_2_and_later_alone(opened: Opened) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", opened.token.port)) as plain,
        context.wrap_socket(plain) as talk,
    ):
        assert talk.version() == "TLSv1.3"
