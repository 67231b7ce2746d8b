# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mail, webhook and command against real servers and real processes: good, slow and broken."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from broker.config.notify_section import CommandSection, SmtpSection, WebhookSection
from broker.events.notice import Notice
from broker.notify.command import CommandSender
from broker.notify.message import Message, StampedNotice
from broker.notify.sender import Refused, Sender, SendFailed
from broker.notify.smtp import SmtpSender, as_mail, greeting
from broker.notify.webhook import WebhookSender
from broker.wire.kinds import Kind
from tests.fakes.notify_servers import (
    PASSWORD,
    USER,
    Authority,
    Mailbox,
    mail_server,
    silent_server,
    web_server,
)
from tests.fakes.waiting import PATIENCE_S, until

NOON = 1_800_000_000.0
NOTICE = Notice(
    Kind.FAILOVER_DONE,
    "host1",
    "the engine is up and healthy on host1, after 12 s",
    {"to": "host1", "duration_s": 12.5, "from": None, "odd name!": "ä"},
)
MESSAGE = Message(
    "0123abcd",
    "lab",
    "host1",
    (StampedNotice(NOTICE, NOON),),
    0,
    "[lab] failover ä",
    "line 1\nline 2\n",
)
DIGEST = Message(
    "1",
    "lab",
    "host1",
    (StampedNotice(NOTICE, NOON), StampedNotice(NOTICE, NOON)),
    3,
    "many",
    "b\n",
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def done(what: Awaitable[None]) -> None:
    async def run() -> None:
        await what

    asyncio.run(run())


async def why_not(sender: Sender, message: Message = MESSAGE) -> SendFailed:
    with pytest.raises(SendFailed) as failure:
        await sender.send(message)
    assert PASSWORD not in str(failure.value)
    return failure.value


# --- mail ----------------------------------------------------------------------------------


def smtp(port: int, **changed: Any) -> SmtpSender:
    given = {"server": "127.0.0.1", "port": port, "security": "none", "timeout": 5.0}
    return SmtpSender(SmtpSection(**{**given, **changed}), PASSWORD)


@pytest.mark.parametrize("security", ["none", "starttls", "tls"])
@pytest.mark.parametrize("auth", [False, True])
def test_a_mail_arrives(authority: Authority, security: str, auth: bool) -> None:
    async def run() -> None:
        box = Mailbox()
        async with mail_server(box, security, auth, authority) as port:
            await smtp(
                port,
                server="localhost",
                security=security,
                ca_file=authority.ca_file,
                username=USER if auth else "",
                sender="ha@example.org",
                recipients=("a@example.org", "b@example.org"),
            ).send(MESSAGE)
        (mail,), (envelope,) = box.mails, box.envelopes
        assert box.tls == [security != "none"]
        assert box.logins == ([USER.encode()] if auth else [])
        assert envelope.rcpt_tos == ["a@example.org", "b@example.org"]
        assert mail["Subject"] == "[lab] failover ä"
        assert mail["To"] == "a@example.org, b@example.org"
        assert mail["Auto-Submitted"] == "auto-generated"
        assert mail["Message-ID"] == "<0123abcd@host1>"
        assert mail.get_payload(decode=True) == b"line 1\r\nline 2\r\n"

    asyncio.run(run())


def test_a_certificate_of_a_stranger_is_refused(authority: Authority) -> None:
    async def run() -> None:
        for security in ("starttls", "tls"):
            box = Mailbox()
            async with mail_server(box, security, False, authority) as port:
                error = await why_not(smtp(port, server="localhost", security=security))
            assert "CERTIFICATE_VERIFY_FAILED" in str(error)
            assert not isinstance(error, Refused)
            assert not box.tries

    asyncio.run(run())


def test_a_server_without_starttls_gets_neither_mail_nor_password(authority: Authority) -> None:
    async def run() -> None:
        box = Mailbox()
        async with mail_server(box, "none", True) as port:
            await why_not(smtp(port, security="starttls", username=USER, server="localhost"))
        assert not box.tries
        assert not box.logins

    asyncio.run(run())


def test_a_wrong_password_is_told_without_what_the_server_says() -> None:
    async def run() -> None:
        async with mail_server(Mailbox(), "none", True) as port:
            sender = SmtpSender(
                SmtpSection(
                    server="127.0.0.1", port=port, security="none", username=USER, timeout=5.0
                ),
                "wrong-one",
            )
            assert str(await why_not(sender)) == "127.0.0.1: 535, the login is refused"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        ("451 try later", SendFailed, "451 try later"),
        ("554 spam\x1b[2J", Refused, "554 spam?[2J"),
        ("close", SendFailed, "127.0.0.1"),
        ("nonsense", SendFailed, "127.0.0.1"),
    ],
)
def test_what_a_server_says_no_with(answer: str, kind: type[SendFailed], text: str) -> None:
    async def run() -> None:
        async with mail_server(Mailbox(answer)) as port:
            error = await why_not(smtp(port))
        assert type(error) is kind
        assert text in str(error)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("host", "helo", "said"),
    [
        ("kvm1.example.com", "", "kvm1.example.com"),
        ("kvm1.example.com.", "", "kvm1.example.com"),
        ("kvm1", "", "[127.0.0.1]"),
        ("kvm_1.example.com", "", "[127.0.0.1]"),
        ("höst", "", "[127.0.0.1]"),
        ("localhost", "", "[127.0.0.1]"),
        ("kvm1", "mail.example.com", "mail.example.com"),
    ],
)
def test_a_relay_that_wants_full_names_is_greeted_with_one(host: str, helo: str, said: str) -> None:
    async def run() -> None:
        box = Mailbox()
        box.strict = True
        async with mail_server(box) as port:
            await smtp(port, helo=helo).send(replace(MESSAGE, host=host))
        assert box.greetings == [said]
        assert len(box.mails) == 1

    asyncio.run(run())


def test_an_ipv6_address_is_greeted_with_as_a_literal() -> None:
    assert greeting("kvm1", "2001:db8::1") == "[IPv6:2001:db8::1]"


def test_recipients_that_are_not_there() -> None:
    async def run() -> None:
        box = Mailbox()
        async with mail_server(box) as port:
            none = await why_not(smtp(port, recipients=("nobody@example.org",)))
            one = await why_not(smtp(port, recipients=("nobody@example.org", "a@example.org")))
        assert isinstance(none, Refused)
        assert isinstance(one, Refused)
        assert "nobody@example.org (550 no such user)" in str(one)
        assert "no recipient is accepted: 550 no such user" in str(none)
        assert len(box.mails) == 1

    asyncio.run(run())


def test_a_mail_server_that_never_answers_has_its_time() -> None:
    async def run() -> None:
        with silent_server() as port:
            await why_not(smtp(port, timeout=0.2))
        box = Mailbox("hang")
        async with mail_server(box) as port:
            await why_not(smtp(port, timeout=0.2))
            # Cancelled in the middle of it all: nothing is left behind.
            task = asyncio.create_task(smtp(port, timeout=60.0).send(MESSAGE))
            while box.tries < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()

    asyncio.run(run())


def test_nobody_listens_and_no_such_name() -> None:
    async def run() -> None:
        with silent_server() as port:
            pass
        assert "refused" in str(await why_not(smtp(port)))
        assert "looked up" in str(await why_not(smtp(1, server="no-such-host.invalid")))

    asyncio.run(run())


@pytest.mark.parametrize("evil", ["a\r\nBcc: x@y", "a\nb", "\0", "\u2028x", "a\r"])
def test_nothing_in_a_message_can_add_a_header(evil: str) -> None:
    notice = Notice(Kind.PEER_SILENT, evil, evil, {evil: evil})
    message = Message("id", evil, evil, (StampedNotice(notice, NOON),), 0, notice.detail, evil)
    mail = as_mail(message, SmtpSection(server="x"))
    head = mail.as_bytes().partition(b"\r\n\r\n")[0]
    names = [line.partition(b":")[0] for line in head.split(b"\r\n") if not line.startswith(b" ")]
    assert sorted(names) == sorted(
        [
            b"From",
            b"To",
            b"Subject",
            b"Date",
            b"Message-ID",
            b"Auto-Submitted",
            b"X-HA-Agent-Kind",
            b"X-HA-Agent-Severity",
            b"Content-Type",
            b"Content-Transfer-Encoding",
            b"MIME-Version",
        ]
    )


# --- webhook -------------------------------------------------------------------------------

KEY = "0123456789abcdef"


def hook(port: int, path: str = "/secret-path", scheme: str = "http", **changed: Any) -> Any:
    given = {"url": f"{scheme}://localhost:{port}{path}", "timeout": 5.0}
    return WebhookSender(WebhookSection(**{**given, **changed}), KEY, lambda: NOON)


class Hooks:
    """Takes requests. `answers`: a status each, the last one for ever."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers) or [204]
        self.requests: list[tuple[dict[str, str], bytes]] = []

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append((dict(request.headers), await request.read()))
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.Response(status=status, headers={"Location": "/elsewhere"})


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_webhook_gets_a_signed_message(authority: Authority, scheme: str) -> None:
    async def run() -> None:
        hooks = Hooks()
        async with web_server(hooks, authority if scheme == "https" else None) as port:
            await hook(port, scheme=scheme, ca_file=authority.ca_file).send(MESSAGE)
        ((headers, body),) = hooks.requests
        stamp = headers["X-HA-Agent-Timestamp"]
        assert stamp == "1800000000"
        signed = hmac.new(KEY.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
        assert headers["X-HA-Agent-Signature"] == f"sha256={signed}"
        sent = json.loads(body)
        assert headers["X-HA-Agent-Id"] == sent["id"] == "0123abcd"
        assert (sent["version"], sent["kind"], sent["host"]) == (1, "failover-done", "host1")
        assert sent["notices"][0]["facts"] == dict(NOTICE.facts)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, Refused),
        (401, Refused),
        (404, Refused),
        (408, SendFailed),
        (429, SendFailed),
        (500, SendFailed),
        (503, SendFailed),
    ],
)
def test_what_a_webhook_says_no_with(status: int, kind: type[SendFailed]) -> None:
    async def run() -> None:
        hooks = Hooks(status)
        async with web_server(hooks) as port:
            error = await why_not(hook(port))
        assert type(error) is kind
        assert str(error) == f"http://localhost:{port} answers {status}"
        assert len(hooks.requests) == 1, "a redirect is not followed"

    asyncio.run(run())


def test_webhooks_that_hang_close_or_are_not_who_they_say(authority: Authority) -> None:
    async def hang(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    async def close(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"x" * 65_536)

    async def run() -> None:
        with silent_server() as port:
            assert "0.2 s" in str(await why_not(hook(port, timeout=0.2)))
        async with web_server(hang) as port:
            assert "0.2 s" in str(await why_not(hook(port, timeout=0.2)))
        async with web_server(close) as port:
            await why_not(hook(port))
        async with web_server(endless) as port:
            await hook(port).send(MESSAGE)  # what it says does not matter
        async with web_server(Hooks(), authority) as port:
            assert "CERTIFICATE" in str(await why_not(hook(port, scheme="https")))
        with silent_server() as port:
            pass
        error = await why_not(hook(port))
        assert "secret-path" not in str(error)

    asyncio.run(run())


# --- command -------------------------------------------------------------------------------


def command(*argv: str, timeout: float = 10.0) -> CommandSender:
    return CommandSender(CommandSection(argv=argv, timeout=timeout))


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "told"
    path.write_text(f"#!{sys.executable}\nimport json, os, sys, time\n{text}")
    path.chmod(0o755)
    return str(path)


def test_a_command_gets_json_and_facts_and_no_environment_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS", "geheim")
    path = script(
        tmp_path,
        "json.dump([json.load(sys.stdin), dict(os.environ), sys.argv], open(sys.argv[1], 'w'))",
    )
    out = tmp_path / "out"
    done(command(path, str(out), "$(touch x); `y` *").send(MESSAGE))
    body, environment, argv = json.loads(out.read_text())
    assert argv[2] == "$(touch x); `y` *"
    assert body["notices"][0]["detail"] == NOTICE.detail
    assert environment["HA_KIND"] == "failover-done"
    assert environment["HA_FACT_DURATION_S"] == "12.5"
    assert environment["HA_FACT_FROM"] == ""
    assert environment["HA_FACT_ODD_NAME_"] == "ä"
    assert "CREDENTIALS" not in environment
    done(command(path, str(out)).send(DIGEST))
    body, environment, _ = json.loads(out.read_text())
    assert (len(body["notices"]), body["lost"], environment["HA_KIND"]) == (2, 3, "digest")


def test_a_command_that_fails_says_so_with_its_last_words(tmp_path: Path) -> None:
    path = script(tmp_path, "sys.stderr.write('x' * 1_000_000 + ' no\\nmodem'); sys.exit(3)")
    error = str(asyncio.run(why_not(command(path))))
    assert "exit code 3" in error
    assert error.endswith("no modem")
    assert "exit code 127" in str(asyncio.run(why_not(command("/no/such/command"))))


def test_a_command_that_reads_nothing_is_fine() -> None:
    done(command("/bin/true").send(MESSAGE))


def test_a_command_that_takes_too_long_is_killed() -> None:
    error = str(asyncio.run(why_not(command("/bin/sleep", "600", timeout=0.1))))
    assert error == "/bin/sleep: not done within 0.1 s, killed"


@pytest.mark.parametrize("is_cancelled_while_it_starts", [False, True])
def test_what_is_killed_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cancelled_while_it_starts: bool
) -> None:
    """The command is killed also before the loop has had a turn since its start."""
    pid, start = tmp_path / "pid", subprocess.Popen
    path = script(
        tmp_path,
        f"if not os.fork():\n    open('{pid}.new', 'w').write(str(os.getpid()))\n"
        f"    os.rename('{pid}.new', '{pid}')\ntime.sleep(600)",
    )

    async def run() -> None:
        def started(*given: Any, **more: Any) -> subprocess.Popen[bytes]:
            process = start(*given, **more)
            while not pid.exists():
                time.sleep(0.01)
            asyncio.get_running_loop().call_soon(task.cancel)
            return process

        if is_cancelled_while_it_starts:
            monkeypatch.setattr(subprocess, "Popen", started)
        task = asyncio.create_task(command(path, timeout=60.0).send(MESSAGE))
        await until(pid.exists)
        if not is_cancelled_while_it_starts:
            task.cancel()
        done, _ = await asyncio.wait([task], timeout=PATIENCE_S)
        if not done:
            os.kill(int(pid.read_text()), signal.SIGKILL)
        assert done, "it waits for the child"

    asyncio.run(run())
    # The kernel ends the child a moment later; a zombie is dead all the same.
    end_s = time.monotonic() + PATIENCE_S
    while is_alive(int(pid.read_text())):
        assert time.monotonic() < end_s
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_one_that_could_not_be_killed_is_not_piled_upon() -> None:
    class Stuck:
        returncode: int | None = None

    async def run() -> None:
        sender, stuck = command("/bin/true"), Stuck()
        sender._left = stuck  # type: ignore[assignment]
        assert "has not ended" in str(await why_not(sender))
        stuck.returncode = -9
        await sender.send(MESSAGE)

    asyncio.run(run())
