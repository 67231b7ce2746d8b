# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Redfish service with the moods of real ones, after DMTF DSP0266 and DSP0268 (paths and
property names); sushy-tools' emulator, which is not ours, stands beside it in the tests."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme

PASSWORD = "s3cret+/word"
SYSTEM = "/redfish/v1/Systems/437XR1138R2"
RESET = f"{SYSTEM}/Actions/ComputerSystem.Reset"
SESSIONS = "/redfish/v1/SessionService/Sessions"


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that does not like the certificate hangs up: as it should."""


class RedfishBmc:
    """A running service on 127.0.0.1. Moods, to be set at any time:

    `off_answer`: the status to a ForceOff of a system that is off; `late_s`: how long PowerState
    lags behind; `basic`: whether it takes basic authentication; `silent`: it answers nothing;
    `leak`: its errors quote the password; `role`: of the user. `slash`: a path without its last
    slash is redirected, with these statuses for GET and for POST; `elsewhere`: to another service.
    `challenge`: whether a 401 says what it would take. `sessions_at`: where sessions are made.
    `full`: so many logins find no room for another session. `busy`, `busy_orders`: so many
    requests, so many orders are put off. `blank`: so many GETs of
    the system have no body. `drip_s`: between two bytes of an answer. `state`: PowerState,
    whatever is. `allow`: what OPTIONS of the action allows; None: it knows no OPTIONS. `info`:
    what may be ordered stands in an ActionInfo of its own.
    """

    def __init__(self, directory: Path, uuid: str | None, power: bool = True) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        self.ca_file = directory / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        self.certificate = certificate.cert_chain_pems[0].bytes()
        self.uuid, self.on = uuid, power
        self.orders: list[str] = []
        self.requests: list[str] = []
        self.sessions: set[str] = set()
        self.off_answer, self.late_s, self.basic = 204, 0.0, True
        self.silent, self.leak, self.role = False, False, "Administrator"
        self.slash: tuple[int, int] | None = None
        self.elsewhere = ""
        self.challenge, self.sessions_at = True, SESSIONS
        self.busy = self.busy_orders = self.blank = self.full = 0
        self.shows_on_until_ordered = False
        self.drip_s = 0.0
        self.state: str | None = None
        self.allow: str | None = None
        self.kinds = ["On", "ForceOff", "ForceRestart"]
        self.info = False
        self._shown: tuple[bool, float] = (power, 0.0)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(tls)
        self._server = _QuietServer(("127.0.0.1", 0), self._handler())
        self._server.socket = tls.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def hang(self) -> None:
        self.silent = True

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # --- what it says -----------------------------------------------------------------------

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any, Any]:
        """(status, body, headers) of a request that is authenticated."""
        path = path.rstrip("/")
        if method == "POST" and path == RESET:
            return self._reset(str(body.get("ResetType")))
        if method == "DELETE" and path.startswith(self.sessions_at):
            self.sessions.discard(path.rpartition("/")[2])
            return 204, None, {}
        if method == "GET" and path == SYSTEM and self.blank:
            self.blank -= 1
            return 200, None, {}
        resource = self._resources().get(path)
        return (
            (404, self._error("there is no such thing"), {})
            if resource is None
            else (200, resource, {})
        )

    def _reset(self, kind: str) -> tuple[int, Any, Any]:
        if self.role == "ReadOnly":
            return 403, self._error("Insufficient privilege"), {}
        if kind not in ("On", "ForceOff"):
            return 400, self._error(f"{kind} is not taken"), {}
        self.orders.append(kind)
        if self.shows_on_until_ordered:
            self.show_now()
        if kind == "ForceOff" and not self.on:
            return self.off_answer, self._error("The system is already off"), {}
        self._shown = (self.on, time.monotonic() + self.late_s)
        self.on = kind == "On"
        return 204, None, {}

    @property
    def _power_state(self) -> str:
        old, until_s = self._shown
        return "On" if (old if time.monotonic() < until_s else self.on) else "Off"

    def show_now(self) -> None:
        """Show what is."""
        self._shown = (self.on, 0.0)

    def show_on_until_ordered(self) -> None:
        """Show On until the next order, whatever is."""
        self.show_on(600.0)
        self.shows_on_until_ordered = True

    def show_on(self, seconds: float) -> None:
        """Show On for a while, whatever is."""
        self._shown = (True, time.monotonic() + seconds)

    def _resources(self) -> dict[str, Any]:
        accounts = "/redfish/v1/AccountService/Accounts"
        reset = {"target": RESET, "ResetType@Redfish.AllowableValues": self.kinds}
        if self.info:
            reset = {"target": RESET, "@Redfish.ActionInfo": f"{SYSTEM}/ResetActionInfo"}
        values = [{"Name": "ResetType", "Required": True, "AllowableValues": self.kinds}]
        return {
            f"{SYSTEM}/ResetActionInfo": {"Parameters": values},
            "/redfish/v1": {
                "Systems": {"@odata.id": "/redfish/v1/Systems"},
                "AccountService": {"@odata.id": "/redfish/v1/AccountService"},
                "Links": {"Sessions": {"@odata.id": self.sessions_at}},
            },
            "/redfish/v1/Systems": {"Members": [{"@odata.id": SYSTEM}]},
            SYSTEM: {
                "Id": "437XR1138R2",
                "UUID": self.uuid,
                "PowerState": self._power_state if self.state is None else self.state,
                "Actions": {"#ComputerSystem.Reset": reset},
            },
            "/redfish/v1/AccountService": {"Accounts": {"@odata.id": accounts}},
            accounts: {"Members": [{"@odata.id": f"{accounts}/1"}, {"@odata.id": f"{accounts}/2"}]},
            f"{accounts}/1": {"UserName": "root", "RoleId": "Administrator"},
            f"{accounts}/2": {"UserName": "admin", "RoleId": self.role},
        }

    def _error(self, text: str) -> dict[str, Any]:
        if self.leak:
            text += f" (user admin, password {PASSWORD})"
        return {"error": {"code": "Base.1.8.GeneralError", "message": text}}

    # --- HTTP --------------------------------------------------------------------------------

    def _handler(bmc) -> type[BaseHTTPRequestHandler]:  # noqa: N805  (self is the request's)
        token = "Basic " + base64.b64encode(f"admin:{PASSWORD}".encode()).decode()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10

            def _serve(self) -> None:
                bmc.requests.append(f"{self.command} {self.path}")
                while bmc.silent:
                    time.sleep(0.02)
                length = int(self.headers.get("Content-Length", "0"))
                body = json.loads(self.rfile.read(length) or b"{}")
                self._say(*self._answer(body))

            def _answer(self, body: dict[str, Any]) -> tuple[int, Any, Any]:
                if bmc.busy:
                    bmc.busy -= 1
                    return 503, bmc._error("The service is busy"), {"Retry-After": "0"}
                if bmc.busy_orders and "ResetType" in body:
                    bmc.busy_orders -= 1
                    return 503, bmc._error("The service is busy"), {"Retry-After": "0"}
                if bmc.slash is not None and not self.path.endswith("/"):
                    status = bmc.slash[self.command == "POST"]
                    return status, None, {"Location": f"{bmc.elsewhere}{self.path}/"}
                if self.command == "OPTIONS":
                    if bmc.allow is None:
                        return 405, bmc._error("not that"), {}
                    return 200, None, {"Allow": bmc.allow}
                if self.command == "POST" and self.path.rstrip("/") == bmc.sessions_at:
                    if body != {"UserName": "admin", "Password": PASSWORD}:
                        return 401, bmc._error("wrong user or password"), {}
                    if bmc.full:
                        bmc.full -= 1
                        return 503, bmc._error("The session limit is exceeded"), {}
                    bmc.sessions.add("s1")
                    place = f"https://127.0.0.1:{bmc.port}{bmc.sessions_at}/s1"
                    return 201, {}, {"X-Auth-Token": "t1", "Location": place}
                known = self.headers.get("X-Auth-Token") == "t1" and bool(bmc.sessions)
                known = known or (bmc.basic and self.headers.get("Authorization") == token)
                if not known and self.path != "/redfish/v1/":
                    challenge = "Basic realm=x" if bmc.basic else "X-Auth-Token"
                    headers = {"WWW-Authenticate": challenge} if bmc.challenge else {}
                    return 401, bmc._error("who are you?"), headers
                return bmc.answer(self.command, self.path, body)

            def _say(self, status: int, body: Any, headers: dict[str, str]) -> None:
                raw = b"" if body is None or status == 204 else json.dumps(body).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                for byte in raw if bmc.drip_s else b"":
                    self.wfile.write(bytes([byte]))
                    time.sleep(bmc.drip_s)
                self.wfile.write(b"" if bmc.drip_s else raw)

            do_GET = do_POST = do_DELETE = do_OPTIONS = _serve  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        return Handler
