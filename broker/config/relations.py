# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rules of the configuration that concern more than one key, or more than a key's range."""

from __future__ import annotations

import re

from broker.config import addresses
from broker.config.errors import ConfigError
from broker.config.fence_relations import check_devices
from broker.config.notify_relations import check_notify
from broker.config.sections import Config
from broker.daemon.bounded_search import finder


def check_relations(path: str, config: Config) -> None:
    """Check the rules that concern more than one key; ConfigError."""
    try:
        config.timing_rules()
    except ValueError as error:
        raise ConfigError(f"{path}: timing: {error}") from None
    if config.score.cpu_load_penalty_min > config.score.cpu_load_penalty_max:
        raise ConfigError(f"{path}: score.cpu-load-penalty-min is above score.cpu-load-penalty-max")
    _check_health(path, config)
    if config.monitors.cpu_load > config.timing_rules().load_window / 2:
        raise ConfigError(f"{path}: monitors.cpu-load must be at most half of timing.load-window")
    _check_api(path, config)
    for target in config.network.targets if config.network.test == "tcp" else ():
        _check_address(path, "network.targets", target)
    try:
        check_devices(config.fence.device)
    except ValueError as error:
        raise ConfigError(f"{path}: fence.device: {error}") from None
    try:
        check_notify(config.notify)
    except ValueError as error:
        raise ConfigError(f"{path}: notify.{error}") from None
    volumes = config.storage.whiteboard, config.storage.leases, config.storage.registry
    if len(set(volumes)) < len(volumes):
        raise ConfigError(
            f"{path}: storage.whiteboard, storage.leases and storage.registry must differ"
        )
    _check_libvirt(path, config)


def _check_health(path: str, config: Config) -> None:
    """Check the settings of the health check; ConfigError."""
    try:
        finder(config.health.expected)
    except ValueError as error:
        raise ConfigError(f"{path}: health.expect: not a regular expression: {error}") from None
    if config.health.url and not re.match(r"https?://[^/\s]+", config.health.url):
        raise ConfigError(f"{path}: health.url: {config.health.url!r} is no http(s) address")
    given = config.health
    if sum(map(bool, (given.url, given.fqdn, given.tcp, given.guest_agent))) > 1:
        raise ConfigError(f"{path}: health: url, fqdn, tcp and guest-agent exclude each other")
    if not re.fullmatch(r"[A-Za-z0-9.-]{0,255}", given.fqdn):
        raise ConfigError(f"{path}: health.fqdn: {given.fqdn!r} is no host name")
    _check_address(path, "health.tcp", config.health.tcp)


def _check_api(path: str, config: Config) -> None:
    """Check the addresses of the listener and of the heartbeats; ConfigError."""
    for address in config.api.listen:
        _check_address(path, "api.listen", address)
    for address in config.api.tls_listen:
        _check_address(path, "api.tls-listen", address)
    if config.api.tls_listen and not (config.api.certificate and config.api.private_key):
        raise ConfigError(f"{path}: api.tls-listen needs api.certificate and api.private-key")
    for address in config.api.advertise or ():
        _check_address(path, "api.advertise", address)
    for name in ("heartbeat_listen", "heartbeat_advertise"):
        for address in getattr(config.api, name) or ():
            _check_address(path, f"api.{name.replace('_', '-')}", address)
    for key, published in (
        ("api.advertise", config.advertised()),
        ("api.heartbeat-advertise", config.heartbeat_advertised()),
    ):
        if len(published) > addresses.ADDRESSES_MAX:
            raise ConfigError(f"{path}: {key}: more than {addresses.ADDRESSES_MAX} addresses")


def _check_libvirt(path: str, config: Config) -> None:
    """Check the URIs of a migration; ConfigError."""
    for name in ("migration_uri", "migration_data_uri"):
        try:
            getattr(config.libvirt, name).format(host="x")
        except (KeyError, IndexError, ValueError):
            raise ConfigError(
                f"{path}: libvirt.{name.replace('_', '-')}: only {{host}} may stand in braces"
            ) from None
    if "{host}" in config.libvirt.migration_uri and not addresses.in_uri(config.host_name):
        # The others put the name into their URI: an error now is better than a failed migration.
        raise ConfigError(
            f"{path}: host.name: {config.host_name!r} cannot stand for {{host}} in "
            "libvirt.migration-uri: give this host a name of letters, digits, dots, hyphens and "
            "underscores, or an address"
        )


def _check_address(path: str, key: str, address: str) -> None:
    """Raise ConfigError where the address is neither empty nor one with a port."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:\s]+):([0-9]{1,5})", address)
    if address and (found is None or not 1 <= int(found.group(2)) <= 65_535):
        raise ConfigError(f"{path}: {key}: {address!r} is not host:port or [v6]:port")
