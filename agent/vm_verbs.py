# SPDX-License-Identifier: LGPL-2.1-or-later
"""The words of `ha-agent vm`: of the engine on this host, and of the registry's VMs.

The modules of a word are imported by that word alone.
"""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker.config.sections import Config

_ON_HOST = "the engine on that host, not on this one (start, shutdown, poweroff)"
_VM: dict[str, Any] = {"dest": "vm", "metavar": "NAME", "help": "a VM's name or number"}
#: Settings of a VM -> metavar and help.
_SETTINGS = {
    "priority": ("N", "0 to 100, who is served first at a shortage; default: 50"),
    "after": ("VMS", "starts when these are healthy, names with commas"),
    "apart": ("VMS", "never on one host with these"),
    "together": ("VMS", "always on one host with these"),
    "only": ("HOSTS", "may run on these hosts only, names or ids with commas"),
    "prefer": ("HOSTS", "runs best on these, the best first"),
    "want": ("up|down", "whether it is to run; default: up"),
    "health": ("HOW", "a page's address, tcp:HOST:PORT or guest-agent; default: not asked"),
    "expect": ("TEXT", "a regular expression that must be found in that page"),
    "starting": ("TIME", "from its start until it is healthy; then it is stopped"),
    "bad-health": ("TIME", "so long it may be unhealthy; then it is stopped, and started anew"),
    "stop-grace": ("TIME", "its guest's time to shut down; then its process is ended"),
    "migration-timeout": ("TIME", "a live migration that takes longer is cancelled"),
}
_FLAGS = {
    "failback": "goes back to a preferred host that returns",
    "overcommit": "starts also where its memory does not fit",
}


def options(parser: ArgumentParser) -> None:
    """All words with their options."""
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    parser.add_argument("--host", metavar="HOST", help=_ON_HOST)
    parser.add_argument("--json", action="store_true", dest="json_here")
    words = parser.add_subparsers(dest="what", metavar="WORD", required=True)
    _of_the_engine(words)
    _that_change(words)
    _that_show(words)


def _word(words: Any, name: str, text: str, changes: bool = False) -> ArgumentParser:
    parser: ArgumentParser = words.add_parser(name, help=text)
    parser.add_argument("--json", action="store_true", dest="json_here", default=SUPPRESS)
    if changes:
        parser.add_argument(
            "--dry-run", action="store_true", help="look, and say what would be done"
        )
        parser.add_argument("--yes", action="store_true", help="ask nothing", default=SUPPRESS)
    return parser


def _of_the_engine(words: Any) -> None:
    for name, text in (
        ("start", "start the engine here, or have the cluster start a VM of the registry"),
        ("shutdown", "ask the guest of the engine on this host, or of a VM, to shut down"),
        ("poweroff", "end the process of the engine on this host, or of a VM"),
        ("console", "the engine's console, on its host"),
        ("adopt", "what runs or ran last is right, not the definition"),
        ("keep", "the definition is right, not what runs or ran last"),
    ):
        word = _word(words, name, text, changes=name == "start")
        if name != "start":
            word.add_argument("--yes", action="store_true", help="ask nothing", default=SUPPRESS)
        if name in ("start", "shutdown", "poweroff"):
            word.add_argument("--host", metavar="HOST", help=_ON_HOST, default=SUPPRESS)
            word.add_argument("vm", nargs="?", metavar="NAME", help="default: the engine, here")


def _that_change(words: Any) -> None:
    add = _word(words, "add", "put a VM into the registry", changes=True)
    add.add_argument("file", metavar="FILE", help="its domain XML; -: standard input")
    add.add_argument("--name", metavar="NAME", help="default: as the XML says")
    for key, (metavar, text) in _SETTINGS.items():
        add.add_argument(f"--{key}", metavar=metavar, help=text)
    for key, text in _FLAGS.items():
        add.add_argument(f"--{key}", action="store_true", help=text)
    define = _word(words, "define", "give a VM another definition", changes=True)
    define.add_argument(**_VM)
    given = define.add_mutually_exclusive_group(required=True)
    given.add_argument("file", nargs="?", metavar="FILE", help="its domain XML; -: standard input")
    given.add_argument(
        "--from-running", action="store_true", help="as it runs on this host; its disks too"
    )
    change = _word(words, "set", "change settings of a VM", changes=True)
    change.add_argument(**_VM)
    keys = ", ".join((*_SETTINGS, *_FLAGS))
    change.add_argument(
        "settings", nargs="+", metavar="KEY=VALUE", help=f"an empty value ends it; keys: {keys}"
    )
    stop = _word(words, "stop", "have the cluster shut down a VM, and leave it down", changes=True)
    stop.add_argument(**_VM)
    remove = _word(words, "remove", "protect a VM no longer; its disks stay", changes=True)
    remove.add_argument(**_VM)
    _word(words, "sign", "sign the registry anew, after a change of the cluster key", changes=True)
    text = "write what is lost of the registry anew, from this host's copy"
    rebuild = _word(words, "rebuild", text, changes=True)
    rebuild.add_argument(
        "--overwrite", action="store_true", help="also where nothing on the volume proves it ours"
    )


def _that_show(words: Any) -> None:
    _word(words, "list", "all VMs of the registry")
    show = _word(words, "show", "a VM's settings")
    show.add_argument(**_VM)
    show.add_argument("--xml", action="store_true", help="its definition instead")
    history = _word(words, "history", "a VM's definitions, and back to one", changes=True)
    history.add_argument(**_VM)
    history.add_argument("--restore", type=int, metavar="N", help="make definition N the newest")
    export = _word(words, "export", "a VM's definition; without NAME all VMs as JSON")
    export.add_argument("vm", nargs="?", metavar="NAME")


def run(arguments: Namespace, as_json: bool) -> int:
    """Carry out the given word."""
    from broker.config.load import load

    config = load(arguments.config)
    match arguments.what:
        case "adopt" | "keep":
            from agent.commands import adopt

            return adopt.run(config, arguments.what == "adopt", as_json)
        case "console":
            from agent.commands import vm

            return vm.vm(config, "console", arguments.yes, as_json)
        case "shutdown" | "poweroff":
            from agent.commands import vm

            given = arguments.what, arguments.yes, as_json, arguments.host, arguments.vm
            return vm.vm(config, *given)
        case "start":
            return _start(config, arguments, as_json)
        case "list" | "show" | "export":
            return _show(config, arguments, as_json)
    return _change(config, arguments, as_json)


def _start(config: Config, arguments: Namespace, as_json: bool) -> int:
    from agent.commands import vm, vms
    from agent.registry.names import ENGINE
    from scoring.vm_facts import Want

    if arguments.vm in (None, "1", ENGINE, config.vm.name):
        return vm.vm(config, "start", arguments.yes, as_json, arguments.host)
    return vms.want(config, arguments.vm, Want.UP, arguments, as_json)


def _show(config: Config, arguments: Namespace, as_json: bool) -> int:
    from agent.commands import vms_shown

    match arguments.what:
        case "list":
            return vms_shown.list_(config, as_json)
        case "show":
            return vms_shown.show(config, arguments.vm, arguments.xml, as_json)
    return vms_shown.export(config, arguments.vm, as_json)


def _change(config: Config, arguments: Namespace, as_json: bool) -> int:
    from agent.commands import vms, vms_shown
    from scoring.vm_facts import Want

    match arguments.what:
        case "add":
            return vms.add(config, arguments, as_json)
        case "define":
            return vms.define(config, arguments, as_json)
        case "set":
            return vms.set_(config, arguments, as_json)
        case "stop":
            return vms.want(config, arguments.vm, Want.DOWN, arguments, as_json)
        case "remove":
            return vms.remove(config, arguments, as_json)
        case "history" if arguments.restore is not None:
            return vms.restore(config, arguments, as_json)
        case "history":
            return vms_shown.history(config, arguments.vm, as_json)
        case "rebuild":
            from agent.commands import vm_rebuild

            return vm_rebuild.run(config, arguments, as_json)
    return vms.sign(config, arguments, as_json)
