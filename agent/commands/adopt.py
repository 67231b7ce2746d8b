# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent vm adopt` and `ha-agent vm keep`: decide which of two versions is right, when the VM or
libvirt's own definition of it differs from the cluster's definition.

adopt: the VM as it runs here, or as it ran last, is right. Its disks are recorded on the shared
storage, everything else in the definition file of this host. keep: the cluster's definition is
right, and libvirt's own definition is reset to it. If the VM runs on another host, the command
decides only about libvirt's definition on this host.
"""

from __future__ import annotations

import os
from pathlib import Path

import libvirt
import msgspec

from agent.terminal import in_json
from agent.terminal.columns import say
from agent.terminal.errors import CommandError
from agent.vm.defined import Defined
from broker.client.ask import ask
from broker.config.engine_file import copy_of_engine
from broker.config.sections import Config
from broker.daemon.atomic_file import write_atomically
from broker.daemon.exit_codes import ExitCode
from broker.vm import domain_text
from broker.vm.domain_facts import Differs
from broker.vm.errors import BadDomain
from broker.wire.status import Decision, DifferenceStatus, Status, WhatRanStatus


def run(config: Config, adopt: bool, as_json: bool) -> int:
    """Decide; OK. Raises as `ask` does; CommandError where libvirt or the file cannot be used."""
    libvirt.registerErrorHandler(lambda context, error: None, None)
    status = ask(config.daemon.socket, "GET", "/v1/status", Status)
    if status.what_ran is None and not status.differences and not status.what_ran_problem:
        raise CommandError(
            ExitCode.REFUSED, "nothing differs here from the definition: there is nothing to decide"
        )
    record, lines = None, []
    is_libvirt_s = any(each.where == "libvirt" for each in status.differences)
    if status.engine.host in (None, status.host_id) or not is_libvirt_s:
        # The record is written first: if the broker refuses it, the files stay as they are.
        decision = Decision("adopt" if adopt else "keep")
        path = config.daemon.socket
        record = ask(path, "POST", "/v1/what-ran", WhatRanStatus, decision)
        lines.append(_disks(record, adopt))
    lines += _adopted(config, status) if adopt else _kept(config, status)
    if as_json:
        shown = None if record is None else msgspec.to_builtins(record)
        in_json.show({"what_ran": shown, "done": lines}, indent=None)
    else:
        for line in lines:
            say(line, 2)
    return ExitCode.OK


def _disks(record: WhatRanStatus, adopt: bool) -> str:
    if not adopt:
        return "disks: every host starts those of its definition"
    if not record.disks:
        return "disks: what ran last are those of the definition"
    return "disks: every host starts " + ", ".join(
        f"{target} from {place}" for target, place in sorted(record.disks.items())
    )


def _adopted(config: Config, status: Status) -> list[str]:
    """Write the differences into the definition file, disks apart; returns what was done."""
    done = []
    for where in ("libvirt", "running"):
        codes = {
            Differs(each.code)
            for each in status.differences
            if each.where == where and not (where == "running" and _is_recorded(each))
        }
        if codes - {Differs.BLOCK_JOB}:
            done += _written(config, where, codes)
    return done


def _is_recorded(each: DifferenceStatus) -> bool:
    """Whether it is a running disk: those are in the record, which the other hosts read."""
    return each.code == Differs.BLOCK_JOB or (each.code == Differs.DISKS and bool(each.found))


def _written(config: Config, where: str, codes: set[Differs]) -> list[str]:
    path = Path(config.vm.definition)
    if path == copy_of_engine(config.daemon.state_dir):
        raise CommandError(
            ExitCode.REFUSED,
            "the engine's definition is in the registry: ha-agent vm define engine --from-running",
        )
    flags = libvirt.VIR_DOMAIN_XML_SECURE
    if where == "libvirt":
        flags |= libvirt.VIR_DOMAIN_XML_INACTIVE
    try:
        old = path.read_text()
        connection = libvirt.open(config.libvirt.uri)
        try:
            found = connection.lookupByName(config.vm.name).XMLDesc(flags)
        finally:
            connection.close()
        new = domain_text.with_facts_of(old, found, codes)
        is_owned = path.stat()
        write_atomically(path.with_name(f"{path.name}.old"), old.encode())
        write_atomically(path, new.encode())
        for place in (path, path.with_name(f"{path.name}.old")):
            place.chmod(is_owned.st_mode & 0o777)
            os.chown(place, is_owned.st_uid, is_owned.st_gid)
    except (OSError, UnicodeDecodeError, BadDomain) as error:
        raise CommandError(ExitCode.FILE, f"vm.definition: {path}: {error}") from None
    except libvirt.libvirtError as error:
        raise CommandError(ExitCode.FAILED, f"libvirt ({config.libvirt.uri}): {error}") from None
    names = ", ".join(sorted(code.value for code in codes))
    return [
        f"{path}: takes over {names} ({path.name}.old is as it was); copy it to the other hosts"
        + (f" and to {config.vm.shared_definition}" if config.vm.shared_definition else "")
    ]


def _kept(config: Config, status: Status) -> list[str]:
    """Reset libvirt's own definition to the cluster's; returns what was done."""
    done = []
    if any(each.where == "libvirt" for each in status.differences):
        path = Path(config.vm.definition)
        try:
            connection = libvirt.open(config.libvirt.uri)
            try:
                Defined(config.vm.name, Path(config.daemon.state_dir)).define(
                    connection, path.read_text()
                )
            finally:
                connection.close()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(ExitCode.FILE, f"vm.definition: {path}: {error}") from None
        except libvirt.libvirtError as error:
            raise CommandError(ExitCode.FAILED, f"{path}: libvirt rejects it: {error}") from None
        done.append(f"libvirt's own definition is that of {path} again")
    if any(each.where == "running" for each in status.differences):
        done.append("the VM runs on as it is; its next start takes the definition")
    return done
