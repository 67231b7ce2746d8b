# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent join TOKEN` or `--from FOLDER`: this host becomes a member of a cluster.

The token of `ha-agent invite` fetches what FOLDER holds otherwise: copies of a member's
ha-agent.toml, secrets.toml and engine.xml. The keys that differ
between hosts are made anew: host id, name, machine UUID, address. The host id is taken in sanlock's
lockspace before anything is written: of two hosts that want one id, one gets it.
"""

from __future__ import annotations

import argparse
import socket
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import libvirt
import msgspec

from agent.setup.answers import Answers, answers_of, listen_at, own_address
from agent.setup.beside import libvirt_guests_beside
from agent.setup.fetched import Source, ids_step, ids_warnings, source_of
from agent.setup.heartbeat_reach import ports_done
from agent.setup.membership import IdTaken, join_lockspace, leave_lockspace, own_id
from agent.setup.sanlock_name import names_here, no_twin, sanlock_name_step
from agent.setup.seen import judged, unknown, words
from agent.setup.tls import certificate_keys, steps_of_join
from agent.setup.toml_text import Value, with_keys
from agent.setup.written import Files, check_place, checked, key_step, place, read_text
from agent.storage.device_rule import devices_step
from agent.storage.identity import identity_step
from agent.storage.registry import check_registry
from agent.storage.speed import storage_speed
from agent.storage.watched import (
    SLOT_WATCH_S,
    read_leases,
    read_slots,
    watch,
)
from agent.terminal.errors import CommandError
from agent.terminal.progress import progress
from agent.terminal.steps import Done, Step, do_steps, print_json, print_line
from agent.vm.definition import definition_of, load_definition
from agent.vm.errors import DefinitionError
from agent.vm.one_host import found_in
from agent.vm.qemu_conf import lock_driver_step
from agent.vm.reach import command_there, reach, reached
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign_toml import tables
from broker.lockspace.delta_leases import FENCE_RESOURCE
from broker.wire.limits import HOST_ID_MAX

#: How many host ids are tried when other hosts take them first.
TRIES_MAX = 8


@dataclass(slots=True)
class Joining:
    """The state of a join. `host_id`: the id that this host holds, None: none yet.
    `not_seen`: why it is unknown whether the members see what this host writes."""

    files: Files
    source: Path
    given: Answers
    text: str
    config: Config
    host_id: int | None = None
    tried: set[int] = field(default_factory=set)
    not_seen: str = ""

    def values(self) -> dict[str, Value | None]:
        """The keys of this host."""
        values: dict[str, Value | None] = {
            "host.id": self.host_id or self.given.host_id or 1,
            "host.name": self.given.name,
            "host.system-uuid": None,
            "api.listen": _listen(self.config, self.given),
            "api.advertise": None,
            "api.heartbeat-listen": _heartbeat_listen(self.config),
            "api.heartbeat-advertise": None,
            **self.files.own_keys(),
            **certificate_keys(self.files, self.source),
        }
        old = self.files.host()
        if old.get("id") == self.config.host.id:
            old = {}  # the member's own file: no key in it is this host's
        for key in ("name", "system-uuid"):  # set for this host before it joined
            if values[f"host.{key}"] is None and key in old:
                values[f"host.{key}"] = old[key]
        return values


def run(arguments: argparse.Namespace, as_json: bool) -> int:
    """Join; OK, LOCKSPACE where the id that was asked for is another host's."""
    libvirt.registerErrorHandler(lambda context, error: None, None)
    files = Files(Path(arguments.config).absolute())
    with source_of(arguments, files) as source:
        return _joined(arguments, files, source, as_json)


def _joined(arguments: argparse.Namespace, files: Files, source: Source, as_json: bool) -> int:
    given = answers_of(arguments)
    text = read_text(source.folder / "ha-agent.toml")
    if not text:
        raise CommandError(
            ExitCode.FILE,
            f"{source.folder}/ha-agent.toml: is not there; make the folder on a member and"
            " copy it here: ha-agent invite --folder FOLDER; or use a token: ha-agent invite",
        )
    config = checked(text, source.folder / "ha-agent.toml")
    joining = Joining(files, source.folder, given, text, config)
    own = checked(with_keys(text, joining.values()), files.config)
    with_keys_there = _with_keys_of(source.folder, config)
    steps = [
        *([ids_step(source.ids)] if source.ids else []),
        *devices_step(config.storage),
        lock_driver_step(config, bool(arguments.set_libvirt)),
        sanlock_name_step(own),
        Step("storage", lambda: storage_speed(config)[0], "", lambda: ""),
        identity_step(config),
        Step("member", lambda: _look_member(config, bool(arguments.unproven)), "", lambda: ""),
        Step("leases", lambda: _look_leases(config), "", lambda: ""),
        Step("registry", lambda: check_registry(with_keys_there), "", lambda: ""),
        _twin_step(joining, own),
        _id_step(joining, own),
        _seen_step(joining, bool(arguments.unproven)),
        _definition_step(joining),
        _key_step(joining),
        _config_step(joining),
        *steps_of_join(own, joining.files, joining.source),
    ]
    try:
        done = do_steps(steps, arguments.dry_run, as_json)
    except BaseException:
        if joining.host_id is not None and joining.tried:
            leave_lockspace(config.storage, joining.host_id)
        raise
    # This host is a member from here on: no later finding gives the host id back.
    if joining.not_seen:
        done.append(Done("seen-by-members", "warning", joining.not_seen))
    done += ids_warnings(source.ids)
    done += libvirt_guests_beside()
    done += _ways_there(config, joining.host_id or 0)
    if not arguments.dry_run:
        config = checked(files.text(), files.config)
        done += _ways_here(config)
        done += ports_done(config)
        done += [Done("one-host", "warning", str(each)) for each in found_in(config)]
    if as_json:
        print_json(done)
    else:
        for way in done[len(steps) :]:
            print_line(way)
        if not arguments.dry_run:
            print("next: systemctl enable --now ha-broker ha-agent, then: ha-agent doctor")
    return ExitCode.OK


def _ways_there(config: Config, own: int) -> list[Done]:
    """Whether the other hosts' libvirt answers this one."""
    return [
        Done(f"libvirt of {name}", "warning" if problem else "ok", problem or "answers")
        for name, problem in reach(config, own)
    ]


def _ways_here(config: Config) -> list[Done]:
    """Whether the other hosts reach this host's libvirt, as they report it."""
    found = []
    for heard in reached(config, config.host.id):
        if heard.is_good:
            found.append(Done(heard.name, "ok", heard.what))
        else:
            text = f"{heard.what}; type there: {command_there(config)}"
            found.append(Done(heard.name, "warning", text))
    return found


def _look_member(config: Config, unproven: bool) -> str:
    """Check that a member writes to the whiteboard that this host sees. It may be a copy, to which
    no member writes."""
    path, member = config.storage.whiteboard, config.host.id
    if own_id(config.storage) is not None:
        return "this host is a member already"
    if not read_slots(path).reports:
        return f"{path}: no member has written to it yet"
    hosts = watch(path, None, SLOT_WATCH_S, progress).hosts
    if hosts:
        host, name = next(iter(sorted(hosts.items(), key=lambda each: each[0] != member)))
        return f"{path}: host {host} ({name}) writes its slot"
    text = f"{path}: nobody writes to it, host {member} neither, whose files these are"
    if unproven:
        return f"{text}; it may be a copy of the cluster's"
    raise CommandError(
        ExitCode.STORAGE,
        f"{text}: it may be a copy; look at what is mounted here (findmnt --target {path}), start"
        " ha-broker on a member, or where none can be: --unproven",
    )


def _look_leases(config: Config) -> str:
    given = config.storage
    head, _ = read_leases(given.leases)
    if head is None or head.lockspace != given.lockspace:
        what = "no lockspace" if head is None else f"lockspace {head.lockspace!r}"
        raise CommandError(
            ExitCode.LOCKSPACE, f"{given.leases}: holds {what}, not {given.lockspace!r}"
        )
    lacking = {given.resource, FENCE_RESOURCE} - set(head.resources.values())
    if lacking:
        raise CommandError(
            ExitCode.LOCKSPACE,
            f"{given.leases}: has no lease {', '.join(sorted(lacking))}; ha-agent"
            " reinitialize-lockspace makes them anew",
        )
    return f"{given.leases}: lockspace {given.lockspace}"


def _with_keys_of(source: Path, config: Config) -> Config:
    """With the secrets of the member: this host's own file may not have the cluster's key yet."""
    daemon = msgspec.structs.replace(config.daemon, secrets=str(source / "secrets.toml"))
    return msgspec.structs.replace(config, daemon=daemon)


def _definition_step(joining: Joining) -> Step:
    wanted = joining.source / "engine.xml"
    path = joining.files.definition
    text = read_text(wanted)

    def look() -> str | None:
        old = read_text(path)
        if not text and not old:
            raise CommandError(ExitCode.DEFINITION, f"{wanted}: is not there; copy it too")
        try:
            definition_of(text or old, joining.config)
        except DefinitionError as error:
            raise CommandError(
                ExitCode.DEFINITION, f"{error} (it comes from {wanted}); copy it anew"
            ) from None
        if old == text or not text:
            return f"{path} is the same"
        check_place(path)
        return None

    def act() -> str:
        place(path, text, 0o640, "ha-agent")
        return f"{path} is written"

    return Step("definition", look, f"writing {path}", act)


def _key_step(joining: Joining) -> Step:
    path = joining.source / "secrets.toml"
    try:
        found = tables(read_text(path))
    except tomllib.TOMLDecodeError:
        raise CommandError(ExitCode.CONFIG, f"{path}: is not TOML") from None
    if not found:
        raise CommandError(ExitCode.FILE, f"{path}: is not there or empty; copy it too")
    target = joining.files.secrets
    if read_text(target).strip():
        return key_step(joining.files, str(found.get("cluster-key", "")))

    def act() -> str:
        # The fence devices' passwords are copied too: every host fences.
        place(target, read_text(path), 0o640, "ha-agent")
        return f"{target} is written"

    return Step("cluster-key", lambda: check_place(target), f"writing {target}", act)


def _twin_step(joining: Joining, own: Config) -> Step:
    """Check for a twin before sanlock is asked for an id: it takes an id of its own name without
    waiting."""

    def look() -> str:
        ids = own_id(own.storage), joining.files.host_id(), joining.given.host_id
        return no_twin(own, ids)

    return Step("sanlock-twin", look, "", look)


def _id_step(joining: Joining, own: Config) -> Step:
    """`own`: this host's future configuration, but for its id."""
    storage = joining.config.storage

    def look() -> str | None:
        here, wanted = own_id(storage), joining.given.host_id
        if here is not None:
            if wanted not in (None, here):
                raise CommandError(
                    ExitCode.LOCKSPACE,
                    f"this host's sanlock is in lockspace {storage.lockspace} as host id {here},"
                    f" not {wanted}; ha-agent leave gives it back",
                )
            joining.host_id = here
            return f"{here} is this host's in lockspace {storage.lockspace}"
        if joining.given.host_id is not None:
            _refuse_live(joining, joining.given.host_id)
        return None

    def act() -> str:
        for host_id in _candidates(joining):
            joining.tried.add(host_id)
            try:
                join_lockspace(storage, host_id, names_here(own))
            except IdTaken as error:
                if joining.given.host_id is not None:
                    raise _taken(joining, host_id, str(error)) from None
                progress(f"host id {host_id} went to another host")
                continue
            joining.host_id = host_id
            return f"{host_id} is this host's in lockspace {storage.lockspace}"
        raise CommandError(
            ExitCode.LOCKSPACE,
            f"{storage.leases}: no host id was to be had; tried"
            f" {', '.join(map(str, sorted(joining.tried)))}: others were quicker; try again",
        )

    wait = 21 * storage.io_timeout // 10
    return Step("host-id", look, f"taking one in the lockspace, about {wait} s", act)


def _seen_step(joining: Joining, unproven: bool) -> Step:
    """Check that the members see what this host writes. This step comes after the host id, since
    the slot belongs to that id, and before anything is configured."""
    host = msgspec.structs.replace(
        joining.config.host, name=joining.given.name or socket.gethostname()
    )
    config = msgspec.structs.replace(_with_keys_of(joining.source, joining.config), host=host)

    def look() -> str | None:
        if joining.host_id is not None and joining.files.host_id() == joining.host_id:
            return "this host is a member already"
        return None

    def act() -> str:
        assert joining.host_id is not None
        said = words(config, joining.host_id)
        joining.not_seen = unknown(config, said)
        return judged(config, joining.host_id, said, unproven) or "not known: see below"

    plan = "writing this host's slot, asking the members whether they see it, emptying it"
    return Step("seen-by-members", look, plan, act)


def free_ids(config: Config) -> Iterator[int]:
    """Ids that no host has, ascending: empty on the whiteboard, and given back or never used in the
    lockspace. The id of the member whose files these are is left out: it may not run yet."""
    sweep = read_slots(config.storage.whiteboard)
    _, used = read_leases(config.storage.leases)
    for host_id in range(1, HOST_ID_MAX + 1):
        has_slot = host_id in sweep.reports or host_id in sweep.bad
        is_the_members = host_id == config.host.id
        if not has_slot and not is_the_members and used.get(host_id, (0, 0))[1] == 0:
            yield host_id


def _candidates(joining: Joining) -> Iterator[int]:
    if joining.given.host_id is not None:
        yield joining.given.host_id
        return
    said = joining.files.host_id()
    if said is not None and said != joining.config.host.id:  # the member's own file
        yield said
    for _ in range(TRIES_MAX):
        free = (i for i in free_ids(joining.config) if i not in joining.tried)
        found = next(free, None)
        if found is None:
            return
        yield found


def _refuse_live(joining: Joining, host_id: int) -> None:
    if host_id == joining.config.host.id:
        raise _taken(joining, host_id, f"the files in {joining.source} are that host's")
    users = watch(joining.config.storage.whiteboard, None, SLOT_WATCH_S, progress)
    if host_id in users.hosts:
        raise _taken(joining, host_id, f"{users.hosts[host_id]} writes its slot")


def _taken(joining: Joining, host_id: int, why: str) -> CommandError:
    free = [i for i, _ in zip(free_ids(joining.config), range(3), strict=False)]
    return CommandError(
        ExitCode.LOCKSPACE,
        f"host id {host_id} is another host's: {why}; free are {', '.join(map(str, free))}, or"
        " leave --host-id out",
    )


def _config_step(joining: Joining) -> Step:
    path = joining.files.config

    def look() -> str | None:
        if joining.host_id is None or joining.files.host_id() != joining.host_id:
            checked(with_keys(joining.text, joining.values()), path)
            check_place(path)
            return None
        config = checked(joining.files.text(), path)
        if config.storage != joining.config.storage:
            raise CommandError(
                ExitCode.REFUSED,
                f"{path}: this host is configured already, for other volumes; remove the file",
            )
        return f"{path} is there: host {config.host.id}"

    def act() -> str:
        text = with_keys(joining.text, joining.values())
        config = checked(text, path)
        place(path, text, 0o644)
        try:
            load_definition(config)
        except DefinitionError as error:
            raise CommandError(ExitCode.DEFINITION, str(error)) from None
        return f"{path} is written: host {config.host.id}"

    return Step("config", look, f"writing {path}", act)


def _listen(config: Config, given: Answers) -> tuple[str, ...]:
    """The addresses to listen on: as given, else the member's ports at this host's addresses."""
    if given.listen is not None:
        return (given.listen,) if given.listen != "-" else ()
    return _here(config.api.listen)


def _heartbeat_listen(config: Config) -> tuple[str, ...] | None:
    """The addresses to answer heartbeats on, where the member's file sets them."""
    given = config.api.heartbeat_listen
    return None if given is None else _here(given)


def _here(places: tuple[str, ...]) -> tuple[str, ...]:
    """The ports of these places, at this host's own addresses."""
    found = []
    for place_ in places:
        address, _, port = place_.rpartition(":")
        address = address.strip("[]")
        everywhere = address in ("0.0.0.0", "::", "127.0.0.1", "::1", "localhost")  # noqa: S104
        own = "" if everywhere else own_address(address)
        if not everywhere and not own:
            raise CommandError(
                ExitCode.USAGE,
                f"--listen is missing: the member listens at {place_}, and this host has no way"
                " there that would show its own address; name it: --listen ADDRESS:PORT, or - for"
                " none",
            )
        found.append(listen_at(own, int(port)) if own else place_)
    return tuple(found)
