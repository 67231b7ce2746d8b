# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent config check [FILE]`: checks everything in the configuration that needs no daemon,
and whether the volumes at its paths are this cluster's."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.fence.devices import fence_device
from agent.fence.ipmi import password_problem
from agent.fence.program import find_agent
from agent.storage import bounded
from agent.storage.bounded import HANGS_S, CheckHangs
from agent.storage.identity import IDENTITY_COMMAND, KINDS, path_of
from agent.storage.silent import left_alone
from agent.storage.watched import storage_error
from agent.terminal import in_json
from agent.terminal.columns import say
from agent.vm.definition import load_definition
from agent.vm.errors import DefinitionError
from agent.vm.one_host import found_in
from broker.config.certificate import tls_context
from broker.config.errors import ConfigError
from broker.config.load import load
from broker.config.machine import system_uuid
from broker.config.secrets import (
    FenceSecret,
    load_api_token,
    load_cluster_key,
    load_fence_secrets,
    unused_fence_secrets,
)
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.whiteboard.identity import check_at, expected
from broker.whiteboard.volume import VolumeError, VolumeFault

#: What keeps a volume from being read now, whatever the configuration says: not mounted yet, say.
_NOT_NOW = (VolumeFault.MISSING, VolumeFault.PERMISSION, VolumeFault.IO)


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check. `verdict`: ok, warning or fail."""

    name: str
    verdict: str
    text: str


def run(path: str, as_json: bool) -> int:
    """Check and print; OK, or CONFIG where a check failed. A warning is no failure."""
    not_now = silence(path)
    try:
        of_volumes = list(volumes(path, not_now))
    except CheckHangs as error:
        # Nothing else is to touch it then: this process would hang as well.
        not_now = str(error)
        of_volumes = [Check("volumes", "fail", not_now)]
    made = [*checks(path, not_now=not_now), *of_volumes]
    if as_json:
        found = [dataclasses.asdict(check) for check in made]
        in_json.show({"file": path, "checks": found})
    else:
        for check in made:
            say(f"{check.verdict:<8} {check.name:<10} {check.text}", 20)
    failed = any(check.verdict == "fail" for check in made)
    return ExitCode.CONFIG if failed else ExitCode.OK


def silence(path: str) -> str:
    """Why nothing on the storage is to be looked at now; "": it may be."""
    try:
        return left_alone(load(path)).why
    except ConfigError:
        return ""


def volumes(path: str, not_now: str) -> Iterator[Check]:
    """Whether whiteboard and lease volume are those that the configuration names: a path that
    leads to another cluster's is a fault of the configuration, or of what is mounted. CheckHangs.
    `doctor` has a check of its own."""
    try:
        config = load(path)
    except ConfigError:
        return
    if not_now:
        yield Check("volumes", "warning", f"not looked at: {not_now}")
        return
    if not config.cluster.id:
        yield Check(
            "volumes",
            "warning",
            "another volume at the same path would be taken: no ids are named here"
            f" ({IDENTITY_COMMAND})",
        )
        return
    yield from bounded.Check("the storage", lambda: _volumes(config)).found(
        time.monotonic() + HANGS_S
    )


def _volumes(config: Config) -> Iterator[Check]:
    """What lies at the two paths. May block."""
    for kind in KINDS:
        at = path_of(config.storage, kind)
        try:
            check_at(at, expected(config, kind))
        except VolumeError as error:
            verdict = "warning" if error.fault in _NOT_NOW else "fail"
            yield Check("volumes", verdict, str(storage_error(error)))
        else:
            yield Check("volumes", "ok", f"{at}: the {kind} of cluster {config.cluster.id}")


def checks(path: str, shared: str | None = None, not_now: str = "") -> Iterator[Check]:
    """The results of all checks. `shared`: the part that all hosts share, None: as it is.
    `not_now`: why nothing on the storage is looked at."""
    try:
        config = load(path, shared)
    except ConfigError as error:
        yield Check("file", "fail", str(error))
        return
    yield Check("file", "ok", f"{path}: every key is known, and they fit together")
    yield from _identity(config)
    try:
        definition = load_definition(config)
    except DefinitionError as error:
        yield Check("definition", "fail", str(error))
    else:
        yield Check(
            "definition",
            "ok",
            f"{config.vm.definition}: {definition.name}, {definition.memory_mb:.0f} MiB,"
            f" lease {config.storage.lockspace}/{config.storage.resource}"
            f" at {definition.lease_offset}",
        )
        if not_now:
            yield Check("one-host", "warning", f"not looked at: {not_now}")
        for each in () if not_now else found_in(config):
            yield Check("one-host", "warning", str(each))
    secrets: dict[str, FenceSecret] = {}
    try:
        secrets = load_fence_secrets(config)
        yield from _secrets(config, secrets, unused_fence_secrets(config))
        yield from _cluster_key(config)
        yield from _api(config)
    except ConfigError as error:
        yield Check("secrets", "fail", str(error))
    yield from _devices(config, secrets)


def _api(config: Config) -> Iterator[Check]:
    """Who may change things over TCP."""
    try:
        token = load_api_token(config)
        with_tls = tls_context(config.api) is not None
    except ConfigError as error:
        yield Check("api", "fail", str(error))
        return
    if token is None:
        yield Check("api", "ok", "no api-token: over TCP everything is read-only")
    elif with_tls:
        yield Check("api", "ok", "a holder of api-token may change things over TLS")
    else:
        yield Check("api", "ok", "a holder of api-token may change things, from this host alone")


def _identity(config: Config) -> Iterator[Check]:
    uuid = system_uuid(config)
    if uuid:
        yield Check("identity", "ok", f"this host publishes the machine UUID {uuid}")
    else:
        yield Check(
            "identity",
            "warning",
            "this host's machine UUID cannot be read (as root it can); without it, or"
            " host.system-uuid, no fence device can be proven to be this host's",
        )


def _cluster_key(config: Config) -> Iterator[Check]:
    """Whether what counts on the shared storage and over the network is signed."""
    if load_cluster_key(config) is None:
        yield Check(
            "key",
            "warning",
            f"{config.daemon.secrets} has no cluster-key: whoever can write to the shared storage"
            " is believed, and no host answers another over the network; openssl rand -hex 32 makes"
            ' one: the line cluster-key = "…", the same on all hosts, at the top of that file on'
            " each, then systemctl restart ha-broker there, one host after the other",
        )
    else:
        yield Check("key", "ok", "slots, fence log and heartbeats are signed with the cluster-key")


def _secrets(config: Config, secrets: Mapping[str, FenceSecret], unused: int) -> Iterator[Check]:
    lacking = [d for d in config.fence.device if d.username and not secrets[d.key].password]
    for device in lacking:
        yield Check(
            "secrets",
            "fail",
            f"{device.title}: no password; {config.daemon.secrets} lacks"
            f' "{device.key}" in [fence-passwords]',
        )
    if unused:
        yield Check(
            "secrets", "warning", f"{config.daemon.secrets}: {unused} entries belong to no device"
        )
    if Path(config.daemon.secrets).exists():
        yield Check("secrets", "ok", f"{config.daemon.secrets}: no other user may read it")


def _devices(config: Config, secrets: Mapping[str, FenceSecret]) -> Iterator[Check]:
    if not config.fence.device:
        yield Check(
            "fence",
            "warning",
            "no fence device: after a host's death its VM waits for sanlock's host-dead time",
        )
        return
    for device in config.fence.device:
        try:
            fence_device(config, device, secrets.get(device.key, FenceSecret()))
        except ConfigError as error:
            yield Check("fence", "fail", str(error))
            continue
        password = secrets.get(device.key, FenceSecret()).password
        if device.type == "ipmi" and (problem := password_problem(password)):
            yield Check("fence", "fail", f"{device.title}: {problem}")
        elif device.type == "agent" and find_agent(device.agent) is None:
            yield Check("fence", "fail", f"{device.title}: {device.agent} is not installed")
        elif device.type == "redfish" and not device.verify:
            yield Check("fence", "warning", f"{device.title}: its certificate is not checked")
        else:
            yield Check("fence", "ok", f"{device.title}: level {device.level}, {device.identity}")
    if config.host.id not in {device.host for device in config.fence.device}:
        yield Check(
            "fence",
            "warning",
            f"host {config.host.id}, this one, has no device here: the same list on every host"
            " lets a host rehearse its own",
        )
