# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command `ha-agent`. The modules of a subcommand are imported only by that subcommand."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from agent.setup import arguments as setup_arguments
from broker.daemon.exit_codes import ExitCode

_EPILOG = """\
exit codes:
  0 fine   1 failed   2 usage   3 a file cannot be read   4 not configured, or wrongly
  5 the broker does not answer   6 the VM is down everywhere   7 storage   8 lockspace
  9 VM definition   10 libvirt without the sanlock lock driver   11 refused by the broker
  12 a test notice could not be sent   13 a fence device is not fit
  14 the VM is up, but not healthy   15 whether the VM is up is not known
"""


def _parser() -> argparse.ArgumentParser:
    from broker.config.places import default_path

    parser = argparse.ArgumentParser(
        prog="ha-agent",
        description="Keeps one virtual machine up on hosts that share storage.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default=default_path(), help="default: %(default)s")
    parser.add_argument("--status", action="store_true", help="the same as: ha-agent status")
    parser.add_argument("--json", action="store_true", help="with --status: as JSON")
    parser.add_argument("--watch", action="store_true", help="with --status: again and again")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    verbs.add_parser("run", help="run the agent (the service does this)")
    status = verbs.add_parser("status", help="the cluster as this host sees it")
    status.add_argument("--json", action="store_true", dest="json_here")
    status.add_argument(
        "--watch", action="store_true", dest="watch_here", help="again and again, until Ctrl-C"
    )
    liveliness = verbs.add_parser(
        "check-liveliness", help="is the VM healthy? exit code 0: yes, 14: up only, 6: down, 15: ?"
    )
    liveliness.add_argument("--json", action="store_true", dest="json_here")
    maintenance = verbs.add_parser("maintenance", help="set or end a maintenance mode")
    maintenance.add_argument(
        "mode",
        choices=("global", "local", "none"),
        help="global: nothing is touched; local: this host is drained; none: end both",
    )
    maintenance.add_argument(
        "--for", metavar="TIME", dest="lasts", help="ends by itself: 30m, 2h, 1d; default 8h"
    )
    maintenance.add_argument("--no-expiry", action="store_true", help="until somebody ends it")
    maintenance.add_argument(
        "--release-id", action="store_true", help="with local: give the host id back, once empty"
    )
    maintenance.add_argument("--reason", metavar="TEXT", help="shown on every host")
    notify = verbs.add_parser("notify", help="try the notifications")
    test = notify.add_subparsers(dest="what", metavar="test", required=True).add_parser("test")
    test.add_argument("--json", action="store_true", dest="json_here")
    migrate = verbs.add_parser("migrate", help="move the VM away from this host, live")
    migrate.add_argument("--to", metavar="HOST", help="id or name; default: the best host")
    migrate.add_argument("--cancel", action="store_true", help="cancel the one under way")
    migrate.add_argument("--json", action="store_true", dest="json_here")
    vm = verbs.add_parser("vm", help="start or stop the VM by hand, or decide what is started")
    vm.add_argument(
        "what",
        choices=("start", "shutdown", "poweroff", "console", "adopt", "keep"),
        help="shutdown asks the guest, poweroff ends its process; adopt: what runs or ran last is"
        " right, keep: the definition is",
    )
    vm.add_argument("--yes", action="store_true", help="ask nothing")
    vm.add_argument("--json", action="store_true", dest="json_here")
    verbs.add_parser(
        "host-shutdown", help="empty this host because it shuts down (its unit does this)"
    )
    verbs.add_parser("why", help="why the VM is where it is, and what would change that")
    events = verbs.add_parser("events", help="what happened, as this host saw it")
    events.add_argument(
        "--since", metavar="TIME", help="how long ago (30m, 2h, 1d), or a time; default: all"
    )
    events.add_argument("--follow", action="store_true", help="go on, until Ctrl-C")
    events.add_argument("--json", action="store_true", dest="json_here")
    replay = verbs.add_parser("replay", help="run the decisions of a journal again and compare")
    replay.add_argument("file", help="STATE-DIR/journal/journal.jsonl, or an older one")
    replay.add_argument("--scenario", metavar="OUT", help="also write the incident as a scenario")
    replay.add_argument("--json", action="store_true", dest="json_here")
    score = verbs.add_parser("score", help="what score given samples would make, and why")
    score.add_argument("file", help="JSON; -: standard input")
    score.add_argument("--json", action="store_true", dest="json_here")
    fence = verbs.add_parser("fence", help="look after the fence devices")
    test = fence.add_subparsers(dest="what", metavar="test", required=True).add_parser(
        "test", help="log in, read power and identity, check the privilege; changes nothing"
    )
    test.add_argument("host", metavar="HOST|all", help="a host's id or name")
    test.add_argument("--json", action="store_true", dest="json_here")
    settings = verbs.add_parser("config", help="look at the configuration")
    looks = settings.add_subparsers(dest="what", metavar="check|show|diff", required=True)
    check = looks.add_parser("check", help="everything that can be checked without a daemon")
    check.add_argument("file", nargs="?", help="default: as --config")
    check.add_argument("--json", action="store_true", dest="json_here")
    shown = looks.add_parser("show", help="every key with the value that counts")
    shown.add_argument("--json", action="store_true", dest="json_here")
    diff = looks.add_parser("diff", help="what another host has otherwise and must not")
    diff.add_argument("host", metavar="HOST", help="a host's id or name")
    diff.add_argument("--json", action="store_true", dest="json_here")
    doctor = verbs.add_parser("doctor", help="is this host fit? each check with its fix")
    doctor.add_argument("--json", action="store_true", dest="json_here")
    whiteboard = verbs.add_parser("whiteboard", help="look at a whiteboard volume")
    dump = whiteboard.add_subparsers(dest="what", metavar="dump", required=True).add_parser("dump")
    dump.add_argument("file")
    dump.add_argument("--json", action="store_true", dest="json_here")
    setup_arguments.add(verbs)
    return parser


def main() -> NoReturn:
    """Parse, run the subcommand, exit with its code; every error is one line."""
    parser = _parser()
    arguments = parser.parse_args()
    as_json = arguments.json or getattr(arguments, "json_here", False)
    try:
        code = _run(parser, arguments, as_json)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # The reader of the output has gone: there is nothing to say or to flush.
        sys.stderr.close()
        code = ExitCode.OK
    sys.exit(code)


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace, as_json: bool) -> int:
    try:
        return _dispatch(parser, arguments, as_json)
    except Exception as error:
        from broker.config.sections import ConfigError

        if isinstance(error, ConfigError):
            return _say(ExitCode.CONFIG, "not-configured", str(error), as_json)
        code = _known(error)
        if code is None:
            raise
        return _say(code, code.name.lower().replace("_", "-"), str(error), as_json)


def _known(error: Exception) -> ExitCode | None:
    """The exit code of an error that has one; None: it is a bug and keeps its traceback."""
    from agent.terminal.errors import CommandError
    from broker.client.ask import BrokerDown, BrokerRefused

    match error:
        case CommandError():
            return error.code
        case BrokerDown():
            return ExitCode.BROKER_DOWN
        case BrokerRefused():
            return ExitCode.REFUSED
        case _:
            return None


def _dispatch(parser: argparse.ArgumentParser, arguments: argparse.Namespace, as_json: bool) -> int:
    if arguments.verb == "whiteboard":
        from agent.commands import whiteboard as whiteboard_dump

        return whiteboard_dump.run(arguments.file, as_json)
    if arguments.verb == "score":
        from agent.commands import score as what_if

        return what_if.run(arguments.file, as_json)
    if arguments.verb == "replay":
        from agent.commands import replay

        return replay.run(arguments.file, as_json, arguments.scenario)
    if arguments.verb == "why":
        from agent.commands import why
        from broker.config.sections import load

        return why.run(load(arguments.config))
    if arguments.verb == "fence":
        from agent.commands import fence_test
        from broker.config.sections import load

        return fence_test.run(load(arguments.config), arguments.host, as_json)
    if arguments.verb == "config":
        from agent.commands import config_check, config_show

        if arguments.what == "show":
            return config_show.show(arguments.config, as_json)
        if arguments.what == "diff":
            return config_show.diff(arguments.config, arguments.host, as_json)
        return config_check.run(arguments.file or arguments.config, as_json)
    if arguments.verb == "doctor":
        from agent.doctor import checks as doctor

        return doctor.run(arguments.config, as_json)
    if arguments.verb in setup_arguments.VERBS:
        return setup_arguments.run(arguments, as_json)
    if arguments.verb == "run":
        from agent.run import run

        return run(arguments.config)
    if arguments.verb == "status" or (arguments.verb is None and arguments.status):
        from agent.status import command as status

        watch = arguments.watch or getattr(arguments, "watch_here", False)
        return status.run(arguments.config, as_json, watch, _warn)
    if arguments.verb == "check-liveliness":
        from agent.commands import liveliness
        from broker.config.sections import socket_path

        return liveliness.run(socket_path(arguments.config, _warn), as_json)
    if arguments.verb == "events":
        from agent.commands import events
        from broker.config.sections import socket_path

        path = socket_path(arguments.config, _warn)
        return events.run(path, arguments.since, arguments.follow, as_json)
    if arguments.verb == "host-shutdown":
        from agent.commands import host_shutdown
        from broker.config.sections import socket_path

        return host_shutdown.run(socket_path(arguments.config, _warn))
    if arguments.verb == "notify":
        from agent.commands import notify
        from broker.config.sections import socket_path

        return notify.run(socket_path(arguments.config, _warn), as_json)
    if arguments.verb in ("migrate", "vm"):
        from agent.commands import vm as orders
        from broker.config.sections import load

        config = load(arguments.config)
        if arguments.verb == "migrate":
            return orders.migrate(config, arguments.to, arguments.cancel, as_json)
        if arguments.what in ("adopt", "keep"):
            from agent.commands import adopt

            return adopt.run(config, arguments.what == "adopt", as_json)
        return orders.vm(config, arguments.what, arguments.yes, as_json)
    if arguments.verb == "maintenance":
        from agent.commands import maintenance
        from broker.config.sections import socket_path

        return maintenance.run(
            socket_path(arguments.config, _warn),
            arguments.mode,
            arguments.lasts,
            arguments.no_expiry,
            arguments.reason,
            arguments.release_id,
        )
    parser.print_help()
    return ExitCode.USAGE


def _warn(message: str) -> None:
    """Warn about the configuration file, where the broker can be asked all the same."""
    print(f"ha-agent: {message}; asking the broker all the same", file=sys.stderr)


def _say(code: ExitCode, name: str, message: str, as_json: bool) -> int:
    """Print one line on standard error, and with --json a JSON object on standard output."""
    if as_json:
        import json

        print(json.dumps({"version": 1, "error": {"code": name, "message": message}}))
    print(f"ha-agent: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
