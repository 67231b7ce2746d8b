# SPDX-License-Identifier: LGPL-2.1-or-later
"""The status for people: its first lines, its way from the wire, what it costs to start."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import aiohttp
import msgspec
import pytest

from agent.commands.why import explain
from agent.status.fetch import shown
from agent.status.read import Lacking, read
from agent.status.text import as_text
from agent.status.troubles import troubles
from broker.broker import Broker
from broker.client.quick import BrokerDown, get
from broker.config.places import DEFAULT_SOCKET, plainly_named_socket
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.wire.status import (
    DifferenceStatus,
    EngineSummary,
    FenceLogEntry,
    ModeStatus,
    MonitorStatus,
    MoveStatus,
    PenaltyOnWire,
    ReasonOnWire,
    Status,
    WhatRanStatus,
    WitnessStatus,
)
from scoring.rules import Rules
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes.broker import in_thread, served
from tests.fakes.statuses import DOWN, UP, documented, host, status
from tests.unit import commands

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ILL = EngineStatus(VmStatus.UP, Health.BAD, "up", "no answer")


WELL = (host(1, UP, state="EngineUp", local=True), host(2))


def lines(status: Status) -> list[str]:
    return as_text(status).splitlines()


def test_while_all_is_well_three_lines_say_it() -> None:
    assert lines(status(*WELL))[:4] == [
        "lab: the engine is up and healthy on host1 (id 1), for 2 h 10 min",
        "nothing is wrong",
        "next: if host1 dies now, the VM answers in about 13 s: detect 3.5 + prove 1.2 + lease 0.7"
        " + boot 7.8 (proof by its fence device)",
        "",
    ]


def test_what_was_so_when_the_broker_began_to_look_is_at_least_so_old() -> None:
    engine = EngineSummary(True, True, 1, "host1", 62.0, True, 62.0, True)
    head = lines(status(*WELL, engine=engine))[0]
    assert head.endswith("on host1 (id 1), for at least 1 min 2 s")


def test_a_vm_that_is_down_says_since_when_where_it_was_and_who_is_to_start_it() -> None:
    silent = WitnessStatus(12.0, "unanswered", None, 11.0, "", {}, None, "fail", 1)
    gone = host(1, UP, liveness="silent", witnesses=silent, score=3400)
    heir = host(2, reason="host 1 reads off, reading once more", local=True)
    text = lines(
        status(
            gone,
            heir,
            host(3, score=900),
            engine=EngineSummary(False, False, None, None, 9.0, last_up="host1"),
            bound=None,
        )
    )
    assert text[0] == ("lab: the engine is DOWN for 9 s: no host has it up; last seen up on host1")
    assert text[1] == "wrong: 2 things:"
    assert text[2] == "  the VM is down (ha-agent why)"
    assert text[3].startswith("  host1 is silent: whiteboard 12 s, network 11 s without answer")
    assert text[4] == "next: host2: host 1 reads off, reading once more"


def test_an_unhealthy_engine_says_for_how_long_and_what_its_host_waits_for() -> None:
    engine = EngineSummary(True, False, 1, "host1", 7800.0, False, 40.0, False)
    owner = host(1, ILL, state="EngineUpBadHealth", reason="in 260 s it is stopped")
    text = lines(status(owner, host(2), engine=engine))
    assert text[0] == (
        "lab: the engine is up, not healthy for 40 s, on host1 (id 1), for 2 h 10 min"
    )
    assert text[1:3] == [
        "wrong: 1 thing:",
        "  the VM is not healthy: look at the guest (ha-agent vm console)",
    ]
    assert "next: host1: in 260 s it is stopped" in text


def test_a_vm_that_boots_is_not_ill() -> None:
    engine = EngineSummary(True, False, 1, "host1", 8.0, False, 8.0, False)
    text = lines(status(host(1, ILL, state="EngineStarting"), host(2), engine=engine))
    assert text[:2] == [
        "lab: the engine is up and boots on host1 (id 1), for 8 s",
        "nothing is wrong",
    ]


def test_a_cluster_without_a_second_host_that_could_take_over_is_told() -> None:
    assert "  NO STANDBY: no other host could take the VM now (see WHY below)" in lines(
        status(WELL[0], host(2, score=0), host(3, maintenance=True), host(4, liveness="silent"))
    )


def test_global_maintenance_is_what_holds_everything_and_no_trouble() -> None:
    text = lines(status(*WELL, global_maintenance=True, bound=None))
    assert text[1].startswith("GLOBAL MAINTENANCE: nothing starts, stops or moves")
    assert text[2:4] == ["nothing is wrong", "next: nothing, until global maintenance ends"]


def test_what_a_host_is_about_to_do_comes_first() -> None:
    text = lines(status(WELL[0], host(2, intent="fence 3")))
    assert "next: host2 is about to fence 3" in text


def test_of_a_move_it_is_told_when_it_is_over_at_the_latest() -> None:
    moving = host(2, intent="migrate 3", move=MoveStatus(2, 3, 130.0))
    assert "next: host2 is about to migrate 3, done or given up in 2 min 10 s" in lines(
        status(WELL[0], moving)
    )
    earlier = host(2, intent="migrate 3", move=MoveStatus(2, 3, None))
    assert "next: host2 is about to migrate 3" in lines(status(WELL[0], earlier))


@pytest.mark.parametrize("width", [40, 60, 80, 132])
def test_nothing_is_cut_at_the_terminals_width_and_no_word_is_broken(width: int) -> None:
    causes = "br-vlan20 is not on this host: no such device, and the disk /images/vm.qcow2 is gone"
    unable = PenaltyOnWire("cannot-start", 3400, causes)
    silent = WitnessStatus(12.0, "unanswered", None, 11.0, "", {}, None, "fail", 1)
    shown = status(
        WELL[0],
        host(2, score=0, penalties=(unable,)),
        host(3, liveness="silent", witnesses=silent),
        reasons=(ReasonOnWire("a", "the VM is up and healthy here, as it was a while ago"),),
    )
    whole, fitted = as_text(shown), as_text(shown, width)
    assert max(map(len, fitted.splitlines())) <= width
    assert fitted.split() == whole.split(), "every word, in its order"


def test_a_name_that_is_wider_than_the_terminal_is_whole_all_the_same() -> None:
    long = host(2, hostname="h" * 60)
    fitted = as_text(status(WELL[0], long), width=40)
    assert "h" * 60 in fitted.replace("\n", "").replace(" ", "")


def test_colours_change_nothing_but_the_colour() -> None:
    plain, colourful = as_text(status(*WELL)), as_text(status(*WELL), colour=True)
    assert "\x1b" not in plain
    assert re.sub("\x1b\\[[0-9;]*m", "", colourful) == plain != colourful


def test_what_is_left_of_the_vm_on_a_host_is_a_trouble() -> None:
    left = status(
        WELL[0], host(2, memory_image=True), host(3, memory_image=True, liveness="silent")
    )
    said = [line for line in troubles(left) if "MEMORY IMAGE" in line]
    assert len(said) == 1 and "host2" in said[0], "of a silent host nothing is known now"
    for code, word in (("never-healthy", "NEVER HEALTHY"), ("vm-paused", "PAUSED")):
        told = status(*WELL, reasons=(ReasonOnWire(code, "its own words"), ReasonOnWire("x", "y")))
        assert [line for line in troubles(told) if line.startswith(word)] == [
            f"{word}: its own words (ha-agent why)"
        ]


def test_damaged_slots_of_no_host_are_one_line_where_they_are_many() -> None:
    bad = {0: "bad-crc: x", 2: "no-version: x", **dict.fromkeys(range(70, 76), "nul-first: x")}
    lines = [
        line
        for line in as_text(status(host(1), host(2), bad_slots=bad), None, False).splitlines()
        if "BAD SLOT" in line
    ]
    assert [line.split(":")[0].strip() for line in lines] == [
        "BAD SLOT 0, which holds the global maintenance",
        "BAD SLOT 2",
        "BAD SLOTS 70, 71, 72 and 3 more",
    ]
    assert "ha-agent maintenance none" in lines[0] and "ha-agent clean-metadata N" in lines[2]


def test_a_registry_that_cannot_be_read_is_said() -> None:
    broken = status(host(1), registry_problem="registry /r: its header cannot be read; do x")
    assert "REGISTRY: registry /r: its header cannot be read; do x" in as_text(broken, None, False)


# --- from the wire ------------------------------------------------------------------------------


def test_both_ways_to_read_make_the_same_text() -> None:
    example = documented()
    for one in (
        example,
        status(*WELL),
        msgspec.structs.replace(
            example,
            global_maintenance=None,
            global_mode=None,
            bad_slots={0: "bad-crc: it is damaged", 7: "bad-crc: x"},
            switched_off=example.fence_log[0],
            reasons=(ReasonOnWire("a", "b"), ReasonOnWire("c", "d")),
            differences=(
                DifferenceStatus("disks-differ", "running", "vda", "a", "b", "vda: a, b"),
            ),
            what_ran=WhatRanStatus(1, 2, "host2", 0.0, {"vda": "b"}, "", 0, ""),
        ),
        msgspec.structs.replace(
            example,
            what_ran=WhatRanStatus(3, 1, "host1", 1.8e9, {"vda": "/a.qcow2"}, "", 0, "host1"),
            differences=(DifferenceStatus("disk", "running", "vda", "/b", "/a", "vda is /a"),),
        ),
    ):
        raw = msgspec.json.encode(one)
        for width, colour in ((None, False), (60, True)):
            assert as_text(read(raw), width, colour) == as_text(one, width, colour)


def test_an_older_broker_lacks_fields_and_their_defaults_are_taken() -> None:
    answer = json.loads(msgspec.json.encode(documented()))
    del answer["engine"]["last_up"], answer["config_file_s"], answer["notify"], answer["vms"]
    raw = json.dumps(answer).encode()
    with pytest.raises((Lacking, KeyError)):
        as_text(read(raw))
    text, typed = shown(raw, None, False)
    assert "ldap1 is up and healthy on host1" in text
    assert typed.config_file_s is None


# --- the socket ---------------------------------------------------------------------------------


def test_the_quick_client_gets_what_the_other_one_gets(tmp_path: Path) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        code, raw = await asyncio.to_thread(get, path, "/v1/status")
        assert code == 200
        typed = await in_thread(path, "GET", "/v1/status", Status)
        assert msgspec.json.decode(raw, type=Status).hosts.keys() == typed.hosts.keys()
        assert (await asyncio.to_thread(get, path, "/v1/none"))[0] == 404

    served(tmp_path, test)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"nonsense\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx",
    ],
)
def test_an_answer_that_is_cut_short_is_no_answer(tmp_path: Path, answer: bytes) -> None:
    async def run() -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        path = str(tmp_path / "s")
        async with await asyncio.start_unix_server(talk, path):
            with pytest.raises(BrokerDown, match="cut short"):
                await asyncio.to_thread(get, path, "/v1/status")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", DEFAULT_SOCKET),
        ('[daemon]\n  socket = "/x/y.sock"\n', "/x/y.sock"),
        ('# socket = "/a"\n[libvirt]\nuri = "qemu:///system?socket=/b"\n', DEFAULT_SOCKET),
        ('daemon.socket = "/a"', None),
        ('daemon = {socket = "/a"}', None),
        ("[daemon]\nsocket = '/a'", None),
        ('[daemon]\nsocket = "/a" # here', None),
        ('[daemon]\nsocket = "/a\\u0062"', None),
        ('socket = "/a"\nsocket = "/b"', None),
    ],
)
def test_a_plain_line_names_the_socket_and_anything_else_does_not(
    text: str, found: str | None
) -> None:
    assert plainly_named_socket(text) == found


def test_no_other_key_is_called_socket() -> None:
    tables = msgspec.json.schema(Config)["$defs"]
    assert [name for name, table in tables.items() if "socket" in table.get("properties", {})] == [
        "DaemonSection"
    ]


# --- the command --------------------------------------------------------------------------------


def test_the_status_loads_nothing_that_costs_time(tmp_path: Path) -> None:
    config = tmp_path / "x.toml"
    config.write_text(f'[daemon]\nsocket = "{tmp_path}/none.sock"\n')
    code = (
        "import sys; from agent.status.command import run\n"
        f"from broker.client.quick import BrokerDown\n"
        "import agent.main\n"
        f"from agent.status.fetch import fetch\n"
        f"try: fetch('{tmp_path}/none.sock')\nexcept BrokerDown: pass\n"
        "print(*sys.modules)"
    )
    said = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(said.stdout.split())
    costly = {"msgspec", "http.client", "ssl", "email", "asyncio", "aiohttp", "tomllib", "rich"}
    assert not loaded & {
        *costly,
        "logging",
        "broker.wire.status",
        "broker.config.sections",
        "typing_extensions",
    }


def answering(tmp_path: Path, status: Status) -> tuple[Path, list[str]]:
    """A configuration, and a process that answers with that status."""
    config = tmp_path / "x.toml"
    config.write_text(f'[daemon]\nsocket = "{tmp_path}/b.sock"\n')
    (tmp_path / "answer").write_bytes(msgspec.json.encode(status))
    server = (
        "import http.server, socketserver, sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        " def do_GET(self):\n"
        "  body = open(sys.argv[2], 'rb').read()\n"
        "  self.send_response(200); self.send_header('Content-Length', str(len(body)))\n"
        "  self.end_headers(); self.wfile.write(body)\n"
        " def address_string(self): return 'x'\n"
        "s = socketserver.UnixStreamServer(sys.argv[1], H); print('up', flush=True)\n"
        "s.serve_forever()\n"
    )
    return config, [sys.executable, "-c", server, f"{tmp_path}/b.sock", str(tmp_path / "answer")]


def test_watch_redraws_on_a_terminal_and_prints_on_where_there_is_none(tmp_path: Path) -> None:
    config, server = answering(tmp_path, status(*WELL))
    with subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as broker:
        try:
            assert broker.stdout is not None and broker.stdout.readline() == b"up\n"
            command = [str(BIN / "ha-agent"), "--config", str(config), "status", "--watch"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as piped:
                assert piped.stdout is not None
                heads: list[str] = []
                while len(heads) < 2:
                    line = piped.stdout.readline()
                    assert line and "\x1b" not in line
                    heads += [line] if line.startswith("lab: ") else []
                piped.send_signal(2)
                assert piped.wait() == 0
            ours, theirs = pty.openpty()
            env = {**os.environ, "TERM": "xterm", "NO_COLOR": ""}
            with subprocess.Popen(command, stdout=theirs, stdin=theirs, env=env) as drawn:
                seen = b""
                while seen.count(b"up and healthy") < 2:
                    seen += os.read(ours, 65536)
                assert b"\x1b[?1049h" in seen, "an alternate screen"
                assert b"\x1b[1;32m" in seen or b"\x1b[32;1m" in seen, "in colour"
                drawn.send_signal(2)
                assert drawn.wait() == 0
        finally:
            broker.kill()


def test_the_schema_is_current() -> None:
    import runpy

    made = runpy.run_path(str(ROOT / "docs" / "generate_schema.py"))
    assert (ROOT / "docs" / "status.schema.json").read_text() == made["rendered"](), (
        "run: python docs/generate_schema.py"
    )


BOOTS = EngineSummary(True, False, 1, "host1", 8.0, False, 8.0, False)
NOWHERE = EngineSummary(False, False, None, None, 8.0, False, 8.0, False, "host1")


@pytest.mark.parametrize(
    ("engine", "code", "told"),
    [
        (status(*WELL).engine, ExitCode.OK, "lab: the engine is up and healthy on host1 (id 1)"),
        (BOOTS, ExitCode.ENGINE_SICK, "lab: the engine is up, not healthy for 8 s, on host1"),
        (NOWHERE, ExitCode.ENGINE_DOWN, "lab: the engine is DOWN for 8 s: no host"),
        (
            msgspec.structs.replace(status(*WELL).engine, reached=True),
            ExitCode.OK,
            "lab: the engine is up and healthy on host1 (id 1)",
        ),
        (
            msgspec.structs.replace(status(*WELL).engine, reached=False),
            ExitCode.ENGINE_UNKNOWN,
            "lab: the engine is up, but NOT REACHED from outside, on host1",
        ),
        (
            msgspec.structs.replace(BOOTS, reached=False),
            ExitCode.ENGINE_SICK,
            "lab: the engine is up, but NOT REACHED from outside, on host1",
        ),
    ],
)
def test_liveliness_is_a_line_and_an_exit_code(
    tmp_path: Path, engine: EngineSummary, code: ExitCode, told: str
) -> None:
    config, server = answering(tmp_path, status(*WELL, engine=engine))
    with subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as broker:
        try:
            assert broker.stdout is not None and broker.stdout.readline() == b"up\n"
            command = ("ha-agent", "--config", config, "check-liveliness")
            plain, as_json = commands.run(*command), commands.run(*command, "--json")
        finally:
            broker.kill()
    assert (plain.returncode, as_json.returncode) == (code, code)
    assert plain.stdout.startswith(told) and plain.stdout.count("\n") == 1
    wanted = {
        "version": 1,
        "up": engine.up,
        "healthy": engine.healthy,
        "reached": engine.reached,
        "host": engine.hostname,
    }
    assert json.loads(as_json.stdout) == wanted


def test_a_silent_host_that_was_proven_off_is_said_to_be() -> None:
    """The dashboard said so; the status named the silent witnesses alone."""
    last = FenceLogEntry(7, "dead", 1, "host1", 2, "host2", 1795889944.0, True, "read off twice")
    begun = msgspec.structs.replace(last, number=6, step="intent")
    gone = host(2, liveness="silent", witnesses=documented().hosts[2].witnesses)
    words = "; power off, proven by host1 at 2026-11-28 18:19:04 UTC"
    assert words in as_text(status(WELL[0], gone, fence_log=(last, begun)))
    forged = msgspec.structs.replace(last, signature="bad")
    for log in ((), (begun,), (forged,), (msgspec.structs.replace(last, step="back"), last)):
        text = as_text(status(WELL[0], gone, fence_log=log))
        assert "host2 is silent" in text and "power off" not in text


def test_local_maintenance_is_said_once_in_a_row() -> None:
    full = PenaltyOnWire("local-maintenance", 3400, "local maintenance")
    row = as_text(status(WELL[0], host(2, score=0, maintenance=True, penalties=(full,))))
    assert "local maintenance\n" in f"{row}\n" and "local-maintenance" not in row


@pytest.mark.parametrize(("healthy", "is_said"), [(True, True), (False, False), (None, False)])
def test_that_a_vm_which_boots_is_not_reached_is_no_trouble_of_its_own(
    healthy: bool | None, is_said: bool
) -> None:
    """Each host but its own called its check of the VM bad while the guest booted."""
    bad = MonitorStatus(False, "", 1.0, 5.0, "bad", "no answer within 5 s", 5.0)
    engine = msgspec.structs.replace(BOOTS, healthy=healthy)
    found = troubles(status(*WELL, engine=engine, monitors={"outside": bad}))
    assert any("MONITOR outside" in line for line in found) is is_said


@pytest.mark.parametrize(
    ("changes", "code", "begins"),
    [
        ({}, 0, "OK - lab: the engine is up and healthy on host1"),
        ({"engine": BOOTS}, 2, "CRITICAL - lab: the engine is up, not healthy"),
        ({"engine": NOWHERE}, 2, "CRITICAL - lab: the engine is DOWN"),
        (
            {"engine": msgspec.structs.replace(BOOTS, healthy=True, reached=False)},
            2,
            "CRITICAL - lab: the engine is up, but NOT REACHED",
        ),
        ({"engine": msgspec.structs.replace(BOOTS, up=None)}, 3, "UNKNOWN - lab: whether"),
        ({"engine": msgspec.structs.replace(BOOTS, healthy=None)}, 3, "UNKNOWN - lab: the engine"),
        ({"state_problem": "a | b"}, 1, "WARNING - lab: the engine is up and healthy"),
    ],
)
def test_liveliness_as_a_plugin_of_nagios(
    tmp_path: Path, changes: dict[str, object], code: int, begins: str
) -> None:
    config, server = answering(tmp_path, status(*WELL, **changes))
    with subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as broker:
        try:
            assert broker.stdout is not None and broker.stdout.readline() == b"up\n"
            done = commands.run("ha-agent", "--config", config, "check-liveliness", "--nagios")
        finally:
            broker.kill()
    assert done.returncode == code
    assert done.stdout.startswith(begins) and done.stdout.count("\n") == 1
    text, bar, figures = done.stdout.partition(" | ")
    assert (
        bar
        and "|" not in text
        and re.fullmatch(r"hosts_live=\d+ hosts=\d+( since=\d+s)?\n", figures)
    )


def test_a_booting_vm_is_a_warning_of_the_plugin_and_no_broker_is_unknown(tmp_path: Path) -> None:
    boots = status(host(1, ILL, state="EngineStarting"), host(2), engine=BOOTS)
    config, server = answering(tmp_path, boots)
    with subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as broker:
        try:
            assert broker.stdout is not None and broker.stdout.readline() == b"up\n"
            command = ("ha-agent", "check-liveliness", "--nagios", "--config")
            done = commands.run(*command, config)
        finally:
            broker.kill()
    assert done.returncode == 1 and done.stdout.startswith(
        "WARNING - lab: the engine is up and boots"
    )
    gone, none = commands.run(*command, config), commands.run(*command, tmp_path / "none")
    for result in (gone, none):
        assert result.returncode == 3 and result.stdout.startswith("UNKNOWN - ")


def test_why_answers_in_json(tmp_path: Path) -> None:
    config, server = answering(tmp_path, status(*WELL, reasons=(ReasonOnWire("a", "b"),)))
    config.write_text(
        config.read_text() + '[host]\nid = 1\n[storage]\nwhiteboard = "/s/w"\nleases = "/s/l"\n'
    )
    with subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as broker:
        try:
            assert broker.stdout is not None and broker.stdout.readline() == b"up\n"
            plain, as_json = (
                commands.run("ha-agent", "--config", config, "why", *more)
                for more in ([], ["--json"])
            )
        finally:
            broker.kill()
    answer = json.loads(as_json.stdout)
    # The first one has a time, which may be a second later in the second answer.
    assert answer["sentences"][1:] == plain.stdout.splitlines()[1:]
    assert (answer["version"], answer["up"], answer["host"]) == (1, True, "host1")
    assert answer["reasons"] == [{"code": "a", "text": "b"}]


def test_a_host_that_cannot_start_the_vm_says_so_in_the_status_and_in_why() -> None:
    why = "Cannot get interface MTU on 'br-vlan20': No such device"
    failed = PenaltyOnWire("retries", 50, f"1 failed start(s); the last: libvirt: {why}")
    unable = PenaltyOnWire("cannot-start", 3400, "br-vlan20 is not on this host")
    up = status(WELL[0], host(2, score=0, penalties=(unable,)))
    assert any("host2 cannot start the VM: br-vlan20" in line for line in troubles(up))
    assert any(line.startswith("NO STANDBY") for line in troubles(up))
    assert "host2: cannot start the VM: br-vlan20 is not on this host." in explain(up, Rules())
    nowhere = EngineSummary(False, False, None, None, None, False, None, False)
    down = status(host(1, local=True, penalties=(failed,)), host(2), engine=nowhere)
    assert any(why in line and "host1 failed to start the VM" in line for line in troubles(down))
    assert any(why in line for line in explain(down, Rules()))


# --- a host that shuts down ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "changes", "line", "column"),
    [
        (
            UP,
            {"host_shutdown": "migrate"},
            "SHUTTING DOWN: host3 is shutting down; the VM is moved away first",
            "shutting down",
        ),
        (
            UP,
            {"host_shutdown": "shutdown"},
            "SHUTTING DOWN: host3 is shutting down; the VM is shut down first",
            "shutting down",
        ),
        (
            DOWN,
            {"host_shutdown": "migrate"},
            "SHUTTING DOWN: host3 is shutting down; the VM does not run there",
            "shutting down",
        ),
        (
            DOWN,
            {"host_shutdown": "migrate", "liveness": "silent", "stopped": True, "age_s": 40.0},
            "SHUT DOWN: host3 was shut down 40 s ago, in order",
            "shut down",
        ),
        (
            DOWN,
            {"host_shutdown": "migrate", "liveness": "silent", "stopped": True, "age_s": None},
            "SHUT DOWN: host3 was shut down, in order",
            "shut down",
        ),
        (
            DOWN,
            {"host_shutdown": "migrate", "liveness": "silent"},
            "SHUT DOWN: host3 was shutting down when it fell silent",
            "shut down",
        ),
    ],
)
def test_a_host_that_shuts_down_is_shown_so(
    engine: EngineStatus, changes: dict[str, object], line: str, column: str
) -> None:
    """The shutdown is not shown as a local maintenance that somebody set."""
    mode = ModeStatus("systemd", "this host is shutting down", None, None)
    going = host(3, engine, maintenance=True, mode=mode, **changes)
    shown = lines(status(*WELL, going))
    assert shown[1] == line
    assert column in shown[-1]
    assert not any("LOCAL MAINTENANCE" in each for each in shown)
