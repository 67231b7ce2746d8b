# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent config set|get|edit|history|rollback`: what all hosts have alike, changed once.

The text is checked with this host's file by what `config check` checks, before it is written. The
daemons of every host take it over within some 15 s, without a restart.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from agent.commands.config_check import checks
from agent.commands.config_show import origins_of
from agent.registry.change import wake_broker
from agent.registry.lease import held
from agent.setup.toml_text import Value, with_keys
from agent.setup.written import Files, checked, place, read_text
from agent.storage.registry import shared_opened
from agent.terminal import in_json
from agent.terminal.errors import CommandError
from agent.terminal.secret import asked
from agent.terminal.times import shown
from broker.config.cluster_key import ClusterKey
from broker.config.errors import ConfigError
from broker.config.load import load, load_shared, read_file, shared_for
from broker.config.reload import in_force_by, needs_restart, refusal
from broker.config.sealed import SECRET_CHARS_MAX, opened, seal
from broker.config.secrets import load_cluster_key
from broker.config.shared import SharedCopy, parsed
from broker.daemon.errors import HaError
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign_toml import tables
from broker.registry.shared import SharedConfig, SharedHead
from broker.registry.shared_copy import keep
from broker.registry.volume import BadRegistry

#: A secret that can be shared.
SECRET_NAMES = re.compile(
    r"fence-passwords\.[0-9]{1,4}(/[A-Za-z0-9_-]{1,32})?|smtp-password|webhook-key"
)
#: Makes the new text of the present one.
Change = Callable[[str], str]


def run(arguments: Namespace, as_json: bool) -> int:
    """Carry out one of the words; OK, or CommandError."""
    path = arguments.config
    match arguments.what:
        case "get":
            return get(path, arguments.key, as_json)
        case "history":
            return history(path, as_json)
        case "rollback":
            return rollback(path, arguments.generation, as_json)
        case "edit":
            return edit(path, as_json)
        case "secret":
            return set_secret(path, arguments.name, as_json)
        case "reseal":
            return reseal(path, as_json)
        case _:
            return set_key(path, arguments.key, arguments.value, arguments.host_only, as_json)


def set_key(path: str, key: str, said: str, host_only: bool, as_json: bool) -> int:
    """Set one key, for all hosts or in this host's file."""
    value = value_of(said)
    if host_only:
        files = Files(Path(path).absolute())
        text = with_keys(read_text(files.config), {key: value})
        after = checked(text, files.config)
        keys: list[str] = []
        with contextlib.suppress(ConfigError):  # what is there now may be what is mended here
            keys = needs_restart(load(path), after)
        place(files.config, text, 0o644)
        return _done(f"{key} is set in {path}: {in_force_by(keys)}", 0, as_json)
    change: Change = lambda text: with_keys(text, {key: value})  # noqa: E731
    return _changed(path, change, f"{key} = {said}", as_json, key=key)


def set_secret(path: str, name: str, as_json: bool) -> int:
    """Seal a secret that is asked for, or read from standard input, and share it."""
    if not SECRET_NAMES.fullmatch(name):
        raise CommandError(
            ExitCode.USAGE,
            f"{name}: is no secret that can be shared; use: fence-passwords.HOST,"
            " fence-passwords.HOST/NAME, smtp-password or webhook-key",
        )
    key = _key_of(path)
    sealed = seal(key, name, asked(name, SECRET_CHARS_MAX))
    return _changed(
        path, lambda text: with_keys(text, {f"sealed.{name}": sealed}), f"{name}, sealed", as_json
    )


def reseal(path: str, as_json: bool) -> int:
    """Seal each shared secret anew, with the cluster key that signs now."""
    key = _key_of(path)

    def change(text: str) -> str:
        table = parsed(text).get("sealed", {})
        passwords = table.get("fence-passwords", {})
        found = {name: value for name, value in table.items() if name != "fence-passwords"}
        found |= {f"fence-passwords.{name}": value for name, value in passwords.items()}
        if not found:
            raise CommandError(ExitCode.REFUSED, "nothing is sealed yet: ha-agent config secret")
        made = {
            f"sealed.{name}": seal(key, name, opened(key, name, str(value)))
            for name, value in found.items()
        }
        return with_keys(text, dict(made))

    return _changed(path, change, "all secrets sealed anew", as_json)


def _key_of(path: str) -> ClusterKey:
    key = load_cluster_key(load(path))
    if key is None:
        raise CommandError(
            ExitCode.CONFIG, "this host has no cluster-key to seal with (secrets.toml)"
        )
    return key


def value_of(said: str) -> Value:
    """A value as it is typed: TOML, or else a text."""
    try:
        found = tables(f"x = {said}")["x"]
    except tomllib.TOMLDecodeError:
        return said
    if isinstance(found, list) and all(isinstance(one, str) for one in found):
        return tuple(found)
    if isinstance(found, bool | int | float | str):
        return found
    raise CommandError(
        ExitCode.USAGE, f"{said}: is no value of one key; for tables: ha-agent config edit"
    )


def get(path: str, key: str, as_json: bool) -> int:
    """Print one value, and where it is from."""
    config = load(path)
    found: Any = msgspec.to_builtins(config)
    found["timing"] = msgspec.to_builtins(config.timing_rules())
    for part in key.split("."):
        if not isinstance(found, dict) or part not in _dashed(found):
            raise CommandError(ExitCode.USAGE, f"{key}: is no key; see: ha-agent config show")
        found = _dashed(found)[part]
    origin = origins_of(path).get(key, "default")
    if as_json:
        in_json.show({"key": key, "value": found, "from": origin})
    else:
        print(f"{json.dumps(found, ensure_ascii=False)}  # {origin}")
    return ExitCode.OK


def _dashed(table: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in table.items()}


def history(path: str, as_json: bool) -> int:
    """Print who changed the shared configuration, and when."""
    config = load(path)
    with shared_opened(config, read_only=True) as shared:
        head = shared.head()
    if as_json:
        changes = [
            {"generation": t.generation, "wall_s": t.wall_s, "by": t.by, "change": t.change}
            for t in head.texts
        ]
        in_json.show({"changes": changes})
    elif not head.texts:
        print("nothing is shared yet: each host's file says everything")
    else:
        for each in head.texts:
            at = shown(datetime.datetime.fromtimestamp(each.wall_s, datetime.UTC))
            print(f"{each.generation:>5}  {at}  {each.by}  {each.change}")
    return ExitCode.OK


def rollback(path: str, generation: int | None, as_json: bool) -> int:
    """Write an older text again, as a new generation; None: the one before."""
    with shared_opened(load(path), read_only=True) as shared:
        texts = shared.head().texts
        if generation is None and len(texts) == 1:
            raise CommandError(
                ExitCode.USAGE,
                f"generation {texts[0].generation} is the first: there is none before it; to take a"
                " key out again: ha-agent config edit",
            )
        if generation is None and len(texts) > 1:
            generation = texts[1].generation
        kept = next((one for one in texts if one.generation == generation), None)
        if kept is None:
            known = ", ".join(str(one.generation) for one in texts) or "none"
            raise CommandError(ExitCode.USAGE, f"there is no such generation; kept are {known}")
        text = shared.text(kept)
    return _changed(path, lambda now: text, f"as generation {kept.generation}", as_json)


def edit(path: str, as_json: bool) -> int:
    """Open the text in $EDITOR; a change by another command meanwhile is not written over."""
    config = load(path)
    program = os.environ.get("EDITOR") or os.environ.get("VISUAL") or ""
    if not program and not sys.stdin.isatty():
        raise CommandError(
            ExitCode.USAGE,
            "there is no terminal to edit on, and no $EDITOR; for one key: ha-agent config set"
            " KEY VALUE",
        )
    with shared_opened(config, read_only=True) as shared:
        head = shared.head()
        before = shared.text(head.texts[0]) if head.texts else ""
    with tempfile.NamedTemporaryFile("w+", suffix=".toml", delete=False) as file:
        file.write(before)
    words = [*shlex.split(program or "vi"), file.name]
    try:
        code = subprocess.run(words, check=False).returncode  # noqa: S603
        after = Path(file.name).read_text()
    except OSError as error:
        raise CommandError(ExitCode.FAILED, f"$EDITOR: {words[0]}: {error.strerror}") from None
    except UnicodeDecodeError:
        text = f"{file.name} is not UTF-8; nothing was changed, your text is there"
        raise CommandError(ExitCode.FILE, text) from None
    if code or after == before:
        Path(file.name).unlink()
        raise CommandError(ExitCode.REFUSED, "nothing was changed")
    try:
        done = _changed(path, lambda now: after, "edited", as_json, head.generation)
    except HaError as error:
        raise CommandError(error.code, f"{error}; your text is in {file.name}") from None
    Path(file.name).unlink()
    return done


def check(path: str, text: str) -> None:
    """CommandError where this text must not be shared: where `config check` would find more wrong
    than now, or the daemons could not take it over while they run."""
    parsed(text)
    before = {each.text for each in checks(path)}
    made = [each for each in checks(path, text) if each.verdict == "fail"]
    found = [each for each in made if each.text not in before]
    if found:
        raise CommandError(ExitCode.CONFIG, "; ".join(each.text for each in found))
    bare = load_shared(path, text)
    keys = needs_restart(load(path), load(path, shared=text))
    with contextlib.suppress(ConfigError):  # what is there now may be what is mended here
        copy = shared_for(path, read_file(path))
        now = load_shared(path, copy.text if copy is not None else "")
        keys = [*dict.fromkeys((*keys, *needs_restart(now, bare)))]
    if keys:
        raise CommandError(
            ExitCode.REFUSED, f"{refusal('shared', keys)}; set them in each host's own file"
        )


def _changed(
    path: str, change: Change, words: str, as_json: bool, seen: int | None = None, key: str = ""
) -> int:
    """Write the changed text under the lease. `seen`: the generation that it is made from; None:
    the present one. `key`: the one that is set."""
    config = load(path)
    with shared_opened(config, read_only=False) as shared, held(config):
        head, now = present(path, shared)
        if seen not in (None, head.generation):
            raise CommandError(
                ExitCode.REFUSED,
                f"another command was faster: generation {head.generation} is there, and {seen} was"
                " changed here; see: ha-agent config history",
            )
        text = change(now)
        check(path, text)
        head = shared.write(head, text, time.time(), config.host_name, words)
    keep(config.daemon.state_dir, SharedCopy(config.cluster.id, head.generation, text))
    wake_broker(config)
    text = f"generation {head.generation}: {words}"
    if origins_of(path).get(key, "").startswith("host, not"):
        text += f"; this host's own file sets it too, and counts here: take {key} out of {path}"
    return _done(text, head.generation, as_json)


def present(path: str, shared: SharedConfig) -> tuple[SharedHead, str]:
    """The head and the text that count; this host's copy where they are damaged or older."""
    copy = shared_for(path, read_file(path))
    try:
        head = shared.head()
        if copy is None or head.generation >= copy.generation:
            return head, shared.text(head.texts[0]) if head.texts else ""
    except BadRegistry:
        if copy is None:
            raise
        head = SharedHead(cluster=copy.cluster)
    head = SharedHead(cluster=copy.cluster, generation=copy.generation, texts=head.texts)
    return head, copy.text


def _done(text: str, generation: int, as_json: bool) -> int:
    if as_json:
        in_json.show({"generation": generation, "done": text}, indent=None)
    else:
        print(text)
    return ExitCode.OK
