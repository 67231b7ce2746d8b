# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command `ha-agent`: its arguments, its exit code, and one line for each error."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from agent import verbs as table
from agent.terminal import hanging
from agent.terminal.begun import command_began_s
from broker.daemon.command_line import Parser
from broker.daemon.errors import HaError, why
from broker.daemon.exit_codes import ExitCode

#: What the kernel says to a user who may not.
_REFUSED = os.strerror(errno.EACCES)
_EPILOG = """\
exit codes:
  0 fine   1 failed   2 usage   3 a file cannot be read   4 not configured, or wrongly
  5 the broker does not answer   6 the VM is down everywhere   7 storage   8 lockspace
  9 VM definition   10 libvirt without the sanlock lock driver   11 refused by the broker
  12 a test notice could not be sent   13 a fence device is not fit
  14 the VM is up, but not healthy   15 whether the VM is up is not known
"""


#: The options before a verb that need no look at the other verbs, and how many words they take.
_BEFORE = {"--config": 2, "--json": 1, "--status": 1, "--watch": 1}


def _verb_in(words: Sequence[str]) -> str | None:
    """The verb of a command line; None where all verbs are needed to say what it means, as in
    `--help` or where a word is wrong."""
    place = 0
    while place < len(words) and words[place] in _BEFORE:
        place += _BEFORE[words[place]]
    if place < len(words):
        return words[place] if words[place] in table.NAMES else None
    return "status" if "--status" in words else None


def _parser(verb: str | None = None) -> Parser:
    """The parser of that verb, or of all: to make those of all takes most of a short command's
    time."""
    from broker.config.places import default_path

    parser = Parser(
        prog="ha-agent",
        description="Keeps virtual machines up on hosts that share storage.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        groups=table.GROUPS,
    )
    parser.add_argument(
        "--config", metavar="FILE", default=default_path(), help="default: %(default)s"
    )
    parser.add_argument("--status", action="store_true", help="the same as: ha-agent status")
    parser.add_argument("--json", action="store_true", help="answer in JSON")
    parser.add_argument("--watch", action="store_true", help="with --status: again and again")
    parser.add_version()
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    table.add(verbs, verb)
    return parser


def main() -> NoReturn:
    """Parse, run the subcommand, exit with its code; every error is one line."""
    completes = "_ARGCOMPLETE" in os.environ
    parser = _parser(None if completes else _verb_in(sys.argv[1:]))
    if completes:
        from agent.terminal.completion import complete

        complete(parser)
    arguments = parser.parse_args()
    command_began_s()  # remembered before the fork
    as_json = arguments.json or getattr(arguments, "json_here", False)
    if arguments.verb != "run":  # the agent has a deadline for each of its calls
        _in_child(as_json)
    try:
        code = _run(parser, arguments, as_json)
        sys.stdout.flush()
    except KeyboardInterrupt:
        # A second one, while the interpreter ends, would leave a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        code = 130
    except BrokenPipeError:
        # The reader of the output has gone: there is nothing to say or to flush.
        sys.stderr.close()
        code = ExitCode.OK
    sys.exit(code)


def _in_child(as_json: bool) -> None:
    """Returns in a child process, which goes on; ends the parent as the child ends, or once that
    hangs."""
    try:
        code = hanging.run_in_child()
    except hanging.CommandHangs as error:
        code = _say(error.code, error.json_code, str(error), as_json)
    if code is not None:
        hanging.end(code)


def _run(parser: Parser, arguments: argparse.Namespace, as_json: bool) -> int:
    try:
        code = table.run(arguments, as_json)
        if code is None:
            if as_json or arguments.watch:
                parser.error("a verb is missing, such as status")
            parser.print_help()
            code = ExitCode.USAGE
        return code
    except HaError as error:
        shown = getattr(error, "answer", None)
        return _say(error.code, error.json_code, str(error), as_json, shown)
    except OSError as error:
        if error.filename is None:
            raise
        # The machine's fault, not a bug: a file that the command needs is not there, or is refused.
        return _say(ExitCode.FILE, "file", f"{error.filename}: {why(error)}", as_json)


def _say(
    code: ExitCode,
    name: str,
    message: str,
    as_json: bool,
    shown: Mapping[str, Any] | None = None,
) -> int:
    """Print one line on standard error, and with --json a JSON object on standard output. `shown`:
    what there is of the answer all the same."""
    if os.geteuid() != 0 and _REFUSED in message and "root" not in message:
        message += "; run as root, by sudo for example"
    if as_json:
        from agent.terminal import in_json

        in_json.show_error(name, message, shown)
    from agent.terminal.columns import say

    say(f"ha-agent: {message}", 2, sys.stderr)
    return code


if __name__ == "__main__":
    main()
