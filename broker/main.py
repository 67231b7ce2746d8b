# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-broker`: wires the real adapters together and runs until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import ssl
import sys
from functools import partial
from pathlib import Path

import libvirt

from broker.api.front import FrontProcess
from broker.api.socket import serve
from broker.broker import Broker, Given
from broker.config.addresses import loopback_beside, split
from broker.config.certificate import load_certificate, tls_context
from broker.config.engine_file import FOLDER
from broker.config.errors import ConfigError
from broker.config.load import load
from broker.config.machine import system_uuid
from broker.config.places import changed_s, default_path
from broker.config.reload import needs_restart, refusal
from broker.config.secrets import load_api_token, load_cluster_key
from broker.config.sections import Config
from broker.config.shared_watch import watch_copy
from broker.daemon import host_clock, service_manager
from broker.daemon.again import tasks_again
from broker.daemon.command_line import Parser
from broker.daemon.errors import HaError
from broker.daemon.exit_codes import ExitCode
from broker.daemon.kernel_boot import boot_id
from broker.events.kept import KeptEvents
from broker.events.ring import EVENTS_MAX
from broker.lockspace.joined_mark import JoinedMark
from broker.lockspace.rejoin import Rejoin, own_names
from broker.lockspace.sanlock import SanlockLockspace
from broker.monitors.listen import listen
from broker.monitors.of_host import HostMonitors
from broker.monitors.watched import Watched
from broker.notify.notices import setting
from broker.peers.asker import Heartbeats
from broker.peers.heartbeat_port import HeartbeatPort, NetworkTransport
from broker.peers.machine import NetworkReach
from broker.registry.admission import refused
from broker.registry.cache import RegistryCache
from broker.registry.shared_copy import SharedUpdates
from broker.status.certificates import watch_certificates
from broker.whiteboard.board import Board
from broker.whiteboard.identity import VolumeKind, check, check_at, expected
from broker.whiteboard.signatures import Signatures, Unsigned
from broker.whiteboard.store import VolumeStore
from broker.whiteboard.volume import STORAGE_DEADLINE_S, Volume, VolumeError

log = logging.getLogger("ha-broker")

#: How long the broker's end waits for the last events to be kept.
KEEP_PATIENCE_S = 1.0


class StartError(HaError):
    """The broker cannot start: exit code and the line to print."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_storage(config: Config) -> None:
    """Raise StartError where whiteboard or lease volume are not there or cannot be written."""
    try:
        with Volume(config.storage.whiteboard) as volume:
            volume.read_slots([0])
            check(volume, expected(config, VolumeKind.WHITEBOARD))
    except VolumeError as error:
        raise StartError(ExitCode.STORAGE, f"storage.whiteboard: {error}") from None
    leases = Path(config.storage.leases)
    if not leases.exists():
        raise StartError(
            ExitCode.STORAGE, f"storage.leases: {leases} is not there; is the storage mounted?"
        )
    if not os.access(leases, os.R_OK | os.W_OK) or os.statvfs(leases).f_flag & os.ST_RDONLY:
        raise StartError(ExitCode.STORAGE, f"storage.leases: {leases} cannot be written")
    try:
        check_at(config.storage.leases, expected(config, VolumeKind.LEASES))
    except VolumeError as error:
        raise StartError(ExitCode.STORAGE, f"storage.leases: {error}") from None


def registry_cache(config: Config, signatures: Signatures) -> RegistryCache:
    """What this host knows of the registry."""
    path = config.storage.registry
    return RegistryCache(
        partial(Volume, path, read_only=True) if path else None,
        config.cluster.id,
        signatures,
        Path(config.daemon.state_dir) / FOLDER,
    )


def make_broker(config: Config, monitors: HostMonitors, kept: KeptEvents) -> Broker:
    """The broker on its real adapters; ConfigError where the cluster key cannot be used."""
    key = load_cluster_key(config)
    signatures = Signatures(key, Unsigned(config.storage.unsigned))
    broker = Broker(
        config,
        Board(
            VolumeStore(
                config.storage.whiteboard,
                STORAGE_DEADLINE_S,
                expected(config, VolumeKind.WHITEBOARD),
            ),
            config.host.id,
            signatures=signatures,
        ),
        SanlockLockspace(
            config.storage.lockspace,
            config.host.id,
            config.storage.leases,
            config.storage.io_timeout,
            Rejoin(
                own_names(system_uuid(config)),
                config.storage.io_timeout,
                JoinedMark(Path(config.daemon.state_dir), boot_id()),
            ),
            expected(config, VolumeKind.LEASES),
        ),
        Watched(
            monitors.runner,
            monitors.engine,
            monitors.outside,
            monitors.way_out,
            monitors.vms,
            monitors.vms_outside,
        ),
        Given(registry=registry_cache(config, signatures), reach=NetworkReach()),
        heartbeats=Heartbeats(config.host.id, key, NetworkTransport()),
        kept=kept,
    )
    broker.registry.refusal = lambda record, xml: refused(xml, record, broker.config)
    monitors.engine.renewed_s = lambda: broker.lockspace.renewed_s
    if monitors.vms is not None:
        monitors.vms.renewed_s = monitors.engine.renewed_s
    monitors.what_runs.ran = monitors.can_start.disks = lambda: broker.this_host.disks.ran
    return broker


def reload(
    path: str, broker: Broker, monitors: HostMonitors, tls: ssl.SSLContext | None = None
) -> None:
    """Use the present configuration file; a bad one changes nothing and a notice is sent. The
    certificate of `tls` is read anew."""
    service_manager.reloading()
    file_s = changed_s(path)
    try:
        config = load(path)
        keys = needs_restart(broker.config, config)
        if keys:
            raise ConfigError(refusal(path, keys))
        try:
            notify = setting(config)
            key = load_cluster_key(config)
            monitors.reload(config)
            if tls is not None:
                load_certificate(tls, config.api)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    except ConfigError as error:
        broker.refuse_config(str(error))
        log.error("the configuration stays as it was: %s", error)
        return
    broker.reconfigure(config)
    broker.use_key(key)
    broker.in_force.file_s = file_s
    broker.notices.use(notify)
    logging.getLogger().setLevel(config.daemon.log_level.upper())
    log.info("%s is read anew", path)


async def run(path: str, config: Config, file_s: float | None = None) -> None:
    """Run until SIGTERM or SIGINT; StartError and LockspaceError where that is impossible.
    `file_s`: when the file was changed last before it was read."""
    check_storage(config)
    try:
        monitors = HostMonitors(config)
    except ConfigError as error:
        raise StartError(ExitCode.CONFIG, str(error)) from None
    kept = KeptEvents(Path(config.daemon.state_dir), EVENTS_MAX)
    broker = make_broker(config, monitors, kept)
    tls = tls_context(config.api)
    token = load_api_token(config)
    broker.in_force.file_s = file_s
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
    broker.beats.on_beat = lambda: service_manager.alive(broker.this_host.line(loop.time()))
    front = FrontProcess(broker, token)
    port = HeartbeatPort(
        lambda datagram, source: broker.sign_of_life.answer(datagram, source, loop.time())
    )
    broker.gate.dropped = lambda: port.dropped

    def on_reload() -> None:
        reload(path, broker, monitors, tls)
        front.certificate_anew()

    loop.add_signal_handler(signal.SIGHUP, on_reload)
    signatures = Signatures(load_cluster_key(config), Unsigned(config.storage.unsigned))
    broker.registry.also = SharedUpdates(path, config, signatures).look
    shared = partial(watch_copy, config.daemon.state_dir, on_reload)
    certificates = partial(watch_certificates, broker.in_force)
    beside = tasks_again({"shared": shared, "certificates": certificates})
    key = "api.listen"
    try:
        await front.start(map(split, config.api.listen))
        await _start_loopback(front, config)
        key = "api.tls-listen"
        await front.start(map(split, config.api.tls_listen), is_tls=True)
        if broker.heartbeats.key is not None:
            key = "api.heartbeat-listen"
            await port.start(map(split, config.heartbeat_listen()))
    except OSError as error:
        port.close()
        await front.close()
        await server.cleanup()
        raise StartError(ExitCode.CONFIG, f"{key}: {error.filename}: {error.strerror}") from None
    listeners = listen(config, monitors)
    log.info("broker of host %d (%s) is up", config.host.id, config.host_name)
    try:
        await _live(broker, front, stop)
    finally:
        for task in beside:
            task.cancel()
        listeners.close()
        port.close()
        await front.close()
        await server.cleanup()
        kept.flush(KEEP_PATIENCE_S)
        broker.availability.flush(KEEP_PATIENCE_S)
    log.info("broker ends; the host id stays joined and the VM untouched")


async def _start_loopback(front: FrontProcess, config: Config) -> None:
    """Answer at 127.0.0.1 too, whatever `listen` says: scripts and people on this host need not
    know its address. Where another program has that port the broker goes on without."""
    try:
        await front.start(map(split, loopback_beside(config.api.listen)))
    except OSError as error:
        log.warning("api.listen: %s, beside it: %s", error.filename, error.strerror)


async def _live(broker: Broker, front: FrontProcess, stop: asyncio.Event) -> None:
    """Run everything that lives as long as the broker; the first failure ends it."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(broker.run(), name="beat"),
            group.create_task(broker.lockspace.run(), name="lockspace"),
            group.create_task(broker.lockspace.renewals.run(), name="renewals"),
            group.create_task(broker.heartbeats.run(), name="heartbeats"),
            group.create_task(broker.table.machine.run(), name="the engine's machine"),
            group.create_task(broker.monitors.run(), name="monitors"),
            group.create_task(broker.notices.run(), name="notices"),
            group.create_task(broker.registry.run(), name="registry"),
            group.create_task(front.run(), name="front"),
        ]
        await stop.wait()
        service_manager.stopping()
        for task in tasks:
            task.cancel()


def _parser() -> Parser:
    parser = Parser(
        prog="ha-broker", description="Samples this host and lives on the shared whiteboard."
    )
    parser.add_argument("--config", default=default_path(), help="default: %(default)s")
    parser.add_version()
    return parser


def main() -> None:
    """The command `ha-broker`; exit codes in broker/daemon/exit_codes.py."""
    arguments = _parser().parse_args()
    try:
        file_s = changed_s(arguments.config)
        config = load(arguments.config)
        # libvirt prints each error on standard error by itself unless a handler is set.
        libvirt.registerErrorHandler(lambda context, error: None, None)
        # The service manager's watchdog ends a hung daemon by SIGABRT: the trace shows where it
        # hung.
        faulthandler.enable()
        service_manager.set_up_logging(config.daemon.log_level)
        host_clock.run(run(arguments.config, config, file_s))
    except ConfigError as error:
        _fail(ExitCode.CONFIG, str(error))
    except StartError as error:
        _fail(error.code, f"{arguments.config}: {error}")
    except BaseExceptionGroup as group:
        known, other = group.split(HaError)
        if other is not None or known is None:
            raise
        first = _first(known)
        _fail(first.code, f"{arguments.config}: {first}")
    except KeyboardInterrupt:
        with contextlib.suppress(BrokenPipeError):
            sys.exit(130)


def _first(group: BaseExceptionGroup[HaError]) -> HaError:
    error: HaError | BaseExceptionGroup[HaError] = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _fail(code: ExitCode, message: str) -> None:
    print(f"ha-broker: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


if __name__ == "__main__":
    main()
