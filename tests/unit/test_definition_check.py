# SPDX-License-Identifier: LGPL-2.1-or-later
"""An agent whose libvirt refuses the VM's definition stays, says so, and offers it again."""

from __future__ import annotations

import asyncio

import libvirt
import pytest

from agent.vm import definition_check
from agent.vm.definition_check import DefinitionCheck
from agent.vm.errors import DefinitionError
from broker.config.sections import Config, HostSection, StorageSection
from broker.daemon.worker import Hung
from tests.fakes.libvirt_errors import libvirt_error

CONFIG = Config(
    host=HostSection(id=1, name="one"),
    storage=StorageSection(whiteboard="/no/whiteboard", leases="/no/leases"),
)


def error(code: int, domain: int, text: str) -> libvirt.libvirtError:
    return libvirt_error(text, code, domain)


AWAY = error(38, libvirt.VIR_FROM_RPC, "Connection refused")
REFUSED = error(27, libvirt.VIR_FROM_DOMAIN, "XML error: Invalid value for attribute 'type'")


def test_it_waits_for_libvirt_and_goes_on_where_that_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(definition_check, "LIBVIRT_RETRY_S", 0.0)
    monkeypatch.setattr(definition_check, "AGAIN_S", 0.0)
    answers: list[Exception | None] = [AWAY, Hung("libvirt", "defining", 3.0), REFUSED, AWAY]
    answers += [REFUSED, None]

    async def define() -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    async def run() -> None:
        check = DefinitionCheck(CONFIG, define)
        await check.answered()
        assert check.refused == f"/etc/ha-agent/engine.xml: libvirt rejects it: {REFUSED}"
        assert len(answers) == 3
        await check.run()
        assert (check.refused, answers) == ("", [])

    asyncio.run(run())


def test_what_this_host_must_not_start_is_said_and_the_agent_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine's definition from the registry, which another host wrote."""
    monkeypatch.setattr(definition_check, "AGAIN_S", 0.0)
    answers: list[Exception | None] = [DefinitionError("has a script"), None]

    async def define() -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    async def run() -> None:
        check = DefinitionCheck(CONFIG, define)
        await check.answered()
        assert check.refused == "/etc/ha-agent/engine.xml: has a script"
        await check.run()
        assert (check.refused, answers) == ("", [])

    asyncio.run(run())
