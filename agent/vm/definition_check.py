# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether libvirt here takes the VM's definition: asked before the agent decides anything, and
again while it does not.

An agent that ended for it would be a silent one: its host could not even say why it is no standby,
and a VM that runs there would be watched by nobody. It stays, and its host cannot start the VM.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import libvirt

from broker.config.sections import Config
from broker.daemon import service_manager
from broker.daemon.foreign import sentence
from broker.daemon.worker import Hung
from broker.vm.start_proof import AWAY

log = logging.getLogger("ha-agent")

LIBVIRT_RETRY_S = 2.0
#: A definition that was refused is offered again so often: what it lacked may have come.
AGAIN_S = 30.0


class DefinitionCheck:
    """`refused`: why libvirt does not take the definition; empty while it does. `define`: gives it
    to libvirt; raises libvirt.libvirtError or Hung."""

    def __init__(self, config: Config, define: Callable[[], Awaitable[None]]) -> None:
        self._config = config
        self._define = define
        self.refused = ""

    async def answered(self) -> None:
        """Wait until libvirt has said yes or no."""
        while not await self._ask():
            service_manager.alive("waiting for libvirt")
            await asyncio.sleep(LIBVIRT_RETRY_S)

    async def run(self) -> None:
        """Offer a refused definition again and again, until it is taken."""
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
        else:
            if self.refused:
                log.info("libvirt takes the definition now")
            self.refused = ""
        return True
