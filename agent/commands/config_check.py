# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent config check [FILE]`: checks everything in the configuration that needs no daemon."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.fence.devices import fence_device
from agent.fence.ipmi import password_problem
from agent.fence.program import find_agent
from agent.storage.silent import left_alone
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


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check. `verdict`: ok, warning or fail."""

    name: str
    verdict: str
    text: str


def run(path: str, as_json: bool) -> int:
    """Check and print; OK, or CONFIG where a check failed. A warning is no failure."""
    made = list(checks(path, not_now=silence(path)))
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
