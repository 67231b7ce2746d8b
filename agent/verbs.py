# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs of `ha-agent`, one table: each with its help, its options, and what runs it.

The modules of a verb are imported by that verb alone: `ha-agent --status` is run every few seconds.
"""

from __future__ import annotations

import argparse
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent import config_verbs, vm_verbs
from agent.setup import arguments as setup
from agent.terminal.options import json_option
from broker.daemon.command_line import Parser


def _no_options(parser: ArgumentParser) -> None:
    """Options of a verb that has none."""


@dataclass(frozen=True, slots=True)
class Verb:
    """`run`: gets the arguments, and whether to answer in JSON; returns the exit code."""

    name: str
    help: str
    run: Callable[[Namespace, bool], int]
    options: Callable[[ArgumentParser], None] = _no_options


def add(verbs: argparse._SubParsersAction[Parser], only: str | None = None) -> None:
    """Add all verbs, in the order of the table, or one."""
    for verb in VERBS:
        if only not in (None, verb.name):
            continue
        parser = verbs.add_parser(verb.name, help=verb.help)
        # After the verb too; there is one in the help already.
        hidden = argparse.SUPPRESS
        parser.add_argument("--config", default=hidden, help=hidden)
        verb.options(parser)


def run(arguments: Namespace, as_json: bool) -> int | None:
    """Carry out the given verb; None: none was given."""
    name = arguments.verb or ("status" if arguments.status else None)
    for verb in VERBS:
        if verb.name == name:
            return verb.run(arguments, as_json)
    return None


def _warn(message: str) -> None:
    """Warn about a fault in the configuration file that does not keep the command from its work."""
    print(f"ha-agent: {message}; asking the broker all the same", file=sys.stderr)


def _socket(arguments: Namespace) -> str:
    """The path of the broker's socket, even where the configuration is wrong."""
    from broker.config.load import socket_path

    return socket_path(arguments.config, _warn)


def _on_host(parser: ArgumentParser, text: str) -> None:
    parser.add_argument("--host", metavar="HOST", help=f"id or name: {text}")


def _below(parser: ArgumentParser, what: str, text: str | None = None) -> ArgumentParser:
    """The parser of the one word that follows a verb."""
    words = parser.add_subparsers(dest="what", metavar=what, required=True)
    return words.add_parser(what) if text is None else words.add_parser(what, help=text)


# --- the daemon, and what is shown ----------------------------------------------------------


def _run(arguments: Namespace, as_json: bool) -> int:
    from agent.run import run as run_agent

    return run_agent(arguments.config)


def _status_options(parser: ArgumentParser) -> None:
    json_option(parser)
    parser.add_argument(
        "--watch", action="store_true", dest="watch_here", help="again and again, until Ctrl-C"
    )


def _status(arguments: Namespace, as_json: bool) -> int:
    from agent.status import command

    watch = arguments.watch or getattr(arguments, "watch_here", False)
    return command.run(arguments.config, as_json, watch, _warn)


def _check_liveliness_options(parser: ArgumentParser) -> None:
    json_option(parser)
    parser.add_argument(
        "--nagios",
        action="store_true",
        help="answer as a plugin of Nagios or Icinga: one line, exit code 0 to 3",
    )


def _check_liveliness(arguments: Namespace, as_json: bool) -> int:
    from agent.commands import liveliness

    if arguments.nagios:
        return liveliness.as_plugin(lambda: _socket(arguments))
    return liveliness.run(_socket(arguments), as_json)


def _why_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="one of several VMs; default: the engine"
    )
    json_option(parser)


def _why(arguments: Namespace, as_json: bool) -> int:
    from agent.commands import why
    from broker.config.load import load

    return why.run(load(arguments.config), as_json, arguments.name)


def _events_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--since",
        metavar="TIME",
        nargs="+",
        help="how long ago (30m, 2h, 10 min ago), a word (yesterday, today), or a time, UTC unless"
        " it says otherwise (21:58, 2026-11-27 21:58, 2026-11-27T21:58+01:00); default: all",
    )
    parser.add_argument("--follow", action="store_true", help="go on, until Ctrl-C")
    json_option(parser)


def _events(arguments: Namespace, as_json: bool) -> int:
    from agent.commands import events

    since = None if arguments.since is None else " ".join(arguments.since)
    return events.run(_socket(arguments), since, arguments.follow, as_json)


def _acknowledge(arguments: Namespace, as_json: bool) -> int:
    from agent.commands import acknowledge

    return acknowledge.run(_socket(arguments), as_json)


def _doctor_options(parser: ArgumentParser) -> None:
    json_option(parser)
    parser.add_argument(
        "--storage",
        action="store_true",
        help="qualify the storage alone, before a VM is trusted to it",
    )
    parser.add_argument(
        "--for",
        type=float,
        default=5.0,
        dest="seconds",
        metavar="SECONDS",
        help="with --storage: measure each volume for so long; default 5",
    )


def _doctor(arguments: Namespace, as_json: bool) -> int:
    from agent.doctor import priority

    priority.go_first()  # before the imports, which are most of its work
    from agent.doctor import checks
    from agent.terminal.begun import command_began_s

    storage_s = arguments.seconds if arguments.storage else None
    return checks.run(arguments.config, as_json, command_began_s(), storage_s)


# --- the VM, and maintenance ----------------------------------------------------------------


def _maintenance_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "mode",
        choices=("global", "local", "none"),
        help="global: nothing is touched; local: this host is drained; none: end both",
    )
    parser.add_argument(
        "--for", metavar="TIME", dest="lasts", help="ends by itself: 30m, 2h, 1d; default 8h"
    )
    parser.add_argument("--no-expiry", action="store_true", help="until somebody ends it")
    parser.add_argument(
        "--release-id", action="store_true", help="with local: give the host id back, once empty"
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="with local: stop what cannot be migrated, in order, once another host can start it",
    )
    parser.add_argument("--reason", metavar="TEXT", help="shown on every host")
    _on_host(parser, "set or end the local mode there, not here")
    parser.add_argument(
        "--wait",
        action="store_true",
        help="with local: until the VM has left; exit code 1: it stays",
    )
    json_option(parser)


def _maintenance(arguments: Namespace, as_json: bool) -> int:
    from agent.commands import maintenance

    other = None
    if arguments.host is not None:
        from agent.commands.other_host import other_host
        from broker.config.load import load

        other = other_host(load(arguments.config), arguments.host)
    return maintenance.run(
        _socket(arguments),
        maintenance.Asked(
            arguments.mode,
            arguments.lasts,
            arguments.no_expiry,
            arguments.reason,
            arguments.release_id,
            arguments.wait,
            arguments.host,
            arguments.restart,
        ),
        as_json,
        other,
    )


def _migrate_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="one of several VMs; default: the engine"
    )
    parser.add_argument("--to", metavar="HOST", help="id or name; default: the best host")
    parser.add_argument("--cancel", action="store_true", help="cancel the one under way")
    _on_host(parser, "move it away from that host, not from this one")
    json_option(parser)


def _migrate(arguments: Namespace, as_json: bool) -> int:
    from agent.commands import vm
    from broker.config.load import load

    given = arguments.to, arguments.cancel, as_json, arguments.host, arguments.name
    return vm.migrate(load(arguments.config), *given)


def _host_shutdown(arguments: Namespace, as_json: bool) -> int:
    from agent.commands import host_shutdown

    return host_shutdown.run(_socket(arguments))


# --- trying out, and looking into files -----------------------------------------------------


def _notify_options(parser: ArgumentParser) -> None:
    json_option(_below(parser, "test"))


def _notify(arguments: Namespace, as_json: bool) -> int:
    from agent.commands import notify

    return notify.run(_socket(arguments), as_json)


def _replay_options(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="STATE-DIR/journal/journal.jsonl, or older")
    parser.add_argument("--scenario", metavar="OUT", help="also write the incident as a scenario")
    json_option(parser)


def _replay(arguments: Namespace, as_json: bool) -> int:
    from agent.commands import replay

    return replay.run(arguments.file, as_json, arguments.scenario)


def _score_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="?",
        help="JSON; -: standard input; none: what each host scores now, and how fit it is for each"
        " VM",
    )
    json_option(parser)


def _score(arguments: Namespace, as_json: bool) -> int:
    from agent.commands import score, score_now
    from broker.config.load import load

    if arguments.file is None:
        return score_now.run(load(arguments.config), as_json)
    return score.run(arguments.file, as_json)


def _fence_options(parser: ArgumentParser) -> None:
    words = parser.add_subparsers(dest="what", metavar="test|add", required=True)
    test = words.add_parser("test", help="log in, read power, check the privilege; changes nothing")
    test.add_argument("host", metavar="HOST|all", help="a host's id or name")
    json_option(test)
    more = words.add_parser("add", help="write a device into this host's files")
    more.add_argument("host", metavar="HOST", help="the id of the host whose power it switches")
    more.add_argument("--address", required=True, help="of the device")
    more.add_argument("--username", help="its password is asked for, or read from standard input")
    more.add_argument("--type", choices=("ipmi", "redfish"), help="default: ipmi")
    more.add_argument("--port", type=int, help="default: the type's own")
    more.add_argument("--name", help="where a host has several devices")
    json_option(more)


def _fence(arguments: Namespace, as_json: bool) -> int:
    from agent.commands import fence_add, fence_test
    from agent.setup.written import Files
    from broker.config.load import load

    if arguments.what == "add":
        return fence_add.run(arguments, Files(Path(arguments.config).absolute()), as_json)
    return fence_test.run(load(arguments.config), arguments.host, as_json)


def _whiteboard_options(parser: ArgumentParser) -> None:
    dump = _below(parser, "dump")
    dump.add_argument("file", metavar="FILE", help="a whiteboard volume, or a copy of one")
    json_option(dump)


def _whiteboard(arguments: Namespace, as_json: bool) -> int:
    from agent.commands import whiteboard

    return whiteboard.run(arguments.file, as_json)


# --- set-up -----------------------------------------------------------------------------------


def _ovirt_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--conf",
        metavar="FILE",
        default="/etc/ovirt-hosted-engine/hosted-engine.conf",
        help="default: %(default)s",
    )
    parser.add_argument("--vm-conf", metavar="FILE", help="default: the one that --conf names")
    parser.add_argument(
        "--ovf", metavar="FILE", help="an OVF, a domain XML, or a tar with them (OVF_STORE)"
    )
    parser.add_argument(
        "--mount", metavar="FOLDER", default="", help="where oVirt's storage domain is mounted"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="write engine.xml and answers.toml there"
    )
    json_option(parser)


def _import_ovirt(arguments: Namespace, as_json: bool) -> int:
    from agent.ovirt import import_ovirt

    return import_ovirt.run(
        arguments.conf,
        arguments.vm_conf,
        arguments.ovf,
        arguments.mount,
        arguments.output,
        as_json,
    )


#: The groups of the help, by what one wants to do; each verb is in one of them.
GROUPS = (
    ("see how it is", ("status", "why", "events", "check-liveliness", "doctor", "acknowledge")),
    ("act on VMs", ("vm", "migrate", "maintenance")),
    ("set up", ("init", "invite", "join", "leave", "storage", "certificates", "import-ovirt")),
    ("change settings", ("config", "fence")),
    ("try it out", ("notify", "score")),
    (
        "repair, and look into files",
        ("clean-metadata", "reinitialize-lockspace", "whiteboard", "replay"),
    ),
    ("for the units of systemd", ("run", "host-shutdown")),
)

#: All verbs.
VERBS = (
    Verb("run", "run the agent (the service does this)", _run),
    Verb("status", "the cluster as this host sees it", _status, _status_options),
    Verb(
        "check-liveliness",
        "is the VM healthy? exit code 0: yes, 14: up only, 6: down, 15: ?",
        _check_liveliness,
        _check_liveliness_options,
    ),
    Verb("maintenance", "set or end a maintenance mode", _maintenance, _maintenance_options),
    Verb("notify", "try the notifications", _notify, _notify_options),
    Verb("migrate", "move the VM away from this host, live", _migrate, _migrate_options),
    Verb("vm", "start or stop VMs, and say which there are", vm_verbs.run, vm_verbs.options),
    Verb(
        "host-shutdown",
        "empty this host because it shuts down (its unit does this)",
        _host_shutdown,
    ),
    Verb("why", "why the VM is where it is, and what would change that", _why, _why_options),
    Verb("events", "what happened, as this host saw it", _events, _events_options),
    Verb(
        "acknowledge",
        "you have read why this host was switched off: the status need not say it any more",
        _acknowledge,
        json_option,
    ),
    Verb("replay", "run the decisions of a journal again and compare", _replay, _replay_options),
    Verb("score", "what score given samples would make, and why", _score, _score_options),
    Verb("fence", "add fence devices, and try them", _fence, _fence_options),
    Verb(
        "config", "show, check and change the configuration", config_verbs.run, config_verbs.options
    ),
    Verb("doctor", "is this host fit? each check with its fix", _doctor, _doctor_options),
    Verb("whiteboard", "look at a whiteboard volume", _whiteboard, _whiteboard_options),
    Verb("init", "make a new cluster with this host as its first", setup.run, setup.init),
    Verb("invite", "print a token with which a new host can join", setup.run, setup.invite),
    Verb("join", "make this host a member of a cluster", setup.run, setup.join),
    Verb(
        "leave",
        "take this host out of its cluster; not while the VM is here",
        setup.run,
        setup.leave,
    ),
    Verb("storage", "look after the volumes", setup.run, setup.storage),
    Verb(
        "certificates",
        "this host's certificates, their days, and new ones",
        setup.run,
        setup.certificates,
    ),
    Verb("clean-metadata", "remove the slot of a host that is gone", setup.run, setup.clean),
    Verb(
        "reinitialize-lockspace",
        "write the lease volume anew; no host may be using it",
        setup.run,
        setup.reinitialize,
    ),
    Verb(
        "import-ovirt",
        "propose a set-up from oVirt's hosted engine",
        _import_ovirt,
        _ovirt_options,
    ),
)

#: What a verb is called.
NAMES = frozenset(verb.name for verb in VERBS)
