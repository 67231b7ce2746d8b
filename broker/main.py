# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-broker`: wires the real adapters together and runs until it is told to end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

import libvirt

from broker.board import Board, VolumeStore
from broker.broker import Broker
from broker.config import Config, ConfigError, default_path, load
from broker.exit_codes import ExitCode
from broker.lockspace import LockspaceError
from broker.monitors import Monitor, MonitorRunner
from broker.monitors.bridge import BridgeMonitor
from broker.monitors.cpu_load import CpuLoadMonitor
from broker.monitors.definition import DefinitionMonitor
from broker.monitors.engine import EngineMonitor
from broker.monitors.health_page import HealthPageMonitor
from broker.monitors.memory import MemoryMonitor
from broker.monitors.network import NetworkMonitor
from broker.sanlock_lockspace import SanlockLockspace
from broker.server import serve
from broker.volume import Volume, VolumeError

log = logging.getLogger("ha-broker")

STORAGE_DEADLINE_S = 2.0


class StartError(Exception):
    """The broker cannot start: exit code and the line to print."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def set_up_logging(level: str) -> None:
    """One line per event on standard error, where the journal picks it up."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def check_storage(config: Config) -> None:
    """Raise StartError where whiteboard or lease volume are not there or cannot be written."""
    try:
        with Volume(config.storage.whiteboard) as volume:
            volume.read_slots([0])
    except VolumeError as error:
        raise StartError(ExitCode.STORAGE, f"storage.whiteboard: {error}") from None
    leases = Path(config.storage.leases)
    if not leases.exists():
        raise StartError(
            ExitCode.STORAGE, f"storage.leases: {leases} is not there; is the storage mounted?"
        )
    if not os.access(leases, os.R_OK | os.W_OK) or os.statvfs(leases).f_flag & os.ST_RDONLY:
        raise StartError(ExitCode.STORAGE, f"storage.leases: {leases} cannot be written")


def make_broker(config: Config) -> Broker:
    """The broker on its real adapters."""
    page = HealthPageMonitor(config.health)
    engine = EngineMonitor(config, page)
    monitors: list[Monitor] = [
        engine,
        page,
        MemoryMonitor(),
        CpuLoadMonitor(config.timing_rules().load_window, lambda: engine.pid),
        DefinitionMonitor(config.vm.definition, config.vm.shared_definition),
    ]
    if config.network.bridge:
        monitors.append(BridgeMonitor(config.network.bridge))
    if config.network.test == "ping":
        monitors.append(NetworkMonitor(config.network.targets))
    return Broker(
        config,
        Board(VolumeStore(config.storage.whiteboard, STORAGE_DEADLINE_S), config.host.id),
        SanlockLockspace(
            config.storage.lockspace,
            config.host.id,
            config.storage.leases,
            config.storage.io_timeout,
        ),
        MonitorRunner(monitors),
        engine,
    )


async def run(config: Config) -> None:
    """Run until SIGTERM or SIGINT; StartError and LockspaceError where that cannot be."""
    check_storage(config)
    broker = make_broker(config)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        server = await serve(broker, config.daemon.socket)
    except OSError as error:
        raise StartError(
            ExitCode.CONFIG, f"daemon.socket: {config.daemon.socket}: {error.strerror}"
        ) from None
    log.info("broker of host %d (%s) is up", config.host.id, config.host_name)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(broker.run(), name="beat"),
                group.create_task(broker.lockspace.run(), name="lockspace"),
                group.create_task(broker.monitors.run(), name="monitors"),
            ]
            await stop.wait()
            for task in tasks:
                task.cancel()
    finally:
        await server.cleanup()
    log.info("broker ends; the host id stays joined and the VM untouched")


def main() -> None:
    """The command `ha-broker`; exit codes in broker/exit_codes.py."""
    parser = argparse.ArgumentParser(
        prog="ha-broker", description="Samples this host and lives on the shared whiteboard."
    )
    parser.add_argument("--config", default=default_path(), help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        config = load(arguments.config)
        # libvirt prints each error on standard error by itself unless told not to.
        libvirt.registerErrorHandler(lambda context, error: None, None)
        set_up_logging(config.daemon.log_level)
        asyncio.run(run(config))
    except ConfigError as error:
        _fail(ExitCode.CONFIG, str(error))
    except StartError as error:
        _fail(error.code, f"{arguments.config}: {error}")
    except BaseExceptionGroup as group:
        known, other = group.split(LockspaceError)
        if other is not None or known is None:
            raise
        _fail(ExitCode.LOCKSPACE, f"{arguments.config}: {_first(known)}")
    except KeyboardInterrupt:
        with contextlib.suppress(BrokenPipeError):
            sys.exit(130)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _fail(code: ExitCode, message: str) -> None:
    print(f"ha-broker: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


if __name__ == "__main__":
    main()
