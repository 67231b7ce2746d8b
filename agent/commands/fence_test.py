# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent fence test HOST|all`: tests whether this host can switch a host's power."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from agent.fence.devices import fence_devices
from agent.fence.levels import DeviceTest, FenceLevels
from agent.fence.storage import StorageFence, storage_fence
from agent.terminal import in_json
from agent.terminal.columns import table
from agent.terminal.errors import CommandError
from broker.client.ask import BrokerDown, ask
from broker.config.machine import system_uuid
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.wire.exchange import View

_HEAD = ("", "HOST", "LEVEL", "DEVICE", "POWER", "IDENTITY", "PRIVILEGE", "TIME")


def run(config: Config, host: str, as_json: bool) -> int:
    """Test and print; OK, or FENCE where a device failed. Changes nothing anywhere."""
    names, uuids, problem = published(config)
    levels = fence_devices(config)
    hosts = _chosen(config, host, names)
    found = asyncio.run(tests(levels, hosts, uuids))
    of_storage = asyncio.run(storage_tests(storage_fence(config), hosts, names))
    if as_json:
        devices = [
            {"hostname": names.get(test.host_id, ""), **dataclasses.asdict(test)} for test in found
        ]
        shown: dict[str, Any] = {"broker": not problem, "devices": devices}
        if of_storage:
            shown["storage_fence"] = [
                {"host_id": host, "ok": not why, "detail": why} for host, why in of_storage.items()
            ]
        in_json.show(shown)
    else:
        print("\n".join(as_text(found, names)))
        for each, why in of_storage.items():
            verdict = f"FAIL  {why}" if why else "ok    the storage answers; nothing is cut"
            print(f"storage fence for host {each}: {verdict}")
    if problem:
        print(f"ha-agent: {problem}; no host's machine is known but this one's", file=sys.stderr)
    is_well = all(test.ok for test in found) and not any(of_storage.values())
    return ExitCode.OK if is_well else ExitCode.FENCE


def as_text(tests: Sequence[DeviceTest], names: Mapping[int, str]) -> list[str]:
    """A line for each device, followed by what is wrong with it."""
    rows = [
        (
            "ok" if test.ok else "FAIL",
            f"{test.host_id} {names.get(test.host_id, '')}".rstrip(),
            str(test.level),
            test.device,
            test.power.value,
            test.identity.value,
            test.privilege.value,
            f"{test.took_s:.1f} s",
        )
        for test in tests
    ]
    lines = table([_HEAD, *rows])
    return lines + [test.detail for test in tests if test.detail]


async def tests(
    levels: FenceLevels, hosts: Sequence[int], uuids: Mapping[int, str]
) -> list[DeviceTest]:
    found = await asyncio.gather(*(levels.test(host, uuids.get(host, "")) for host in hosts))
    return [test for tests in found for test in tests]


async def tests_within(
    levels: FenceLevels, hosts: Sequence[int], uuids: Mapping[int, str], within_s: float
) -> tuple[list[DeviceTest], list[int]]:
    """The tests that have ended in time, and the hosts of those that have not."""
    asked = {host: asyncio.ensure_future(levels.test(host, uuids.get(host, ""))) for host in hosts}
    await asyncio.wait(asked.values(), timeout=within_s)
    late = [host for host, test in asked.items() if not test.done()]
    for host in late:
        asked[host].cancel()
    return [
        test for host, ended in asked.items() if host not in late for test in ended.result()
    ], late


async def storage_tests(
    fence: StorageFence, hosts: Sequence[int], names: Mapping[int, str]
) -> dict[int, str]:
    """For each host why its clients and locks could not be removed from the storage; "": they
    could. Empty: no storage fence is configured."""
    if not fence.is_configured:
        return {}
    return {host: await fence.check(host, names.get(host, "")) for host in hosts}


def published(config: Config) -> tuple[dict[int, str], dict[int, str], str]:
    """Names and machine UUIDs by host id as the broker knows them, and why it did not answer."""
    own = config.host.id
    names, uuids, problem = {own: config.host_name}, {own: system_uuid(config)}, ""
    try:
        view = ask(config.daemon.socket, "GET", "/v1/view", View)
        names, uuids = view.hostnames | names, view.system_uuids | uuids
    except BrokerDown as error:
        problem = str(error)
    return names, uuids, problem


def _chosen(config: Config, host: str, names: Mapping[int, str]) -> list[int]:
    """The ids of the named hosts; CommandError where there is none."""
    known = sorted({device.host for device in config.fence.device})
    if not known:
        raise CommandError(ExitCode.CONFIG, "no fence device is configured: [[fence.device]]")
    if host == "all":
        return known
    meant = [int(host)] if host.isascii() and host.isdigit() else []
    meant = meant or [number for number, name in names.items() if name == host]
    if not meant:
        have = ", ".join(f"{number} {names.get(number, '')}".rstrip() for number in known)
        raise CommandError(ExitCode.USAGE, f"no host {host!r} is known; there are {have}")
    if meant[0] not in known:
        raise CommandError(
            ExitCode.CONFIG, f"host {meant[0]} has no fence device: [[fence.device]]"
        )
    return meant
