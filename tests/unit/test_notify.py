# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notifications as a whole: made, queued, sent, tried again, folded, shown; and the beat goes
on whatever becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from agent.commands import notify as notify_command
from broker.api.socket import serve
from broker.config.cluster_key import ClusterKey
from broker.config.load import load
from broker.daemon.exit_codes import ExitCode
from broker.events.notice import Notice
from broker.main import reload
from broker.monitors.of_host import HostMonitors
from broker.notify.limits import Limits
from broker.notify.message import Message
from broker.notify.notices import Notices, Setting, setting, silent
from broker.notify.render import BODY_CHARS_MAX, Renderer
from broker.notify.rules import Rules
from broker.notify.sender import Refused, Sender, SendFailed
from broker.wire.exchange import BegunReason
from broker.wire.kinds import Kind, Severity
from broker.wire.notify import NotifyTest
from broker.wire.status import (
    Status,
)
from tests.fakes import virtual_time
from tests.fakes.broker import make_broker, report, up
from tests.fakes.notify_servers import Mailbox, mail_server, silent_server
from tests.fakes.slot_store import MemoryVolume
from tests.fakes.waiting import until

#: Times for tests; the numbers are the real ones.
QUICK = Limits(retry_first_s=0.01, retry_max_s=0.02, give_up_s=0.5, closing_s=0.3, window_s=0.2)


class FakeSender:
    """Sender port. `problems`: raised one by one, None: taken; the last one for ever."""

    def __init__(self, *problems: Exception | None, hangs: bool = False) -> None:
        self.timeout_s = 5.0
        self.severity = Severity.INFO
        self.problems = list(problems) or [None]
        self.hangs = hangs
        self.tries: list[Message] = []
        self.taken: list[Message] = []

    async def send(self, message: Message) -> None:
        self.tries.append(message)
        if self.hangs:
            await asyncio.Event().wait()
        problem = self.problems.pop(0) if len(self.problems) > 1 else self.problems[0]
        if problem is not None:
            raise problem
        self.taken.append(message)

    def details(self) -> list[str]:
        return [told.notice.detail for message in self.taken for told in message.notices]


def told_by(**senders: Sender) -> Setting:
    return Setting(Rules({}), Renderer("/no/templates"), dict(senders), 60.0, "lab", "host1")


@contextlib.asynccontextmanager
async def running(start: Setting, limits: Limits = QUICK) -> AsyncIterator[Notices]:
    notices = Notices(start, limits)
    task = asyncio.create_task(notices.run())
    try:
        yield notices
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def note(detail: str = "it happened", kind: Kind = Kind.PEER_SILENT) -> Notice:
    return Notice(kind, "host2", detail)


# --- sending -------------------------------------------------------------------------------


def test_what_is_told_goes_out_by_every_way() -> None:
    async def run() -> None:
        mail, web = FakeSender(), FakeSender()
        async with running(told_by(smtp=mail, webhook=web)) as notices:
            notices.notify(note("one"))
            await until(lambda: mail.taken and web.taken)
            status = notices.status(asyncio.get_running_loop().time())
        assert mail.details() == web.details() == ["one"]
        assert mail.taken[0].subject == "[lab] host1: critical: peer silent: one"
        assert "host host1 of cluster lab" in mail.taken[0].body
        assert (status.told, status.transports["smtp"].sent) == (1, 1)

    virtual_time.run(run())


def test_a_hung_way_does_not_delay_the_other() -> None:
    async def run() -> None:
        hung, web = FakeSender(hangs=True), FakeSender()
        async with running(told_by(smtp=hung, webhook=web)) as notices:
            for n in range(3):
                notices.notify(note(str(n)))
            await until(lambda: len(web.taken) == 3)
            status = notices.status(asyncio.get_running_loop().time())
        assert (status.transports["smtp"].sent, status.transports["smtp"].queued) == (0, 3)

    virtual_time.run(run())


def test_it_is_tried_again_with_the_same_id_until_it_is_taken() -> None:
    async def run() -> None:
        sender = FakeSender(SendFailed("451"), SendFailed("451"), ValueError("a bug"), None)
        async with running(told_by(smtp=sender)) as notices:
            notices.notify(note())
            await until(lambda: sender.taken)
            status = notices.status(0.0).transports["smtp"]
        assert len({message.id for message in sender.tries}) == 1
        assert len(sender.tries) == 4
        assert (status.sent, status.failed, status.last_error) == (1, 0, "")

    virtual_time.run(run())


def test_what_is_refused_is_not_tried_again_and_what_fails_too_long_is_given_up() -> None:
    async def run() -> None:
        refusing, failing = FakeSender(Refused("550 no")), FakeSender(SendFailed("away"))
        async with running(told_by(smtp=refusing, webhook=failing)) as notices:
            notices.notify(note())

            def failed() -> int:
                return sum(t.failed for t in notices.status(0.0).transports.values())

            await until(lambda: failed() == 2)
            status = notices.status(0.0).transports
        assert len(refusing.tries) == 1
        assert len(failing.tries) == 26, "0.01 s later, then each 0.02 s, for 0.5 s"
        assert status["smtp"].last_error == "550 no"
        assert status["webhook"].last_error == "away"

    virtual_time.run(run())


def test_a_storm_becomes_few_messages_and_nothing_is_lost_uncounted() -> None:
    async def run() -> None:
        sender = FakeSender()
        async with running(told_by(smtp=sender)) as notices:
            for n in range(5_000):
                notices.notify(note(str(n)))
            await until(lambda: sender.taken and not notices.status(0.0).transports["smtp"].queued)
            status = notices.status(0.0)
        sent = sum(len(message.notices) for message in sender.taken)
        assert len(sender.taken) <= QUICK.burst
        assert sent + status.dropped + status.transports["smtp"].dropped == 5_000
        digest = sender.taken[0]
        assert digest.kind == "digest"
        assert f"{sent + digest.lost} notices" in digest.subject
        assert f"and {digest.lost + sent - 50} more" in digest.body

    virtual_time.run(run())


def test_faster_than_the_pace_waits_and_goes_out_together() -> None:
    async def run() -> None:
        sender = FakeSender()
        async with running(told_by(smtp=sender)) as notices:
            for n in range(QUICK.burst):
                notices.notify(note(str(n)))
                await until(lambda: len(sender.details()) == n + 1)  # noqa: B023
            for n in range(20):
                notices.notify(note(f"more {n}"))
            await until(lambda: len(sender.details()) == QUICK.burst + 20)
        assert len(sender.taken) == QUICK.burst + 1

    virtual_time.run(run())


def test_the_same_again_and_again_is_one_message_and_one_with_the_number() -> None:
    async def run() -> None:
        sender = FakeSender()
        start = told_by(smtp=sender)
        start = Setting(start.rules, start.renderer, start.senders, 0.2, "lab", "host1")
        async with running(start) as notices:
            for _ in range(100):
                notices.notify(note())
            await until(lambda: len(sender.taken) == 2)
            assert notices.status(0.0).folded == 99
        assert sender.taken[1].notices[0].repeats == 99
        assert "99 times more" in sender.taken[1].body

    virtual_time.run(run())


def test_a_way_out_has_its_own_least_severity() -> None:
    async def run() -> None:
        sender, pager = FakeSender(), FakeSender()
        pager.severity = Severity.CRITICAL
        async with running(told_by(smtp=sender, command=pager)) as notices:
            notices.notify(note("A-B", Kind.STATE_TRANSITION))
            notices.notify(note("bad"))
            await until(lambda: len(sender.details()) == 2 and pager.taken)
        assert pager.details() == ["bad"]

    virtual_time.run(run())


# --- never on the decision path ------------------------------------------------------------


def test_telling_needs_no_loop_no_task_and_never_raises() -> None:
    notices = Notices(told_by(smtp=FakeSender()), QUICK)
    for n in range(3 * QUICK.inbox):
        notices.notify(note(str(n)))
    status = notices.status(0.0)
    assert (status.told, status.dropped) == (3 * QUICK.inbox, 2 * QUICK.inbox)


def test_where_nothing_is_configured_nothing_is_kept() -> None:
    notices = Notices(told_by())
    notices.notify(note())
    assert notices.status(0.0) == Notices(told_by()).status(0.0)


def test_the_beat_goes_on_while_all_ways_hang_and_a_storm_rages(tmp_path: Path) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        hung = {name: FakeSender(hangs=True) for name in ("smtp", "webhook", "command")}
        broker.notices.use(told_by(**hung))
        task = asyncio.create_task(broker.notices.run())
        for beat in range(1, 200):
            up(broker, float(beat))
            states = ("EngineUp", "EngineUpBadHealth")
            broker.take_report(report(states[beat % 2]), float(beat))
            for n in range(50):
                broker.notices.notify(note(f"{beat} {n}"))
            await broker.beat(float(beat))
        assert broker.status(199.5).hosts[1].age_s == 0.5
        assert broker.status(199.5).notify.transports["smtp"].sent == 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.done()

    virtual_time.run(run())


def test_the_end_tries_once_more_and_not_for_long() -> None:
    async def run() -> None:
        good, hung = FakeSender(), FakeSender(hangs=True)
        async with running(told_by(smtp=good, webhook=hung)) as notices:
            notices.notify(note("0"))
            await until(lambda: good.taken and hung.tries)
            notices.notify(note("1"))
            notices.notify(note("2"))
        assert good.details() == ["0", "1", "2"]
        status = notices.status(0.0).transports
        assert (status["webhook"].queued, status["webhook"].dropped) == (0, 3)

    virtual_time.run(run())


def test_what_waits_for_its_next_try_is_tried_at_the_end() -> None:
    async def run() -> None:
        slow = Limits(retry_first_s=1000, retry_max_s=1000, give_up_s=3000, closing_s=5.0)
        sender = FakeSender(SendFailed("not now"), None)
        async with running(told_by(smtp=sender), slow) as notices:
            notices.notify(note("one"))
            await until(lambda: sender.tries)
            notices.notify(note("two"))
            notices.notify(note("three"))
            await asyncio.sleep(0)
        assert sender.details() == ["one", "two", "three"]
        assert len(sender.taken) == 2

    virtual_time.run(run())


# --- reload --------------------------------------------------------------------------------


def test_a_new_setting_takes_over_what_waits_and_keeps_the_counters() -> None:
    async def run() -> None:
        slow = Limits(retry_first_s=1000, retry_max_s=1000, give_up_s=3000)
        old, new, other = FakeSender(SendFailed("away")), FakeSender(), FakeSender()
        async with running(told_by(smtp=old, webhook=FakeSender(hangs=True)), slow) as notices:
            notices.notify(note("one"))
            await until(lambda: old.tries)
            notices.use(told_by(smtp=new, command=other))
            await until(lambda: new.taken)
            notices.notify(note("two"))
            await until(lambda: other.taken)
            status = notices.status(0.0)
        assert new.details() == ["one", "two"]
        assert other.details() == ["two"]
        assert sorted(status.transports) == ["command", "smtp"]
        assert status.dropped == 1, "what waited for the webhook"

    virtual_time.run(run())


# --- templates -----------------------------------------------------------------------------


async def filled(folder: Path, **parts: str) -> tuple[Message, Renderer]:
    for name, text in parts.items():
        (folder / f"{name.replace('__', '.')}.j2").write_text(text)
    sender = FakeSender()
    start = told_by(smtp=sender)
    renderer = Renderer(str(folder))
    async with running(
        Setting(start.rules, renderer, start.senders, 60.0, "lab", "host1")
    ) as notices:
        notices.notify(Notice(Kind.FAILOVER_DONE, "host1", "it is up", {"duration_s": 12.5}))
        await until(lambda: sender.taken)
    return sender.taken[0], renderer


def test_a_template_of_the_kind_goes_before_the_default(tmp_path: Path) -> None:
    message, renderer = asyncio.run(
        filled(
            tmp_path,
            **{
                "failover-done__subject": "{{ cluster }}/{{ host }}:\n{{ facts.duration_s }} s\n",
                "default__subject": "no",
                "default__body": "{% for n in notices %}{{ n.kind }} {{ n.detail }}{% endfor %}",
            },
        )
    )
    assert message.subject == "lab/host1: 12.5 s"
    assert message.body == "failover-done it is up"
    assert not renderer.problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{{ nothing.such }}", "UndefinedError"),
        ("a\n{% if %}", "line 2: TemplateSyntaxError"),
        ("{% include '/etc/shadow' %}", "no loader"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ facts.update(x=1) }}", "SecurityError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("x" * 70_000, "larger than"),
    ],
)
def test_a_template_with_an_error_is_replaced_and_told(
    tmp_path: Path, text: str, problem: str
) -> None:
    message, renderer = asyncio.run(filled(tmp_path, default__body=text))
    assert problem in renderer.problem
    assert problem in message.body
    assert "it is up" in message.body
    assert message.subject.startswith("[lab] host1")


def test_a_template_that_says_too_much_is_cut(tmp_path: Path) -> None:
    text = "{% for i in range(90000) %}0123456789\x07{% endfor %}"
    message, _ = asyncio.run(filled(tmp_path, default__body=text, default__subject=text))
    assert len(message.body) == BODY_CHARS_MAX
    assert "\x07" not in message.body
    assert len(message.subject) == 200


# --- from the broker's configuration to a real server ----------------------------------------


def write(path: Path, text: str) -> None:
    path.write_text('[host]\nid = 1\n[storage]\nwhiteboard = "/w"\nleases = "/l"\n' + text)


def smtp_toml(port: int, **more: object) -> str:
    lines = [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in more.items()]
    return f'[notify.smtp]\nserver = "127.0.0.1"\nport = {port}\nsecurity = "none"\n' + "\n".join(
        lines
    )


def test_sighup_takes_new_notifications_and_refuses_bad_ones(tmp_path: Path) -> None:
    async def run() -> None:
        path, box, other = tmp_path / "1.toml", Mailbox(), Mailbox()
        async with mail_server(box) as port, mail_server(other) as new_port:
            broker = make_broker(tmp_path, MemoryVolume())
            base = path.read_text()
            monitors = HostMonitors(broker.config)
            task = asyncio.create_task(broker.notices.run())
            path.write_text(base + smtp_toml(port))
            reload(str(path), broker, monitors)
            assert not broker.in_force.problem
            path.write_text(base + '[notify.webhook]\nurl = "http://x/"\n')
            reload(str(path), broker, monitors)
            assert "secrets.toml" in broker.in_force.problem
            await until(lambda: box.mails)
            assert "config refused" in box.mails[0]["Subject"]
            path.write_text(base + smtp_toml(new_port))
            reload(str(path), broker, monitors)
            broker.notices.notify(note("after"))
            await until(lambda: other.mails)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert len(box.mails) == 1

    asyncio.run(run())


def test_sighup_takes_the_cluster_key_as_it_is_now(tmp_path: Path) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        path, secrets = tmp_path / "1.toml", tmp_path / "secrets.toml"
        text = path.read_text().replace("[daemon]\n", f'[daemon]\nsecrets = "{secrets}"\n')
        assert str(secrets) in text
        path.write_text(text)
        monitors = HostMonitors(broker.config)

        def reload_with(text: str) -> None:
            secrets.write_text(text)
            secrets.chmod(0o600)
            reload(str(path), broker, monitors)

        old, new = "0" * 64, "1" * 64
        reload_with(f'cluster-key = "{old}"\n')
        assert broker.heartbeats.key is None, "a first key needs a restart"
        broker.heartbeats.key = ClusterKey(bytes.fromhex(old))
        reload_with(f'cluster-key = "{new}"\ncluster-key-accepted = "{old}"\n')
        wanted = ClusterKey(bytes.fromhex(new), bytes.fromhex(old))
        assert broker.heartbeats.key == wanted
        reload_with('cluster-key = "short"\n')
        assert "cluster-key" in broker.in_force.problem and broker.heartbeats.key == wanted
        reload_with("")
        assert broker.heartbeats.key == wanted, "a key that was taken away needs one too"

    asyncio.run(run())


def test_a_secret_that_is_amiss_does_not_keep_the_broker_from_starting(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    write(path, f'[notify.webhook]\nurl = "http://x/"\n[daemon]\nsecrets = "{tmp_path}/none"\n')
    notices = Notices.of(load(str(path)))
    notices.notify(note())
    assert "none: cannot be read" in notices.status(0.0).problem
    assert not notices.status(0.0).transports


def test_a_ca_file_that_is_not_there_names_its_key(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    write(path, '[notify.smtp]\nserver = "mail"\nca-file = "/no/ca.pem"\n')
    assert "notify.smtp.ca-file" in Notices.of(load(str(path))).problem


def test_nothing_is_imported_that_is_not_configured(tmp_path: Path) -> None:
    write(tmp_path / "c.toml", "")
    code = (
        "import sys; from broker.config.load import load;"
        "from broker.notify.notices import Notices;"
        f"Notices.of(load({str(tmp_path / 'c.toml')!r}));"
        "print([m for m in ('aiosmtplib', 'jinja2', 'regex', 'aiohttp') if m in sys.modules])"
    )
    import subprocess
    import sys

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_notify_test_over_the_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        path = broker.config.daemon.socket
        runner = await serve(broker, path)
        url = "http://ha/v1/notify/test"
        try:
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
                async with session.post(url) as answer:
                    assert answer.status == 409
                    assert answer.content_type == "application/problem+json"
                    assert "notify.smtp.server" in (await answer.json())["detail"]
                box = Mailbox()
                with silent_server() as port:
                    async with mail_server(box) as mail_port:
                        write(tmp_path / "n.toml", smtp_toml(mail_port))
                        broker.notices.use(setting(load(str(tmp_path / "n.toml"))))
                        code = await asyncio.to_thread(notify_command.run, path, False)
                        assert code == ExitCode.OK
                        assert box.mails[0]["X-HA-Agent-Kind"] == "test"
                    write(tmp_path / "n.toml", smtp_toml(port, timeout=0.3))
                    broker.notices.use(setting(load(str(tmp_path / "n.toml"))))
                    code = await asyncio.to_thread(notify_command.run, path, True)
                    assert code == ExitCode.NOT_SENT
                async with session.get("http://ha/v1/status") as answer:
                    status = msgspec.json.decode(await answer.read(), type=Status)
                    assert list(status.notify.transports) == ["smtp"]
        finally:
            await runner.cleanup()

    asyncio.run(run())
    out = capsys.readouterr().out
    assert out.startswith("smtp     ok (")
    outcome = msgspec.json.decode(out[out.index("{") :], type=NotifyTest).outcomes["smtp"]
    assert not outcome.ok
    assert outcome.error


def test_the_broker_tells_what_its_agent_reports(tmp_path: Path) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        sender = FakeSender()
        broker.notices.use(told_by(smtp=sender))
        task = asyncio.create_task(broker.notices.run())
        broker.take_report(report("EngineUp"), 1.0)
        begun = (BegunReason(2, "vm-unprotected", "its process holds no lease"),)
        bad = msgspec.structs.replace(report("EngineUpBadHealth"), begun=begun)
        broker.take_report(bad, 2.0)
        broker.take_report(bad, 3.0)
        await until(lambda: len(sender.details()) == 2)
        assert sender.details() == ["its process holds no lease", "EngineUp-EngineUpBadHealth"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    virtual_time.run(run())


def test_silent_is_a_setting_too(tmp_path: Path) -> None:
    write(tmp_path / "c.toml", "")
    assert silent(load(str(tmp_path / "c.toml"))).senders == {}
