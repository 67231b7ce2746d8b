# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent storage show`: the volumes, what they lie on, and their headers. Changes nothing."""

from __future__ import annotations

import argparse
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.storage import held
from agent.storage.identity import IDENTITY_COMMAND, KINDS, path_of
from agent.storage.registry import contents_of
from agent.storage.room import sector_of
from agent.terminal import in_json
from agent.terminal.columns import say
from agent.terminal.errors import CommandError
from broker.config.load import load
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.whiteboard.identity import (
    STEP,
    BadIdentity,
    VolumeKind,
    decode,
    expected,
    problem,
    read,
)
from broker.whiteboard.mounts import mount_of
from broker.whiteboard.volume import Volume, VolumeError


@dataclass(frozen=True, slots=True)
class Shown:
    """One volume. `lies_on`: device, logical volume or mount, in words. `bytes`: its size now, None
    where it cannot be read. `header`: in words. `problem`: what is wrong, "" nothing. `fix`: what
    to type."""

    volume: str
    path: str
    lies_on: str
    bytes: int | None
    header: str
    problem: str = ""
    fix: str = ""


def run(arguments: argparse.Namespace, as_json: bool) -> int:
    """Print; OK, or STORAGE where a volume cannot be read or is not the configuration's."""
    config = load(arguments.config)
    shown = [_shown(config, kind) for kind in KINDS]
    if config.storage.registry:
        shown.append(_registry(config))
    if as_json:
        in_json.show({"volumes": [asdict(each) for each in shown]})
    else:
        for each in shown:
            size = "" if each.bytes is None else f", {each.bytes} bytes"
            say(f"{each.volume:<11} {each.path}: {each.lies_on}{size}", 12)
            say(f"{'':<11} {each.problem or each.header}", 12)
            if each.fix:
                say(f"{'':<11} -> {each.fix}", 15)
    is_bad = any(each.problem for each in shown)
    return ExitCode.STORAGE if is_bad else ExitCode.OK


def _shown(config: Config, kind: VolumeKind) -> Shown:
    path = path_of(config.storage, kind)
    lies_on = lies_on_in_words(path)
    try:
        with Volume(path, read_only=True) as volume:
            size, raw = volume.size_bytes, read(volume, kind)
    except VolumeError as error:
        return Shown(kind, path, lies_on, None, "", f"{error.what}; {error.step}")
    wrong = problem(raw, expected(config, kind))
    try:
        found = decode(raw)
    except BadIdentity as error:
        return Shown(kind, path, lies_on, size, "", wrong or str(error), STEP)
    if wrong:
        # No `init --identity`, which is refused on such a volume.
        return Shown(kind, path, lies_on, size, "", wrong, STEP)
    if found is None:
        text = "no header: an earlier version made it, and it works as before"
        return Shown(kind, path, lies_on, size, text, wrong, IDENTITY_COMMAND)
    text = f"{found.kind} {found.volume} of cluster {found.cluster}"
    if not found.bytes:
        return Shown(kind, path, lies_on, size, f"{text}, no sizes", wrong, IDENTITY_COMMAND)
    text += f", {found.bytes} bytes used, made for sectors of {found.sector}"
    if size < found.bytes:
        wrong = wrong or f"has shrunk: it has {size} bytes, and {found.bytes} are used"
    return Shown(kind, path, lies_on, size, text, wrong)


def _registry(config: Config) -> Shown:
    """The registry. Its header has another form (broker/registry/record.py), which the reader of
    the registry checks."""
    path = config.storage.registry
    lies_on = lies_on_in_words(path)
    try:
        with Volume(path, read_only=True) as volume:
            size = volume.size_bytes
    except VolumeError as error:
        return Shown("registry", path, lies_on, None, "", f"{error.what}; {error.step}")
    try:
        vms = len(contents_of(config).vms)
    except CommandError as error:
        return Shown(
            "registry", path, lies_on, size, "", str(error).removeprefix(f"registry {path}: ")
        )
    return Shown(
        "registry", path, lies_on, size, f"registry of cluster {config.cluster.id}, VMs: {vms}"
    )


def lies_on_in_words(path: str) -> str:
    """What a path lies on: a device with its sectors, or a mount. Asks the kernel alone."""
    try:
        is_device = stat.S_ISBLK(Path(path).stat().st_mode)
    except OSError as error:
        return error.strerror or "cannot be seen"
    if is_device:
        name = held.logical_volume(path)
        what = f"logical volume {name}" if name else "block device"
        try:
            return f"{what}, sectors of {sector_of(path)}"
        except CommandError:
            return what
    mount = mount_of(str(Path(path).resolve()))
    return "a file" if mount is None else f"{mount.kind} from {mount.source} at {mount.place}"
