# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks whether libvirt here accepts the VM's definition: before the agent decides anything, and
again while libvirt refuses it.

If the agent ended because of a refusal, it would be silent: its host could not even say why it is
no standby, and a VM that runs there would be unwatched. So it stays, and its host cannot start the
VM.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import libvirt

from agent.vm.errors import DefinitionError
from broker.config.sections import Config
from broker.daemon import service_manager
from broker.daemon.foreign import sentence
from broker.daemon.worker import Hung
from broker.vm.start_proof import AWAY

log = logging.getLogger("ha-agent")

LIBVIRT_RETRY_S = 2.0
#: A refused definition is tried again at this interval: what libvirt lacked may exist now.
AGAIN_S = 30.0


class DefinitionCheck:
    """`refused`: why libvirt, or this host, refuses the definition; empty while both accept it.
    `define`: gives it to libvirt; raises libvirt.libvirtError, DefinitionError or Hung."""

    def __init__(self, config: Config, define: Callable[[], Awaitable[None]]) -> None:
        self._config = config
        self._define = define
        self.refused = ""

    async def answered(self) -> None:
        """Wait until the definition is accepted or refused."""
        while not await self._ask():
            service_manager.alive("waiting for libvirt")
            await asyncio.sleep(LIBVIRT_RETRY_S)

    async def run(self) -> None:
        """Try a refused definition again and again, until libvirt accepts it."""
        while self.refused:
            await asyncio.sleep(AGAIN_S)
            await self._ask()

    async def _ask(self) -> bool:
        """Whether libvirt has answered."""
        try:
            await self._define()
        except libvirt.libvirtError as error:
            if error.get_error_domain() in AWAY:
                log.warning(
                    "libvirt does not answer at %s: %s", self._config.libvirt.uri, sentence(error)
                )
                return False
            text = f"{self._config.vm.definition}: libvirt rejects it: {sentence(error)}"
            if text != self.refused:
                log.error("this host cannot start the VM: %s", text)
            self.refused = text
        except Hung as error:
            log.warning("%s", error)
            return False
        except DefinitionError as error:
            text = f"{self._config.vm.definition}: {error}"
            if text != self.refused:
                log.error("this host cannot start the VM: %s", text)
            self.refused = text
        else:
            if self.refused:
                log.info("libvirt accepts the definition now")
            self.refused = ""
        return True
