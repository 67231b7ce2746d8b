# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent run`: checks what can be checked, wires the real adapters, and beats until it ends."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import signal
from functools import partial
from pathlib import Path

import libvirt

from agent.actions import ActionRunner
from agent.beat import Agent
from agent.fence.devices import fence_devices
from agent.fence.log import BrokerFenceLog
from agent.fence.rehearsal import Rehearsals
from agent.fence.storage import storage_fence
from agent.journal.records import Journal
from agent.leases.sanlock import SanlockLeases
from agent.leases.vm_records import VmRecords
from agent.terminal.errors import CommandError
from agent.vm.definition import Definition, load_definition
from agent.vm.definition_check import DefinitionCheck
from agent.vm.errors import DefinitionError
from agent.vm.hypervisor import LibvirtHypervisor
from agent.vm.hypervisors import LibvirtHypervisors
from agent.vm.image_leases import LeasesOfImages
from agent.vm.measured import Measured
from agent.vm.old_domains import OldDomains
from agent.vm.protected import Engine
from broker.client.link import Link
from broker.config.errors import ConfigError
from broker.config.load import load
from broker.config.machine import system_uuid
from broker.config.reload import needs_restart, refusal
from broker.config.sections import Config
from broker.config.shared_watch import watch_copy
from broker.daemon import host_clock, service_manager
from broker.daemon.again import tasks_again
from broker.daemon.exit_codes import ExitCode
from broker.vm.qemu_conf import LOCK_MANAGER_LINE, lock_driver_named

log = logging.getLogger("ha-agent")

JOURNAL_PATIENCE_S = 2.0


def check_lock_driver(config: Config) -> None:
    """CommandError where libvirt's own configuration does not name the sanlock lock driver.

    A file that cannot be read proves nothing: each start checks the process itself.
    """
    path = config.libvirt.qemu_conf
    named = lock_driver_named(path)
    if named is None:
        log.warning("%s cannot be read; the lock driver is checked at each start", path)
    elif not named:
        raise CommandError(
            ExitCode.LOCK_DRIVER,
            f"{path}: libvirt runs without the sanlock lock driver; set {LOCK_MANAGER_LINE} "
            "and restart libvirt",
        )


class Reload:
    """SIGHUP: use the present configuration file; a bad one changes nothing."""

    def __init__(
        self,
        path: str,
        config: Config,
        definition: Definition,
        hypervisors: LibvirtHypervisors,
        agent: Agent,
    ) -> None:
        self._path = path
        self._config = config
        self._memory_mb = definition.memory_mb
        self._hypervisors = hypervisors
        self._agent = agent

    def __call__(self) -> None:
        service_manager.reloading()
        try:
            config = load(self._path)
            keys = needs_restart(self._config, config)
            if keys:
                raise ConfigError(refusal(self._path, keys))
            fence = fence_devices(config)
        except ConfigError as error:
            self._agent.config_problem = str(error)
            log.error("the configuration stays as it was: %s", error)
            return
        self._config = config
        rules = config.rules(self._memory_mb)
        self._hypervisors.reconfigure(config)
        self._agent.reconfigure(
            rules,
            fence,
            config.fence.rehearse_every,
            bool(config.libvirt.migration_uri),
            storage_fence(config, LeasesOfImages(config, VmRecords(config))),
        )
        logging.getLogger().setLevel(config.daemon.log_level.upper())
        log.info("%s is read anew", self._path)


async def beat_until_stopped(path: str, config: Config, definition: Definition) -> None:
    """Run the agent until SIGTERM or SIGINT."""
    records = VmRecords(config)
    leases = SanlockLeases(config, definition.lease_offset, records=records)
    engine = LibvirtHypervisor(config, Engine(config, definition, records), leases)
    hypervisors = LibvirtHypervisors(config, engine, leases, records)
    fence = fence_devices(config)
    link = Link(config.daemon.socket)
    state_dir = Path(config.daemon.state_dir)
    journal = Journal(state_dir / "journal")
    rehearsals = Rehearsals(
        state_dir / "fence-paths.json",
        config.host.id,
        system_uuid(config),
        config.fence.rehearse_every,
        fence,
        storage_fence=storage_fence(config),
    )
    check = DefinitionCheck(config, engine.check)
    agent = Agent(
        config.rules(definition.memory_mb),
        link,
        ActionRunner(
            hypervisors,
            leases,
            fence,
            BrokerFenceLog(link),
            storage_fence(config, LeasesOfImages(config, records)),
        ),
        definition.domain_type,
        migration_possible=bool(config.libvirt.migration_uri),
        journal=journal,
        rehearsals=rehearsals,
        measured=Measured(state_dir / "measured.json"),
    )
    agent.refused = lambda: check.refused
    agent.on_step = lambda: service_manager.alive(agent.line())
    loop = asyncio.get_running_loop()
    checking = asyncio.ensure_future(check.answered())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _end, agent, checking)
    reload = Reload(path, config, definition, hypervisors, agent)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        await checking
        log.info(
            "agent of host %d is up, VM %s (%s)",
            config.host.id,
            definition.name,
            definition.domain_type,
        )
        beside = tasks_again(
            {
                "rehearsals": rehearsals.run,
                "definition": check.run,
                "lease volume": leases.opened_ahead,
                "domains of earlier days": OldDomains(config, records).run,
                "shared": partial(watch_copy, config.daemon.state_dir, reload),
            }
        )
        await agent.run()
        for task in beside:
            task.cancel()
    except asyncio.CancelledError:
        log.info("asked to end before libvirt answered")
    finally:
        await link.close()
        journal.flush(JOURNAL_PATIENCE_S)
    log.info("agent ends; the VM stays as it is")


def _end(agent: Agent, checking: asyncio.Future[None]) -> None:
    service_manager.stopping()
    agent.stop()
    checking.cancel()


def run(path: str) -> int:
    """The command; CommandError or ConfigError where it cannot run."""
    config = load(path)
    service_manager.set_up_logging(config.daemon.log_level)
    # The service manager's watchdog ends a hung daemon by SIGABRT: the trace shows where it hung.
    faulthandler.enable()
    # libvirt prints each error on standard error by itself unless a handler is set.
    libvirt.registerErrorHandler(lambda context, error: None, None)
    try:
        definition = load_definition(config)
    except DefinitionError as error:
        raise CommandError(ExitCode.DEFINITION, f"{path}: {error}") from None
    check_lock_driver(config)
    host_clock.run(beat_until_stopped(path, config, definition))
    return ExitCode.OK
