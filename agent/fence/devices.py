# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes fence devices from the configuration. The library of a kind is imported only where
needed."""

from __future__ import annotations

from agent.fence.driver import Driver, Pointless
from agent.fence.guarded import DeviceSetting, GuardedDevice
from agent.fence.levels import FenceLevels
from broker.config.errors import ConfigError
from broker.config.secrets import FenceSecret, load_fence_secrets
from broker.config.sections import Config, FenceDevice


def fence_devices(config: Config) -> FenceLevels:
    """All hosts' fence devices; ConfigError where passwords or certificates cannot be read."""
    secrets = load_fence_secrets(config)
    return FenceLevels(
        [fence_device(config, device, secrets[device.key]) for device in config.fence.device],
        config.host.id,
    )


def fence_device(config: Config, device: FenceDevice, secret: FenceSecret) -> GuardedDevice:
    """One fence device; ConfigError where its certificates cannot be read."""
    try:
        driver = _driver(device, secret)
    except Pointless as error:
        raise ConfigError(f"fence.device: {device.title}: {error}") from None
    return GuardedDevice(
        device.host,
        device.title,
        driver,
        DeviceSetting(
            level=device.level,
            trusted=device.identity == "trusted",
            timeout_s=device.timeout or config.fence.timeout,
            retries=device.retries,
            username=device.username,
            secrets=(secret.password, *secret.options.values()),
        ),
    )


def _driver(device: FenceDevice, secret: FenceSecret) -> Driver:
    match device.type:
        case "ipmi":
            from agent.fence.ipmi import IpmiDriver

            return IpmiDriver(
                device.address,
                device.port_used or 0,
                device.username,
                secret.password,
                device.privilege,
            )
        case "redfish":
            from agent.fence.redfish import RedfishDriver

            return RedfishDriver(
                device.address,
                device.port_used or 0,
                device.username,
                secret.password,
                system=device.system,
                ca_file=device.ca_file,
                fingerprint=device.fingerprint,
                verify=device.verify,
            )
        case "agent":
            from agent.fence.program import AgentDriver

            return AgentDriver(device.agent, _agent_options(device, secret))
        case _:
            raise AssertionError(device.type)


def _agent_options(device: FenceDevice, secret: FenceSecret) -> dict[str, str]:
    """The options for the program's standard input, by the names of the FenceAgentAPI."""
    given = {
        "ip": device.address,
        "ipport": "" if device.port is None else str(device.port),
        "username": device.username,
        "password": secret.password,
    }
    options = {
        name: str(int(value)) if isinstance(value, bool) else str(value)
        for name, value in device.options.items()
    }
    return {name: value for name, value in (given | options | secret.options).items() if value}
