# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent init`: the first host of a new cluster."""

from __future__ import annotations

import argparse
from pathlib import Path

import libvirt

from agent.setup.answers import (
    FAR_AWAY,
    Answers,
    Asker,
    answers_of,
    gateway,
    listen_at,
    none_or,
    own_address,
)
from agent.setup.beside import libvirt_guests_beside
from agent.setup.give_identity import LOCKSPACE_PREFIX, give, new_ids
from agent.setup.grow import check_vms, registry_beside
from agent.setup.heartbeat_reach import ports_done
from agent.setup.sanlock_name import sanlock_name_step
from agent.setup.shared_state import state_folder, with_shared_state
from agent.setup.tls import SSH_URI, TLS_URI, keys_of_init, steps_of_init
from agent.setup.toml_text import Value, with_keys
from agent.setup.written import Files, check_place, checked, config_step, key_step, place
from agent.storage.device_rule import devices_step
from agent.storage.made import Volumes, lease_offset
from agent.storage.registry import registry_step
from agent.terminal.errors import CommandError
from agent.terminal.steps import Done, Step, do_steps, print_json, print_line
from agent.vm import imported as domains
from agent.vm.definition import definition_of, load_definition
from agent.vm.errors import DefinitionError
from agent.vm.one_host import found_in
from agent.vm.qemu_conf import lock_driver_step
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign_toml import tables

LIBVIRT_URI = "qemu:///system"


def run(arguments: argparse.Namespace, as_json: bool) -> int:
    """Make the cluster; OK, or CommandError with nothing overwritten."""
    if arguments.identity:
        return give(arguments, as_json)
    libvirt.registerErrorHandler(lambda context, error: None, None)
    files = Files(Path(arguments.config).absolute())
    asker = Asker(arguments.yes, as_json)
    given = answers_of(arguments)
    if files.host_id() is not None:
        values, domain = _as_configured(files, given), None
    else:
        values, domain = _asked(files, given, asker)
    config = checked(with_keys(files.text(), values), files.config)
    vms = given.vms or 1
    ours, is_local_fine = files.host_id() is not None, bool(given.local)
    volumes = Volumes(config, ours, arguments.overwrite, is_local_fine, vms)
    steps = [
        lock_driver_step(config, bool(arguments.set_libvirt)),
        sanlock_name_step(config),
        *devices_step(config.storage),
        *volumes.steps(),
        _definition_step(config, domain, arguments.share_state),
        key_step(files),
        *(
            [registry_step(config, is_local_fine, arguments.overwrite, ours)]
            if config.storage.registry
            else []
        ),
        config_step(files, values),
        *steps_of_init(config, files, given),
    ]
    if not arguments.dry_run:
        asker.confirm(f"Make the cluster {config.cluster.name} with this host as {config.host.id}?")
    done = do_steps(steps, arguments.dry_run, as_json)
    if not arguments.dry_run:
        done += [Done("one-host", "warning", str(each)) for each in found_in(config)]
        done += libvirt_guests_beside()
        done += ports_done(config) + _untested(config, given)
    if as_json:
        print_json(done)
    elif not arguments.dry_run:
        for each in done[len(steps) :]:
            print_line(each)
        print("next: ha-agent doctor, then: systemctl enable --now ha-broker ha-agent")
    return ExitCode.OK


def _untested(config: Config, given: Answers) -> list[Done]:
    """A warning where nothing was said of the network, and there is no gateway to ping."""
    if config.network.test != "none" or given.network_targets is not None:
        return []
    text = (
        "this host has no default gateway that could be pinged, so its network is not tested and"
        " costs it no points; name addresses that every host reaches: network.targets"
    )
    return [Done("network-targets", "warning", text)]


def _as_configured(files: Files, given: Answers) -> dict[str, Value | None]:
    """The keys of a configured host: they stay as they are; a different answer is refused."""
    config = checked(files.text(), files.config)
    if given.vms not in (None, 1) and not config.storage.registry:
        raise CommandError(
            ExitCode.REFUSED,
            f"{files.config}: this host is configured for one VM: ha-agent storage grow --vms"
            f" {given.vms}",
        )
    for name, now in (
        ("whiteboard", config.storage.whiteboard),
        ("leases", config.storage.leases),
        ("registry", config.storage.registry),
        ("host_id", config.host.id),
        ("cluster", config.cluster.name),
    ):
        wanted = getattr(given, name)
        if wanted is None and given.storage is not None and name in ("whiteboard", "leases"):
            wanted = str(Path(given.storage) / name)
        if wanted not in (None, now):
            raise CommandError(
                ExitCode.REFUSED,
                f"{files.config}: this host is configured already, with {now!r} for"
                f" {name.replace('_', '-')}, not {wanted!r}; edit the file, or remove it",
            )
    return {}


def _asked(
    files: Files, given: Answers, asker: Asker
) -> tuple[dict[str, Value | None], domains.Imported]:
    """The keys to set, and the VM."""
    if given.whiteboard is None or given.leases is None:
        given.storage = given.storage or asker.ask(
            "storage", "Folder on the shared storage (mounted on every host)", None
        )
        given.whiteboard = given.whiteboard or str(Path(given.storage) / "whiteboard")
        given.leases = given.leases or str(Path(given.storage) / "leases")
    for name, typed in (
        ("storage", given.storage),
        ("whiteboard", given.whiteboard),
        ("leases", given.leases),
        ("registry", given.registry),
    ):
        if typed is not None and not typed.startswith("/"):
            raise CommandError(
                ExitCode.USAGE, f"--{name}: {typed!r} is no absolute path; it must begin with /"
            )
    values: dict[str, Value | None] = {
        "host.id": given.host_id or 1,
        "storage.whiteboard": given.whiteboard,
        "storage.leases": given.leases,
        **files.own_keys(),
    }
    if given.vms not in (None, 1):
        check_vms(given.vms)
        values["storage.registry"] = given.registry or registry_beside(given.whiteboard)
    if given.io_timeout is not None:
        values["storage.io-timeout"] = given.io_timeout
    if given.name is not None:
        values["host.name"] = given.name
    storage = checked(with_keys(files.text(), values), files.config).storage
    values |= new_ids(storage)
    if "lockspace" not in tables(files.text()).get("storage", {}):
        values["storage.lockspace"] = f"{LOCKSPACE_PREFIX}{values['cluster.id']}"
    storage = checked(with_keys(files.text(), values), files.config).storage
    source = given.domain
    if source is None:
        known = domains.known_domains(LIBVIRT_URI)
        only = known[0] if len(known) == 1 else None
        hint = f" ({', '.join(known)})" if known else ""
        source = asker.ask("domain", f"The VM: a domain XML file, or a libvirt domain{hint}", only)
    xml = domains.read_domain(source, LIBVIRT_URI)
    domain = domains.imported(xml, source, storage, lease_offset(storage.leases))
    values["vm.name"] = domain.name
    values["cluster.name"] = given.cluster or asker.ask("cluster", "Name of the cluster", "ha")
    _network(files, values, given, asker, domain)
    return values, domain


def _network(
    files: Files,
    values: dict[str, Value | None],
    given: Answers,
    asker: Asker,
    domain: domains.Imported,
) -> None:
    bridge = given.bridge
    if bridge is None:
        bridge = asker.ask("bridge", "Management bridge, - for none", domain.bridge or "-")
    values["network.bridge"] = none_or(bridge)
    targets = given.network_targets
    if targets is None:
        said = asker.ask("network-targets", "Addresses to ping, - for none", gateway() or "-")
        targets = tuple(part.strip() for part in none_or(said).split(",") if part.strip())
    values["network.test"] = "ping" if targets else "none"
    values["network.targets"] = targets
    listen = given.listen
    if listen is None:
        own = next(filter(None, map(own_address, (*targets[:1], *FAR_AWAY))), "")
        # Without an address nothing is taken silently: a host that nobody can ask is worth less.
        default = listen_at(own) if own else None
        listen = asker.ask("listen", "Address for the other hosts, - for none", default)
    values["api.listen"] = (listen,) if none_or(listen) else ()
    page = given.health_url
    if page is None:
        page = asker.ask("health-url", "Page that says whether the VM is well, - for none", "-")
    if none_or(page):
        values["health.url"] = page
        if given.health_expect is not None:
            values["health.expect"] = given.health_expect
    uri = given.migration_uri
    if uri is None:
        question = "libvirt of the other hosts for live migration, - for none"
        uri = asker.ask("migration-uri", question, SSH_URI if given.tls == "ssh" else TLS_URI)
    values["libvirt.migration-uri"] = none_or(uri)
    values |= keys_of_init(uri, files, given)
    if given.migration_data_uri is not None:
        values["libvirt.migration-data-uri"] = given.migration_data_uri


def _definition_step(config: Config, domain: domains.Imported | None, share_state: bool) -> Step:
    path = Path(config.vm.definition)

    def look() -> str | None:
        if not path.exists() and domain is not None:
            if share_state:
                check_place(state_folder(config.storage, domain.name) / "x")
                _refuse_running(domain)
            try:
                definition_of(domain.xml, config)
            except DefinitionError as error:
                raise CommandError(
                    ExitCode.DEFINITION, f"{error}; mend what --domain names"
                ) from None
            check_place(path)
            return None
        try:
            found = load_definition(config)
        except DefinitionError as error:
            raise CommandError(ExitCode.DEFINITION, f"{error}; or remove the file") from None
        return f"{path} is there: {found.name}"

    def act() -> str:
        assert domain is not None
        made = domain
        if share_state:
            folder = state_folder(config.storage, domain.name)
            made = with_shared_state(domain, folder, _libvirt_version())
        # The file may hold the password of a console or of VNC.
        place(path, made.xml, 0o640, "ha-agent")
        load_definition(config)
        return "; ".join((f"{path} is written: {domain.name}", *made.notes, *_autostart(domain)))

    return Step("definition", look, f"writing {path}", act)


def _refuse_running(domain: domains.Imported) -> None:
    """Refuse a running VM: a copy of files that it writes to would be torn."""
    try:
        connection = libvirt.open(LIBVIRT_URI)
        try:
            is_active = bool(connection.lookupByName(domain.name).isActive())
        finally:
            connection.close()
    except libvirt.libvirtError:
        return  # libvirt does not know the VM, or does not answer: it does not run
    if is_active:
        raise CommandError(
            ExitCode.REFUSED,
            f"--share-state: {domain.name} runs, and writes its nvram; shut it down first",
        )


def _libvirt_version() -> int:
    """libvirt's version, as virConnectGetLibVersion counts; 0 where it does not answer."""
    try:
        connection = libvirt.open(LIBVIRT_URI)
        try:
            return int(connection.getLibVersion())
        finally:
            connection.close()
    except libvirt.libvirtError:
        return 0


def _autostart(domain: domains.Imported) -> list[str]:
    """Turn libvirt's autostart of the VM off, for the agent starts it; returns notes of it."""
    notes = []
    try:
        connection = libvirt.open(LIBVIRT_URI)
        try:
            found = connection.lookupByName(domain.name)
            if found.autostart():
                found.setAutostart(0)
                notes.append("libvirt does not start it at boot any more")
            if found.hasManagedSaveImage():
                notes.append("a memory image of it lies here: the first start discards it")
            if found.isActive():
                notes.append(
                    "it RUNS NOW WITHOUT ITS LEASE: shut it down, the agent starts it under it"
                )
        finally:
            connection.close()
    except libvirt.libvirtError:
        pass  # libvirt does not know the VM, or does not answer: nothing runs
    return notes
