# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python docs/generate_man.py FOLDER`: the man pages and the shell completion.

ha-agent.8 and ha-broker.8 are written from the argument parsers that print `--help`,
ha-agent.toml.5 from what docs/generate_config.py knows of the configuration; the completion is
argcomplete's (record 78). Nothing of it is kept in the repository: the packages
are built with it. The date is that of SOURCE_DATE_EPOCH, so the same commit makes the
same pages.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import generate_config  # noqa: E402
from argcomplete.shell_integration import shellcode  # noqa: E402

from agent import main as agent_main  # noqa: E402
from agent.verbs import GROUPS  # noqa: E402
from broker import main as broker_main  # noqa: E402
from broker.config.places import DEFAULT_PATH, PATH_VARIABLE  # noqa: E402

MORE = {
    "ha-agent": """\
It decides for one host, once a beat, what is to happen to the protected virtual machine, and
does it: start, stop, migrate, and take over from a dead host. It asks its broker, ha-broker(8),
for what is to be seen. Stopping it never stops the virtual machine.""",
    "ha-broker": """\
It samples the host, reads what all hosts of the cluster published on the shared whiteboard,
publishes for this one, and keeps this host's id in the sanlock lockspace. Stopping it never
stops the virtual machine, and leaves the host id joined.""",
}
#: What people type, each with what it is for; every one is parsed by a test.
EXAMPLES = {
    "ha-agent": (
        ("ha-agent --status", "Is the VM up, where, since when, is anything wrong, what is next?"),
        ("ha-agent status --watch", "The same, again and again, while something happens."),
        ("ha-agent why", "Why the VM is where it is, or why nobody starts it."),
        ("ha-agent events --since yesterday", "What happened; also: 2h, 10 min ago, 21:58."),
        (
            "ha-agent maintenance local --for 2h --reason 'new memory'",
            "Before work on this host: the VM leaves it without downtime.",
        ),
        (
            "ha-agent maintenance global --reason 'storage firmware'",
            "Before work on what all hosts need: nothing starts, stops or moves.",
        ),
        ("ha-agent maintenance none", "The work is done."),
        ("ha-agent migrate --to host2", "Move the VM, live."),
        ("ha-agent fence test all", "Would each fence device work, now?"),
        ("ha-agent doctor", "Is this host fit? Each check with its fix."),
        ("ha-agent check-liveliness --nagios", "A line for Nagios or Icinga."),
        (
            "ha-agent init --storage /srv/ha --domain engine.xml",
            "The first host of a new cluster.",
        ),
        ("ha-agent invite", "On a member: a token, for a further host."),
        ("ha-agent join TOKEN", "On the further host, within ten minutes."),
        ("ha-agent --status --json | jq -r .engine.hostname", "The VM's host, for a script."),
    ),
    "ha-broker": (("ha-broker --config /root/try.toml", "With another configuration."),),
}
FILES = (
    (DEFAULT_PATH, "The configuration, ha-agent.toml(5)."),
    ("/etc/ha-agent/secrets.toml", "Passwords and keys; mode 0640 or less."),
    ("/etc/ha-agent/engine.xml", "The libvirt domain of the protected virtual machine."),
    ("/run/ha-agent/broker.sock", "The broker's API."),
    ("/var/lib/ha-agent", "What outlives a restart, and the agent's journal of decisions."),
)


def agent_parser() -> argparse.ArgumentParser:
    """The parser of `ha-agent` as it is without a variable set."""
    os.environ.pop(PATH_VARIABLE, None)
    return agent_main._parser()


def broker_parser() -> argparse.ArgumentParser:
    """The parser of `ha-broker`, likewise."""
    os.environ.pop(PATH_VARIABLE, None)
    return broker_main._parser()


# --- the parsers ----------------------------------------------------------------------------

Verb = tuple[tuple[str, ...], str, argparse.ArgumentParser]


def verbs(parser: argparse.ArgumentParser, above: tuple[str, ...] = ()) -> Iterator[Verb]:
    """Each subcommand with its words, its help and its parser; deepest ones too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, sub in action.choices.items():
                words = (*above, name)
                yield words, helps.get(name, ""), sub
                yield from verbs(sub, words)


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Options and positionals; subcommands and what the help leaves out are left out."""
    left_out = argparse._SubParsersAction
    return [
        one
        for one in parser._actions
        if not isinstance(one, left_out) and one.help != argparse.SUPPRESS
    ]


# --- roff ------------------------------------------------------------------------------------


def escape(text: str) -> str:
    """Text as roff takes it: no escapes, no hyphenated options, no line that is a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("–", "\\(en").replace("…", "...")
    return "\n".join("\\&" + line if line[:1] in (".", "'") else line for line in text.split("\n"))


def title(name: str, section: int) -> str:
    """The page's first request."""
    stamp = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", "0")) or None)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    date = time.strftime("%Y-%m-%d", stamp)
    return f'.TH {name.upper()} {section} "{date}" "ha\\-agent {version}"'


def _entry(tag: str, text: str) -> list[str]:
    return [".TP", f".B {escape(tag)}", escape(text or "See above.")]


def _arguments(parser: argparse.ArgumentParser) -> list[str]:
    lines: list[str] = []
    for action in arguments(parser):
        text = (action.help or "").replace("%(default)s", str(action.default))
        if action.option_strings:
            value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
            tag = ", ".join(action.option_strings) + value
        else:
            tag = "|".join(action.choices) if action.choices else action.dest.upper()
        lines += _entry(tag, text)
    return lines


def _usage(parser: argparse.ArgumentParser) -> list[str]:
    usage = parser.format_usage().removeprefix("usage: ").rstrip()
    return [".nf", escape(usage), ".fi"]


def _sentence(text: str) -> str:
    """A help text as a sentence."""
    return text[:1].upper() + text[1:] + ("" if text.endswith("?") else ".")


def command_page(parser: argparse.ArgumentParser) -> str:
    """The man page of a command."""
    name = parser.prog
    other = "ha-broker(8)" if name == "ha-agent" else "ha-agent(8)"
    summary = (parser.description or "").rstrip(".")
    lines = [title(name, 8), ".SH NAME", f"{escape(name)} \\- {escape(summary)}", ".SH SYNOPSIS"]
    lines += [*_usage(parser), ".SH DESCRIPTION", escape(MORE[name]), ".SH OPTIONS"]
    lines += _arguments(parser)
    subcommands = list(verbs(parser))
    for group, names in GROUPS if subcommands else ():
        lines.append(f'.SH "{escape(group)}"')
        for words, text, sub in sorted(subcommands, key=lambda each: each[0]):
            if words[0] in names:
                lines += [f".SS {escape(' '.join(words))}", escape(_sentence(text)), ".PP"]
                lines += [*_usage(sub), *_arguments(sub)]
    lines.append(".SH EXAMPLES")
    for command, text in EXAMPLES[name]:
        lines += _entry(command, text)
    if parser.epilog:
        lines += [".SH EXIT STATUS", ".nf", escape(parser.epilog.rstrip()), ".fi"]
    lines.append(".SH ENVIRONMENT")
    lines += _entry(PATH_VARIABLE, "The configuration file, where no \\-\\-config is given.")
    lines.append(".SH FILES")
    for path, text in FILES:
        lines += _entry(path, text)
    lines += [".SH SEE ALSO", escape(f"{other}, ha-agent.toml(5), sanlock(8), libvirtd(8)")]
    return "\n".join(lines) + "\n"


def config_page() -> str:
    """ha-agent.toml(5)."""
    lines = [title("ha-agent.toml", 5), ".SH NAME"]
    lines += ["ha\\-agent.toml \\- configuration of ha\\-agent and ha\\-broker", ".SH SYNOPSIS"]
    lines += [escape(DEFAULT_PATH), ".SH DESCRIPTION"]
    lines.append(
        escape(
            "One TOML file for both daemons and the command line. An unknown key is an error. "
            "Only what is marked as required must be set. Durations are in seconds."
        )
    )
    for table in generate_config.tables():
        lines += [f'.SH "{escape(table.head)}"', escape(table.meaning or "See the keys.")]
        for setting in table.settings:
            facts = [setting.range, setting.unit]
            default = "no default" if setting.default is None else f"default {setting.default}"
            facts.append("required" if setting.required else default)
            lines += _entry(setting.key, f"{setting.meaning} ({', '.join(filter(None, facts))})")
    lines += [".SH SEE ALSO", escape("ha-agent(8), ha-broker(8)")]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all of it into the folder that is named."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python docs/generate_man.py FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    agent, broker = agent_parser(), broker_parser()
    (folder / "ha-agent.8").write_text(command_page(agent))
    (folder / "ha-broker.8").write_text(command_page(broker))
    (folder / "ha-agent.toml.5").write_text(config_page())
    for shell in ("bash", "zsh", "fish"):
        code = shellcode(["ha-agent"], shell=shell)
        (folder / f"ha-agent.{shell}").write_text(code)
    (folder / "ha-agent.toml").write_text(generate_config.rendered())


if __name__ == "__main__":
    main()
