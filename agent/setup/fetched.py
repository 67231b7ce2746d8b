# SPDX-License-Identifier: LGPL-2.1-or-later
"""Gets the cluster's files for a newcomer, from a folder or with a token, and checks the numbers of
its users: shared storage knows a user by the number, so it must be the same as on the member.

A token can be used once. The files that were fetched with it are kept in a folder of root until
this host has joined, so that a failed join can be repeated without a second token.
"""

from __future__ import annotations

import argparse
import contextlib
import grp
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from agent.certificates.places import AUTHORITY_FILE
from agent.invite.fetch import fetched
from agent.invite.offer import Ids, Offer
from agent.setup.written import Files, place
from agent.terminal.errors import CommandError
from agent.terminal.steps import Done, Step
from broker.config.secrets import SERVICE_USER
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign_json import decoded

#: The folder beside the configuration, and the member's numbers in it.
FOLDER, IDS_FILE = "joining", "ids.json"


@dataclass(frozen=True, slots=True)
class Source:
    """`folder`: has the member's three files. `ids`: the numbers of its users by name; empty where
    they are not known."""

    folder: Path
    ids: Mapping[str, Ids] = field(default_factory=dict)


@contextlib.contextmanager
def source_of(arguments: argparse.Namespace, files: Files) -> Iterator[Source]:
    """The member's files; what a token fetched is removed once this host has joined."""
    token, given = arguments.token, arguments.source
    if bool(token) == bool(given):
        raise CommandError(
            ExitCode.USAGE,
            "one of the two is needed: TOKEN (ha-agent invite on a member prints it), or --from"
            " FOLDER",
        )
    if given:
        folder = Path(given).absolute()
        yield Source(folder, _ids_in(folder))
        return
    folder = files.config.with_name(FOLDER)
    again = f"what the token fetched is kept: ha-agent join --from {folder}"
    offer = fetched(token, arguments.name or socket.gethostname())
    lay(offer, folder)
    try:
        yield Source(folder, offer.ids)
    except CommandError as error:
        raise CommandError(error.code, f"{error}; {again}") from None
    if not arguments.dry_run:
        shutil.rmtree(folder, ignore_errors=True)


def lay(offer: Offer, folder: Path) -> None:
    """Write what a member hands out into a folder of root's; CommandError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise CommandError(ExitCode.FILE, f"{folder}: {error.strerror}; run as root") from None
    texts = {
        "ha-agent.toml": offer.config,
        "secrets.toml": offer.secrets,
        "engine.xml": offer.definition,
        IDS_FILE: msgspec.json.encode(offer.ids).decode(),
    }
    if offer.authority:
        texts[AUTHORITY_FILE] = offer.authority
    for name, text in texts.items():
        place(folder / name, text, 0o600)


def _ids_in(folder: Path) -> Mapping[str, Ids]:
    try:
        return decoded((folder / IDS_FILE).read_bytes(), dict[str, Ids])
    except (OSError, msgspec.MsgspecError):
        return {}


def ids_step(wanted: Mapping[str, Ids]) -> Step:
    """Give the daemons' user the member's numbers: NFS and files know a user by its number."""
    user = wanted.get(SERVICE_USER)

    def look() -> str | None:
        now = _here(SERVICE_USER)
        if user is None or now is None:
            return f"the user {SERVICE_USER} is not on both hosts"
        if now == user:
            return f"{SERVICE_USER} is {now.uid}:{now.gid}, as on the member"
        return None if not _hinders(user, now) else f"{SERVICE_USER} stays {now.uid}:{now.gid}"

    def act() -> str:
        assert user is not None
        now = _here(SERVICE_USER)
        assert now is not None
        if now.gid != user.gid:
            _do("groupmod", "--gid", str(user.gid), SERVICE_USER)
        _do("usermod", "--uid", str(user.uid), "--gid", str(user.gid), SERVICE_USER)
        for place_ in ("/var/lib/ha-agent", "/etc/ha-agent", "/run/ha-agent"):
            _own_anew(Path(place_), now, user)
        return f"{SERVICE_USER} was {now.uid}:{now.gid}, and is {user.uid}:{user.gid} now"

    plan = "" if user is None else f"giving {SERVICE_USER} the member's numbers"
    return Step("user-numbers", look, plan, act)


def ids_warnings(wanted: Mapping[str, Ids]) -> list[Done]:
    """What still differs from the member, and why it was not changed."""
    found = []
    for name, there in wanted.items():
        here = _here(name)
        if here is None or here == there:
            continue
        why = _hinders(there, here) if name == SERVICE_USER else "its own package made it"
        found.append(
            Done(
                "user-numbers",
                "warning",
                f"{name} is {here.uid}:{here.gid} here, and {there.uid}:{there.gid} on the member"
                f" ({why}): NFS knows a user by its number, so give it the same on all hosts",
            )
        )
    return found


def _here(name: str) -> Ids | None:
    try:
        return Ids(pwd.getpwnam(name).pw_uid, grp.getgrnam(name).gr_gid)
    except KeyError:
        return None


def _hinders(wanted: Ids, now: Ids) -> str:
    """Why the numbers cannot be given to the daemons' user; "": they can."""
    with contextlib.suppress(KeyError):
        if wanted.uid != now.uid:
            return f"{wanted.uid} is {pwd.getpwuid(wanted.uid).pw_name}'s here"
    with contextlib.suppress(KeyError):
        if wanted.gid != now.gid:
            return f"group {wanted.gid} is {grp.getgrgid(wanted.gid).gr_name} here"
    if not all(map(shutil.which, ("usermod", "groupmod"))):
        return "usermod is not here"
    for status in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if status.stat().st_uid == now.uid:
                return f"process {status.name} runs under it: systemctl stop ha-broker ha-agent"
    return ""


def _do(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise CommandError(ExitCode.FAILED, f"{words[0]}: {done.stderr.strip()}")


def _own_anew(place_: Path, old: Ids, new: Ids) -> None:
    """Give what belonged to the old numbers to the new ones; links are not followed."""
    for path in [place_, *place_.rglob("*")] if place_.is_dir() else []:
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            uid = new.uid if found.st_uid == old.uid else -1
            gid = new.gid if found.st_gid == old.gid else -1
            if uid != -1 or gid != -1:
                os.chown(path, uid, gid, follow_symlinks=False)
