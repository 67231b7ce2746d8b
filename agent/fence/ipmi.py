# SPDX-License-Identifier: LGPL-2.1-or-later
"""The driver of a BMC over IPMI 2.0, by pyghmi; each question has a login of its own.

The numbers are those of the IPMI 2.0 specification: 22.14 Get System GUID, 22.18 Set
Session Privilege Level (0: leave it, say what it is), 28.2 Get Chassis Status (bit 0 of
the first byte: power is on), 28.3 Chassis Control (0: power down, hard; 1: power up; both
need the level operator, appendix G). pyghmi's own `set_power` is not used: it hands the
order to vendors' modules, some of which do something else with it.

pyghmi keeps all its sessions in one table, and any thread that waits serves all of them.
Two threads that wait at once take each other's packets and then wait in vain (seen: 2 s
instead of 10 ms, while one BMC was hung). So one thread at a time is inside pyghmi, for
_SLICE_S at most, and each waits for its own answer up to its own deadline.
"""

from __future__ import annotations

import importlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agent.fence.driver import DeviceError, Pointless, Refused, go
from agent.ports import Still
from scoring.observation import Power

log = logging.getLogger("ha-agent.fence")

_CHASSIS, _APP = 0x00, 0x06
_GET_CHASSIS_STATUS, _CHASSIS_CONTROL = 0x01, 0x02
_GET_SYSTEM_GUID, _SET_SESSION_PRIVILEGE_LEVEL = 0x37, 0x3B
_POWER_DOWN, _POWER_UP = 0, 1
_OPERATOR = 3
#: 6.8, Privilege Levels, as the configuration names them.
PRIVILEGES = {"user": 2, "operator": _OPERATOR, "administrator": 4}
#: 5.2, Completion Codes.
_INSUFFICIENT_PRIVILEGE = 0xD4

#: 22.30, Set User Password: a BMC keeps the first 20 bytes of a longer one, or the first 16.
PASSWORD_BYTES_MAX = 20

#: 13.24, RMCP+ Status Codes, in pyghmi's words (1.6.19): the account, its password or its level is
#: wrong. Not among them: 1 and 0Bh, no room for another session, which ends by itself.
_REFUSALS = (
    "Incorrect password provided",
    "Unauthorized role or privilege level requested",
    "Invalid username length",
    "Unauthorized name",
    "Invalid integrity check value",
    "Invalid RAKP4 integrity code",
)

_SLICE_S = 0.02
_PYGHMI = threading.Lock()


def password_problem(password: str) -> str:
    """Why IPMI cannot log in with a password; empty: it can."""
    size = len(password.encode())
    if size <= PASSWORD_BYTES_MAX:
        return ""
    return (
        f"the password has {size} bytes, IPMI 2.0 allows {PASSWORD_BYTES_MAX} at most: give the "
        "BMC a shorter one (a BMC that took it keeps the first 16 or 20 bytes without a warning)"
    )


class IpmiDriver:
    """The Driver of a BMC. `privilege`: the level to ask for; below operator it can only read."""

    def __init__(
        self, address: str, port: int, username: str, password: str, privilege: str = "operator"
    ) -> None:
        self._address = address
        self._port = port
        self._username = username
        self._password = password
        self._privilege = PRIVILEGES[privilege]
        # The import takes a tenth of a second, which must not happen in the middle of a takeover.
        importlib.import_module("pyghmi.ipmi.command")

    @contextmanager
    def login(self, timeout_s: float) -> Iterator[_IpmiLogin]:
        """Log in and out."""
        if problem := password_problem(self._password):
            raise Pointless(problem)
        deadline_s = time.monotonic() + timeout_s
        # The lookup may take long: inside pyghmi all other threads would wait for it.
        found = socket.getaddrinfo(self._address, self._port, type=socket.SOCK_DGRAM)
        answer = _Answer()
        with _PYGHMI:
            session = self._begin(str(found[0][4][0]), answer)
        try:
            response = answer.wait(deadline_s)
            if "error" in response:
                text = str(response["error"] or "no answer")
                raise (Refused if text.startswith(_REFUSALS) else DeviceError)(text)
            yield _IpmiLogin(session, deadline_s)
        finally:
            _log_out(session)

    def _begin(self, address: str, answer: _Answer) -> Any:
        """A session of pyghmi that is logging in."""
        from pyghmi.ipmi.command import Command

        command = Command(
            bmc=address,
            # As bytes: pyghmi (1.6.19) remembers half-made sessions under these values as
            # given, and forgets them under their bytes; given as text, a logged-out session
            # stays and the next login gets it back.
            userid=self._username.encode(),
            password=self._password.encode(),
            port=self._port,
            privlevel=self._privilege,
            onlogon=answer.take,
            keepalive=False,
        )
        return command.ipmi_session


class _IpmiLogin:
    def __init__(self, session: Any, deadline_s: float) -> None:
        self._session = session
        self._deadline_s = deadline_s

    def guid(self) -> bytes | None:
        return self._ask(_APP, _GET_SYSTEM_GUID)

    def power(self) -> Power:
        return Power.ON if self._ask(_CHASSIS, _GET_CHASSIS_STATUS)[0] & 1 else Power.OFF

    def lacks(self) -> str | None:
        level = self._ask(_APP, _SET_SESSION_PRIVILEGE_LEVEL, 0)[0] & 0x0F
        if level >= _OPERATOR:
            return ""
        name = next((name for name, n in PRIVILEGES.items() if n == level), str(level))
        return f"the login's privilege level is {name}; operator is needed"

    def switch(self, on: bool, still: Still) -> None:
        go(still)
        self._ask(_CHASSIS, _CHASSIS_CONTROL, _POWER_UP if on else _POWER_DOWN)

    def _ask(self, netfn: int, command: int, *data: int) -> bytes:
        """Send one command; returns the answer's data."""
        answer = _Answer()

        def take(response: dict[str, Any]) -> None:
            # pyghmi leaves it to the callback to say that the command is over.
            self._session.incommand = False
            answer.take(response)

        with _PYGHMI:
            self._session.raw_command(netfn, command, data=data, callback=take)
        response = answer.wait(self._deadline_s)
        code = response.get("code", 0)
        if code == _INSUFFICIENT_PRIVILEGE:
            raise Pointless("the login's privilege level does not allow it")
        if "error" in response or code:
            raise DeviceError(str(response.get("error") or f"completion code {code:#04x}"))
        if (response["netfn"], response["command"]) != (netfn + 1, command):
            raise DeviceError("an answer to another question")
        return bytes(response["data"])


class _Answer:
    """The response that pyghmi gives to a callback, and the wait for it."""

    def __init__(self) -> None:
        self._response: dict[str, Any] = {}
        self._here = threading.Event()

    def take(self, response: dict[str, Any], *_: object) -> None:
        self._response = response
        self._here.set()

    def wait(self, deadline_s: float) -> dict[str, Any]:
        """The response; DeviceError after `deadline_s` of the monotonic clock."""
        from pyghmi.exceptions import IpmiException
        from pyghmi.ipmi.command import Command

        while not self._here.is_set():
            if time.monotonic() >= deadline_s:
                raise DeviceError("no answer in time")
            if _PYGHMI.acquire(timeout=_SLICE_S):
                try:
                    Command.wait_for_rsp(_SLICE_S)
                except IpmiException as error:
                    # pyghmi does not say whose session it was; its owner will miss its answer.
                    log.debug("a session broke: %s", type(error).__name__)
                finally:
                    _PYGHMI.release()
            # A lock is not fair: this pause lets the other threads in.
            self._here.wait(0.001)
        return self._response


def _log_out(session: Any) -> None:
    """Log out without waiting for an answer, and let pyghmi forget the session."""
    with _PYGHMI:
        session.incommand = False
        session.logout()
