# SPDX-License-Identifier: LGPL-2.1-or-later
"""Chassis power over IPMI 2.0, by pyghmi; one question at a time, each with its own login.

A reading counts as proof only when the device's system GUID (IPMI 2.0, 22.14, Get System
GUID) is the machine UUID that the host published. Firmware disagrees on the byte order of
a GUID (SMBIOS 7.2.1 has its first three fields little-endian, IPMI sends the whole
least significant byte first), so each of these orders is the same machine.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import uuid
from collections.abc import Mapping

from broker.config import FenceDevice
from broker.worker import Hung, Worker
from scoring.observation import Power, PowerAnswer

log = logging.getLogger("ha-agent.fence")

_NETFN_APP = 0x06
_GET_SYSTEM_GUID = 0x37
_POWER = {"on": Power.ON, "off": Power.OFF}


class IpmiDevices:
    """The real FenceDevices."""

    def __init__(
        self, devices: Mapping[int, FenceDevice], passwords: Mapping[int, str], timeout_s: float
    ) -> None:
        self._devices = devices
        self._passwords = passwords
        self._timeout_s = timeout_s
        self._worker = Worker("ipmi")
        self.hosts = frozenset(devices)
        if devices:
            # Now, not in the middle of a takeover: it takes a tenth of a second.
            importlib.import_module("pyghmi.ipmi.command")

    async def read_power(self, host_id: int, system_uuid: str) -> PowerAnswer:
        # A reading is as old as its question: what a slow device answers may be, too.
        asked_s = asyncio.get_running_loop().time()
        device = self._devices[host_id]
        password = self._passwords.get(host_id, "")
        what = f"asking the BMC of host {host_id}"
        try:
            guid, state = await self._worker.call(what, self._timeout_s, _read, device, password)
        except Hung as error:
            return PowerAnswer(host_id, Power.UNKNOWN, asked_s, detail=str(error))
        except Exception as error:  # pyghmi raises what it likes
            text = str(error)
            if text in ("", "None"):
                text = "no answer"
            if password:
                text = text.replace(password, "***")
            text = f"{device.address} port {device.port}: {text} ({type(error).__name__})"
            return PowerAnswer(host_id, Power.UNKNOWN, asked_s, detail=text)
        proven, detail = _same_machine(guid, system_uuid)
        power = _POWER.get(state, Power.UNKNOWN)
        return PowerAnswer(host_id, power, asked_s, proven, detail)


def _read(device: FenceDevice, password: str) -> tuple[bytes, str]:
    """Log in, read GUID and power, log out; blocking."""
    from pyghmi.ipmi import command

    session = command.Command(
        bmc=device.address,
        # As bytes: pyghmi (1.6.19) remembers half-made sessions under these values as given,
        # and forgets them under their bytes; given as text, a logged-out session stays and
        # the next login gets it back.
        userid=device.username.encode(),
        password=password.encode(),
        port=device.port,
        keepalive=False,
    )
    try:
        answer = session.xraw_command(netfn=_NETFN_APP, command=_GET_SYSTEM_GUID)
        state = session.get_power()
        return bytes(answer["data"]), str(state.get("powerstate", ""))
    finally:
        session.ipmi_session.logout()


def _same_machine(guid: bytes, system_uuid: str) -> tuple[bool, str]:
    """Whether a GUID and a published UUID are one machine's, and what to say when not."""
    if not system_uuid:
        return False, "the host published no machine UUID to compare with"
    try:
        published = uuid.UUID(system_uuid)
    except ValueError:
        return False, f"the host published {system_uuid!r}, which is no UUID"
    orders = {published.bytes, published.bytes_le, published.bytes[::-1], published.bytes_le[::-1]}
    if guid in orders:
        return True, ""
    return False, f"its GUID is {guid.hex()}, the host published {published}"
