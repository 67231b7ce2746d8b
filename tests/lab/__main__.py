# SPDX-License-Identifier: LGPL-2.1-or-later
"""``python -m tests.lab VERB``: the lab's command line. Parses, calls Cluster, prints.

Exit codes: 0 done, 1 failed or timed out, 2 usage (no such host, verb, daemon),
3 the machine cannot run the lab, 130 interrupted. ``sh`` passes on its command's own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from . import bmc
from .cluster import HEALTHY_SECONDS_MAX, KILLABLE, SERVER_ORDERS, Cluster
from .errors import EXIT_INTERRUPTED, EXIT_OK, LabError
from .layout import DAEMONS, default_run_directory
from .storages import kinds

STORAGE_FAULTS = {
    "ok": "all is well; what hung goes on",
    "hang": "no operation ends",
    "eio": "each operation fails",
    "slow SECONDS": "each operation takes so much longer",
    "full": "no space is left for a write",
    "read-only": "each write fails, and no read",
}
LINK_FAULTS = {
    "ok": "all is well",
    "drop-to HOST": "nothing that it sends there arrives; the other way is free",
    "loss PERCENT": "so many of its packets are lost, both ways",
}

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="python -m tests.lab",
        description="A real cluster of hosts inside this machine.",
        epilog="Exit codes: 0 done, 1 failed or timed out, 2 usage, "
        "3 this machine cannot run the lab, 130 interrupted.",
    )
    top.add_argument(
        "--dir", type=Path, help="run directory (default: HA_LAB_DIR, or /var/tmp/...)"
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    up = verbs.add_parser("up", help="bring the lab up and wait for the engine")
    up.add_argument("--hosts", type=int, default=3, metavar="N", help="how many (default 3)")
    up.add_argument(
        "--io-timeout", type=int, default=2, metavar="S", help="sanlock's, in seconds (default 2)"
    )
    up.add_argument(
        "--vms", type=int, default=1, metavar="N", help="1 to 3: the engine, db, sso (default 1)"
    )
    add_storage(up)
    up.add_argument("--no-bmc", action="store_true", help="no BMCs, no fence devices")
    up.add_argument(
        "--no-daemons", action="store_true", help="neither broker nor agent, only what they need"
    )
    up.add_argument(
        "--timeout",
        type=float,
        default=HEALTHY_SECONDS_MAX,
        metavar="S",
        help="how long to wait for the engine (default %(default)s)",
    )
    verbs.add_parser("down", help="remove every trace of the lab")
    status = verbs.add_parser("status", help="what runs where, read from the machine")
    status.add_argument("--json", action="store_true")
    wait = verbs.add_parser("wait", help="wait until something holds")
    wait.add_argument("what", choices=["healthy"])
    wait.add_argument("--timeout", type=float, default=HEALTHY_SECONDS_MAX, metavar="S")

    for verb, text in (
        ("cut", "pull the host's plug"),
        ("power-on", "switch the host on"),
        ("partition", "unplug the host's network cable"),
        ("heal", "plug the host's network cable in"),
    ):
        verbs.add_parser(verb, help=text).add_argument("host")
    for verb, text in (
        ("freeze", "stop every process of the host: it hangs, its power stays on"),
        ("thaw", "let a frozen host go on"),
        ("isolate", "unplug the cable and hang the storage at once"),
    ):
        verbs.add_parser(verb, help=text).add_argument("host")
    for verb, text, faults in (
        ("storage", "what the host's storage does", STORAGE_FAULTS),
        ("links", "what the host's packets meet", LINK_FAULTS),
        ("bmc", "what is wrong with the host's BMC", bmc.FAULTS),
    ):
        fault = verbs.add_parser(
            verb,
            help=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="faults:\n" + "\n".join(f"  {name:15} {what}" for name, what in faults.items()),
        )
        fault.add_argument("host")
        fault.add_argument("fault", nargs="+", metavar="FAULT")
    verbs.add_parser("ok", help="end all faults of all hosts")
    for verb, text, choices in (
        ("kill", "SIGKILL a daemon of the host, or its QEMU", KILLABLE),
        ("stop", "stop a daemon and hold it down", DAEMONS),
        ("start", "let a held daemon run again", DAEMONS),
    ):
        daemon = verbs.add_parser(verb, help=text)
        daemon.add_argument("host")
        daemon.add_argument("daemon", choices=choices)
    logs = verbs.add_parser("logs", help="print the logs of a host")
    logs.add_argument("host")
    logs.add_argument("daemon", nargs="?", choices=(*DAEMONS, "init"))
    shell = verbs.add_parser("sh", help="run a command in the host: sh HOST -- CMD...")
    shell.add_argument("host")
    shell.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD")
    server = verbs.add_parser("server", help="kill, freeze, ... a daemon of the storage")
    server.add_argument("name", help="osd-0, mds-a, brick-1, ganesha, ...")
    server.add_argument("what", choices=SERVER_ORDERS)
    demo = verbs.add_parser("demo", help="a power cut and a takeover, told as it happens")
    add_storage(demo)
    demo.add_argument(
        "--vms", type=int, metavar="N", help="1 to 3 (default 3; 1 with another storage than fuse)"
    )
    return top


def add_storage(verb: argparse.ArgumentParser) -> None:
    """What the hosts share."""
    verb.add_argument(
        "--storage", choices=kinds.KINDS, default=kinds.FUSE, help="(default %(default)s)"
    )
    verb.add_argument(
        "--disk",
        choices=kinds.DISK_FORMATS,
        default="raw",
        help="the format of the VM's disk (default %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Carry out one verb; its exit code."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)

    cluster = Cluster(options.dir or default_run_directory(), say)
    match options.verb:
        case "up":
            cluster.up(
                options.hosts,
                io_timeout_s=options.io_timeout,
                bmc=not options.no_bmc,
                daemons=not options.no_daemons,
                healthy_seconds_max=options.timeout,
                storage=options.storage,
                disk=options.disk,
                vms=options.vms,
            )
            say(f"up in {cluster.directory}")
        case "down":
            say("down" if cluster.down() else "nothing was up")
        case "status":
            status = cluster.status()
            print(json.dumps(status, indent=1) if options.json else table(status))
        case "wait":
            print(cluster.wait_healthy(options.timeout))
        case "cut":
            cluster.cut(options.host)
        case "power-on":
            if not cluster.power_on(options.host):
                say(f"{options.host} is on already")
            cluster.wait_booted(options.host)
        case "partition":
            cluster.partition(options.host)
        case "heal":
            cluster.heal(options.host)
        case "freeze":
            cluster.freeze(options.host)
        case "thaw":
            cluster.thaw(options.host)
        case "isolate":
            cluster.isolate(options.host)
        case "storage":
            cluster.storage(options.host, " ".join(options.fault))
        case "links":
            cluster.links(options.host, " ".join(options.fault))
        case "bmc":
            cluster.bmc(options.host, " ".join(options.fault))
        case "ok":
            cluster.end_faults()
        case "kill":
            cluster.kill(options.host, options.daemon)
        case "stop":
            cluster.stop(options.host, options.daemon)
        case "start":
            cluster.start(options.host, options.daemon)
        case "logs":
            for daemon in [options.daemon] if options.daemon else ("init", *DAEMONS):
                print(f"== {cluster.log_path(options.host, daemon)}", flush=True)
                cluster.follow_log(options.host, daemon, sys.stdout)
        case "sh":
            become_shell(cluster, options.host, options.command)
        case "demo":
            # Imported late: the other verbs do without it.
            from . import demo

            vms = options.vms or (3 if options.storage == kinds.FUSE else 1)
            return demo.run(cluster, say, options.storage, options.disk, vms)
        case "server":
            cluster.server(options.name, options.what)
        case _:
            raise AssertionError(options.verb)
    return EXIT_OK


def become_shell(cluster: Cluster, host: str, command: list[str]) -> NoReturn:
    """Replace this process, so that stdin, stdout, signals and exit code are the command's."""
    argv = command[1:] if command[:1] == ["--"] else command
    arguments, environment = cluster.sh_command(host, argv or ["/bin/bash"])
    sys.stdout.flush()
    os.execvpe(arguments[0], arguments, environment)


def table(status: dict[str, Any]) -> str:
    """The status for people."""
    engine = status["engine"]
    guests = "under KVM" if status["accelerator"] == "kvm" else "emulated (no usable KVM)"
    lines = [
        f"lab        {status['directory']}{'' if status['up'] else ' (not up)'}",
        f"guests     {guests}",
        f"engine     {'healthy' if engine['healthy'] else 'not healthy'}"
        f" on {engine['host'] or 'no single host'}, boots {engine['boots'] or '?'}",
        f"whiteboard {status['whiteboard']}",
        "",
        "host     power cable     storage  BMC          QEMU "
        + " ".join(f"{name:>9}" for name in DAEMONS),
    ]
    for name, host in status["hosts"].items():
        daemons = " ".join(f"{host['daemons'][daemon] or '-':>9}" for daemon in DAEMONS)
        lines.append(
            f"{name:8} {host['power']:5} {host['cable']:9} {host['storage']:8} {host['bmc']:12}"
            f"{host['engine_processes']:5} {daemons}"
        )
    return "\n".join(lines)


def main() -> int:
    """Exit code as documented at the top of this file."""
    options = parser().parse_args()

    def interrupt(number: int, frame: FrameType | None) -> None:
        # A second signal would interrupt the cleaning up after the first.
        for repeated in INTERRUPTS:
            signal.signal(repeated, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in INTERRUPTS:
        # SIGINT too: a shell starts background jobs with it ignored. nohup's wish stands.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        return run(options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
