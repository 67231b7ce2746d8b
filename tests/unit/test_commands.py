# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands from outside, with everything wrong that a user may do: one line, the right
exit code, no traceback, nothing started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import main
from agent.verbs import GROUPS, VERBS
from broker.client.ask import BrokerDown
from broker.daemon.exit_codes import ExitCode
from broker.daemon.version import VERSION
from tests.unit import commands

BIN = Path(sys.executable).parent


def run(
    program: str, *arguments: str, config: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HA_AGENT_CONFIG": str(config) if config else ""}
    return commands.run(program, *arguments, env=environment)


def refused(result: subprocess.CompletedProcess[str], code: ExitCode, *words: str) -> None:
    assert result.returncode == code, (result.returncode, result.stderr)
    lines = [line for line in result.stderr.splitlines() if " INFO " not in line]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("program", ["ha-broker", "ha-agent"])
def test_a_missing_config(program: str, tmp_path: Path) -> None:
    arguments = ["run"] if program == "ha-agent" else []
    missing = tmp_path / "gone.toml"
    refused(run(program, *arguments, config=missing), ExitCode.CONFIG, str(missing), "no such file")


@pytest.mark.parametrize("program", ["ha-broker", "ha-agent"])
def test_an_unknown_key(program: str, site: Path) -> None:
    site.write_text(site.read_text() + "[scores]\n")
    arguments = ["run"] if program == "ha-agent" else []
    result = run(program, *arguments, config=site)
    refused(result, ExitCode.CONFIG, str(site), "scores", "did you mean score?")


def test_a_whiteboard_that_is_not_there(site: Path) -> None:
    (site.parent / "whiteboard").unlink()
    refused(run("ha-broker", config=site), ExitCode.STORAGE, "storage.whiteboard", "whiteboard")


def test_a_whiteboard_that_is_a_directory(site: Path) -> None:
    (site.parent / "whiteboard").unlink()
    (site.parent / "whiteboard").mkdir()
    refused(run("ha-broker", config=site), ExitCode.STORAGE, "storage.whiteboard")


def test_a_lease_volume_that_is_not_there(site: Path) -> None:
    (site.parent / "leases").unlink()
    refused(run("ha-broker", config=site), ExitCode.STORAGE, "storage.leases", "mounted?")


def test_a_definition_that_is_not_there_not_xml_or_without_lease(site: Path) -> None:
    definition = site.parent / "engine.xml"
    good = definition.read_text()
    for text, word in (
        ("<domain", "not XML"),
        ("<network/>", "not a libvirt <domain>"),
        (good.replace("HostedEngine", "Other"), "vm.name"),
        (good.replace("engine</key>", "other</key>"), "no <lease>"),
        (good.replace("MiB", "parsecs"), "<memory>"),
        (good.replace("uuid>", "id>"), "no <uuid>: add one below <name>"),
    ):
        definition.write_text(text)
        refused(run("ha-agent", "run", config=site), ExitCode.DEFINITION, str(definition), word)
    definition.unlink()
    refused(run("ha-agent", "run", config=site), ExitCode.DEFINITION, "is not there")


def test_a_libvirt_without_the_sanlock_lock_driver(site: Path) -> None:
    (site.parent / "qemu.conf").write_text('#lock_manager = "sanlock"\nlock_manager = "lockd"\n')
    result = run("ha-agent", "run", config=site)
    refused(result, ExitCode.LOCK_DRIVER, "qemu.conf", 'lock_manager = "sanlock"')


def test_secrets_that_others_may_read(site: Path) -> None:
    secrets = site.parent / "secrets.toml"
    secrets.write_text('[fence-passwords]\n2 = "hunter2"\n')
    secrets.chmod(0o644)
    site.write_text(
        site.read_text()
        + f'secrets = "{secrets}"\n[[fence.device]]\nhost = 2\naddress = "127.0.0.1"\n'
    )
    result = run("ha-agent", "run", config=site)
    refused(result, ExitCode.CONFIG, "secrets.toml", "chmod 0600")
    assert "hunter2" not in result.stderr + result.stdout


def test_status_without_a_broker_is_valid_json_and_has_its_code(site: Path) -> None:
    for arguments in (["--status", "--json"], ["status", "--json"]):
        result = run("ha-agent", *arguments, config=site)
        assert result.returncode == ExitCode.BROKER_DOWN
        answer = json.loads(result.stdout)
        assert answer["version"] == 1
        assert answer["error"]["code"] == "broker-down"
        assert "broker.sock" in answer["error"]["message"]
    refused(run("ha-agent", "--status", config=site), ExitCode.BROKER_DOWN, "broker.sock")


def test_status_that_is_not_configured_has_another_code(tmp_path: Path) -> None:
    result = run("ha-agent", "--status", "--json", config=tmp_path / "gone")
    assert result.returncode == ExitCode.CONFIG
    assert json.loads(result.stdout)["error"]["code"] == "not-configured"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("maintenance", "ha-agent maintenance: a word is missing: global, local or none (global: "),
        ("vm", "ha-agent vm: a word is missing: start, shutdown, poweroff, console"),
        ("vm show", "ha-agent vm show: NAME is missing (a VM's name or number)"),
        ("vm define x", "ha-agent vm define: one of these is needed: FILE (its domain XML;"),
        ("fence add 2", "ha-agent fence add: --address is missing (of the device)"),
        ("fence add", "HOST is missing (the id of the host whose power it switches); --address"),
        ("config set vm.name", "ha-agent config set: VALUE is missing (a word or number;"),
        ("maintenance global --for", "behind --for a value is missing: TIME (ends by itself: 30m"),
        ("doctor --for x", "ha-agent doctor: --for must be a number, not 'x'"),
        ("config rollback x", "ha-agent config rollback: N must be a whole number, not 'x'"),
        ("--watch", "ha-agent: a verb is missing, such as status; see: ha-agent --help"),
        ("maintenance loca", "ha-agent maintenance: no word 'loca' here; did you mean local?"),
        ("statsu", "ha-agent: no word 'statsu' here; did you mean status?"),
        ("maint", "ha-agent: no word 'maint' here; did you mean maintenance?"),
        ("xyzzy", "ha-agent: no word 'xyzzy' here; there are: run, status"),
        ("status --jsn", "ha-agent status: no option '--jsn'; did you mean --json?"),
        ("status --js", "ha-agent status: no option '--js'; did you mean --json?"),
        ("--conf=/x status", "ha-agent status: no option '--conf'; did you mean --config?"),
        ("events --sinc 2h", "ha-agent events: no option '--sinc'; did you mean --since?"),
        ("score a b", "ha-agent score: takes no 'b'"),
        ("vm list --yes", "ha-agent vm list: '--yes' must stand right behind 'ha-agent vm'"),
        ("fence tets all", "ha-agent fence: no word 'tets' here; did you mean test?"),
        ("fence test --qq all", "ha-agent fence test: no option '--qq'; see: ha-agent fence test"),
    ],
)
def test_a_usage_error_is_a_line_that_says_what_was_meant(
    typed: str, said: str, site: Path
) -> None:
    result = run("ha-agent", *typed.split(), config=site)
    refused(result, ExitCode.USAGE, said, "--help")
    assert result.stdout == ""


def parsers_below(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for below in action.choices.values():
                yield from parsers_below(below)


def test_every_argument_that_must_be_given_says_what_may_be_typed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each verb with nothing behind it: no error is in argparse's own words, and each word that is
    missing is named with what it is for."""
    seen = 0
    for parser in parsers_below(main._parser()):
        needed = [one for one in parser._actions if one.required]
        if not needed:
            continue
        with pytest.raises(SystemExit):
            parser.parse_args([])
        said = capsys.readouterr().err
        assert "are required" not in said and said.startswith(f"{parser.prog}: "), said
        for action in needed:
            what = list(action.choices) if action.choices else [action.help or "no help"]
            assert all(str(word) in said for word in what), (said, what)
        seen += 1
    assert seen > 15, "of all verbs"


def test_how_long_ago_may_be_typed_as_journalctl_takes_it(site: Path) -> None:
    """`--since -1h` is asked of the broker; it was an option that nobody knows."""
    for typed in (["--since", "-1h"], ["--since=-1h"], ["--since", "-10", "min"]):
        refused(run("ha-agent", "events", *typed, config=site), ExitCode.BROKER_DOWN, "broker")


def test_a_usage_error_is_json_where_json_is_asked_for(site: Path) -> None:
    result = run("ha-agent", "statsu", "--json", config=site)
    answer = json.loads(result.stdout)
    assert (result.returncode, answer["version"]) == (ExitCode.USAGE, 1)
    assert answer["error"]["code"] == "usage" and "status" in answer["error"]["message"]


def test_an_unconfigured_host_is_shown_the_way_in(tmp_path: Path) -> None:
    for verb in ("status", "why", "events", "doctor", "migrate"):
        done = run("ha-agent", verb, config=tmp_path / "gone.toml")
        said = done.stdout + done.stderr
        assert done.returncode in (ExitCode.CONFIG, ExitCode.FAILED), said
        assert "not set up" in said and "ha-agent init" in said and "ha-agent join" in said


def test_who_may_not_ask_the_broker_is_told_to_be_root_in_a_sentence(tmp_path: Path) -> None:
    down = BrokerDown.because("/run/x.sock", PermissionError(13, "Permission denied"))
    assert str(down) == (
        "/run/x.sock: this user may not ask the broker; run as root, by sudo for example"
    )


def test_who_is_not_root_and_is_refused_a_file_is_told_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for user, text, wanted in (
        (1000, "/x: Permission denied", "/x: Permission denied; run as root, by sudo for example"),
        (1000, "/x: Permission denied; run as root", "/x: Permission denied; run as root"),
        (1000, "/x: Is a directory", "/x: Is a directory"),
        (0, "/x: Permission denied", "/x: Permission denied"),
    ):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        main._say(ExitCode.FILE, "file", text, False)
        assert capsys.readouterr().err == f"ha-agent: {wanted}\n"


@pytest.mark.parametrize("program", ["ha-agent", "ha-broker"])
def test_both_programs_say_their_version(program: str) -> None:
    result = run(program, "--version")
    assert (result.returncode, result.stdout) == (0, f"{program} {VERSION}\n")


@pytest.mark.parametrize("arguments", [["--config", "X", "status"], ["status", "--config", "X"]])
def test_the_configuration_may_stand_before_the_verb_or_behind_it(
    arguments: list[str], tmp_path: Path
) -> None:
    gone = str(tmp_path / "gone.toml")
    result = run("ha-agent", *(gone if word == "X" else word for word in arguments))
    refused(result, ExitCode.CONFIG, gone)


def test_the_help_has_each_verb_once_under_what_one_wants_to_do() -> None:
    grouped = [name for _, names in GROUPS for name in names]
    assert sorted(grouped) == sorted(verb.name for verb in VERBS)
    said = run("ha-agent", "--help").stdout
    for title, names in GROUPS:
        assert f"\n{title}:\n" in said
        for name in names:
            assert said.count(f"\n  {name}") == 1, name


def test_every_verb_that_a_script_may_read_answers_in_json() -> None:
    """`vm console` is a terminal, `run` a daemon, `host-shutdown` a unit's."""
    for verb in VERBS:
        if verb.name not in ("run", "host-shutdown"):
            parser = ArgumentParser()
            verb.options(parser)
            assert all("--json" in each for each in leaves(parser)), verb.name


def leaves(parser: ArgumentParser) -> list[str]:
    """The help of the deepest subcommands."""
    below = [a for a in parser._actions if isinstance(a, _SubParsersAction)]
    if not below:
        return [parser.format_help()]
    return [text for action in below for sub in action.choices.values() for text in leaves(sub)]


def test_a_dump_of_a_fresh_volume(site: Path) -> None:
    result = run("ha-agent", "whiteboard", "dump", str(site.parent / "whiteboard"), "--json")
    assert result.returncode == 0
    cluster = {"maintenance": False}
    assert json.loads(result.stdout) == {"version": 1, "cluster": cluster, "hosts": {}, "bad": {}}


def test_a_dump_of_what_is_not_there(tmp_path: Path) -> None:
    result = run("ha-agent", "whiteboard", "dump", str(tmp_path / "gone"))
    assert result.returncode == ExitCode.FILE
    assert "gone" in result.stderr


@pytest.mark.slow
def test_output_into_a_closed_pipe_is_quiet(site: Path) -> None:
    dump = f"{BIN}/ha-agent whiteboard dump {site.parent}/whiteboard"
    result = subprocess.run(
        ["bash", "-c", f"{dump} | true"], capture_output=True, text=True, timeout=30
    )
    assert result.stderr == ""


@pytest.mark.parametrize(
    "line",
    [
        *("", "--status", "--status --json", "--status status", "--status x", "--watch --json"),
        *("status", "status --json", "--json status", "--config /x why db", "--config=/x why db"),
        *("status --jsn", "--jso status", "stat", "--config", "--config status", "why --watch"),
        *("vm", "vm lst", "vm list --json", "vm add", "vm set db x", "maintenance", "config set a"),
        *("--help", "--help vm", "vm --help", "--version", "--version status", "status x", "fence"),
    ],
)
def test_a_line_means_the_same_with_the_parser_of_its_verb_alone(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = line.split()
    monkeypatch.setattr("sys.argv", ["ha-agent", *words])
    understood = []
    for verb in (main._verb_in(words), None):
        try:
            found: object = vars(main._parser(verb).parse_args())
        except SystemExit as ended:
            found = ended.code
        understood.append((found, capsys.readouterr()))
    assert understood[0] == understood[1]
