# SPDX-License-Identifier: LGPL-2.1-or-later
"""The words of `ha-agent config`. The modules of a word are imported by that word alone."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from agent.terminal.options import json_option


def options(parser: ArgumentParser) -> None:
    """All words with their options."""
    looks = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    check = looks.add_parser("check", help="everything that can be checked without a daemon")
    check.add_argument("file", nargs="?", help="default: as --config")
    json_option(check)
    json_option(looks.add_parser("show", help="every key with the value that counts"))
    diff = looks.add_parser("diff", help="what another host has otherwise and must not")
    diff.add_argument("host", metavar="HOST", help="a host's id or name")
    json_option(diff)
    get = looks.add_parser("get", help="the value of one key, and where it is set")
    get.add_argument("key", metavar="KEY", help="such as timing.fence-after")
    json_option(get)
    change = looks.add_parser("set", help="set one key for all hosts")
    change.add_argument("key", metavar="KEY", help="such as timing.fence-after")
    change.add_argument("value", metavar="VALUE", help="a word or number; a list as TOML has it")
    change.add_argument("--host-only", action="store_true", help="in this host's file alone")
    json_option(change)
    secret = looks.add_parser("secret", help="share a password, sealed for the members")
    secret.add_argument("name", metavar="NAME", help="such as fence-passwords.2, smtp-password")
    json_option(secret)
    json_option(looks.add_parser("reseal", help="seal them anew, for another cluster key"))
    json_option(looks.add_parser("edit", help="edit what all hosts share, in $EDITOR"))
    json_option(looks.add_parser("history", help="who changed what all hosts share, and when"))
    back = looks.add_parser("rollback", help="share an older text again")
    back.add_argument("generation", metavar="N", nargs="?", type=int, help="default: the last one")
    json_option(back)


def run(arguments: Namespace, as_json: bool) -> int:
    """Carry out the given word; returns the exit code."""
    from agent.commands import config_check, config_show

    match arguments.what:
        case "get" | "set" | "secret" | "reseal" | "edit" | "history" | "rollback":
            from agent.commands import config_shared

            return config_shared.run(arguments, as_json)
        case "show":
            return config_show.show(arguments.config, as_json)
        case "diff":
            return config_show.diff(arguments.config, arguments.host, as_json)
        case _:
            return config_check.run(arguments.file or arguments.config, as_json)
