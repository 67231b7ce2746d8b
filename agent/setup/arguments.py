# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line of the set-up commands."""

from __future__ import annotations

import argparse

from agent.setup.options import OPTIONS
from agent.terminal.options import json_option

#: How the hosts' libvirt talks to each other, and whose certificates it uses.
TLS = ("own", "site", "ssh")
INIT_TAKES = (
    *("storage", "whiteboard", "leases", "registry", "vms", "io-timeout", "domain", "cluster"),
    *("host-id", "name", "listen", "bridge", "network-targets", "health-url", "health-expect"),
    *("migration-uri", "migration-data-uri", "tls"),
)
JOIN_TAKES = ("host-id", "name", "listen")


def add_options(parser: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    """Add the options of these names, and those that every set-up command has."""
    for name in names:
        kind = int if name in ("io-timeout", "host-id", "vms") else str
        value = name.rpartition("-")[2].upper()
        choices = TLS if name == "tls" else None
        parser.add_argument(
            f"--{name}",
            type=kind,
            metavar="|".join(choices or (value,)),
            choices=choices,
            help=OPTIONS[name],
        )
    parser.add_argument("--answers", metavar="FILE", help="TOML with the options as keys")
    parser.add_argument("--yes", action="store_true", help="ask nothing, take the defaults")
    add_common(parser)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that changes something."""
    parser.add_argument("--dry-run", action="store_true", help="look, and say what would be done")
    json_option(parser)


def init(first: argparse.ArgumentParser) -> None:
    """The options of `init`."""
    add_options(first, INIT_TAKES)
    _set_libvirt(first)
    first.add_argument(
        "--share-state",
        action="store_true",
        help="put the VM's firmware nvram and TPM state on the shared storage too",
    )
    first.add_argument(
        "--overwrite",
        action="count",
        default=0,
        help="write over volumes that nobody uses any more; twice: over anything else too",
    )
    first.add_argument(
        "--local",
        action="store_true",
        default=None,
        help="take a local file system: every host must see these very files",
    )
    first.add_argument(
        "--identity",
        action="store_true",
        help="give the volumes of a cluster of an earlier version their names; nothing else",
    )


def _set_libvirt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set-libvirt",
        action="store_true",
        help="set the lock driver in qemu.conf and qemu-sanlock.conf, and restart libvirt, which no"
        " VM notices",
    )


def join(more: argparse.ArgumentParser) -> None:
    """The options of `join`."""
    more.add_argument(
        "token", metavar="TOKEN", nargs="?", help="what `ha-agent invite` printed on a member"
    )
    more.add_argument(
        "--from",
        dest="source",
        metavar="FOLDER",
        help="instead of a token: copies of a member's ha-agent.toml, secrets.toml and engine.xml",
    )
    add_options(more, JOIN_TAKES)
    _set_libvirt(more)
    more.add_argument(
        "--unproven",
        action="store_true",
        help="join though no member is seen to write to the whiteboard, or one does not see what"
        " this host writes",
    )


def invite(parser: argparse.ArgumentParser) -> None:
    """The options of `invite`."""
    parser.add_argument(
        "--address",
        action="append",
        metavar="ADDRESS",
        help="where the new host reaches this one, up to three times; default: as api.listen",
    )
    parser.add_argument(
        "--folder",
        metavar="FOLDER",
        help="no token: write the files into a folder, which is then copied to the new host",
    )
    json_option(parser)


def certificates(parser: argparse.ArgumentParser) -> None:
    """The options of `certificates`."""
    words = parser.add_subparsers(dest="what", metavar="show|renew", required=True)
    show = words.add_parser("show", help="those that this host uses, and their days")
    json_option(show)
    renew = words.add_parser("renew", help="make this host's anew where that is due")
    renew.add_argument("--now", action="store_true", help="whether it is due or not")
    json_option(renew)


def leave(less: argparse.ArgumentParser) -> None:
    """The options of `leave`."""
    how = less.add_mutually_exclusive_group()
    how.add_argument(
        "--lockspace-only", action="store_true", help="give the host id back, keep all else"
    )
    how.add_argument(
        "--undo",
        action="store_true",
        help="take back what init and join wrote to the configurations of libvirt and sanlock and"
        " to udev's rules as well; asks first",
    )
    less.add_argument("--yes", action="store_true", help="ask nothing")
    add_common(less)


def clean(parser: argparse.ArgumentParser) -> None:
    """The options of `clean-metadata`."""
    parser.add_argument("host", metavar="HOST", help="its id or its name")
    add_common(parser)


def reinitialize(parser: argparse.ArgumentParser) -> None:
    """The options of `reinitialize-lockspace`."""
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    add_common(parser)


def storage(parser: argparse.ArgumentParser) -> None:
    """The options of `storage`."""
    words = parser.add_subparsers(dest="what", metavar="show|grow|register", required=True)
    show = words.add_parser("show", help="the volumes, where they lie, and their headers")
    json_option(show)
    register = words.add_parser(
        "register", help="this host's SCSI-3 key with the VMs' disks, at each boot, as root"
    )
    json_option(register)
    grow = words.add_parser("grow", help="make room for more VMs, while the cluster runs")
    grow.add_argument(
        "--vms",
        type=int,
        metavar="N",
        required=True,
        help="how many VMs the cluster may have, 2 to 128, the engine among them",
    )
    grow.add_argument(
        "--registry",
        metavar="PATH",
        help="file or block device of the registry; default: beside the whiteboard",
    )
    add_common(grow)


def run(arguments: argparse.Namespace, as_json: bool) -> int:
    """Carry out the given verb of set-up."""
    from agent.certificates import command as certificates_command
    from agent.setup import (
        clean,
        grow,
        init,
        invite,
        join,
        leave,
        register,
        reinitialize,
        volumes_shown,
    )

    match arguments.verb:
        case "init":
            return init.run(arguments, as_json)
        case "join":
            return join.run(arguments, as_json)
        case "invite":
            return invite.run(arguments, as_json)
        case "certificates":
            return certificates_command.run(arguments, as_json)
        case "leave":
            return leave.run(arguments, as_json)
        case "storage" if arguments.what == "show":
            return volumes_shown.run(arguments, as_json)
        case "storage" if arguments.what == "register":
            return register.run(arguments, as_json)
        case "storage":
            return grow.run(arguments, as_json)
        case "clean-metadata":
            return clean.run(arguments, as_json)
        case _:
            return reinitialize.run(arguments, as_json)
