# SPDX-License-Identifier: LGPL-2.1-or-later
"""The driver of a BMC over Redfish (DMTF DSP0266), by the standard library's HTTP client.

Not by pyghmi: it opens a session for each login and never ends one, gives every step 60 s,
and cannot be given a CA file (docs/decisions/0004). Here a question has one connection and
one deadline, a session is ended, and no request is sent before the certificate is checked.

Basic authentication is tried first (DSP0266, 13.3), as it needs one request; where the service
does not offer it, a session is made, at the place that the service root names. Where several
systems are behind one service the configuration names one.

What real services do, and what is done here:

    a path without its last slash is redirected   followed, each method, within the same service
    401 without a challenge                       a session is tried
    503 or 429 with Retry-After                   asked again after that, while there is time
    200 without a body while the power changes    no answer: asked again
    a byte a second                               cut off at the deadline
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import socket
import ssl
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from agent.fence.driver import DeviceError, Pointless, Refused, always, go
from agent.ports import Still
from broker.daemon.errors import why
from scoring.observation import Power

_ROOT = "/redfish/v1/"
_RESET = "#ComputerSystem.Reset"
BODY_BYTES_MAX = 1 << 20
MEMBERS_MAX = 64
#: How often a request may be redirected, and how often it may be repeated for a busy service.
REDIRECTS_MAX = 3
PUT_OFF_MAX = 5
#: RFC 9110, 15.4. After a 303 the action is done, and its result is elsewhere.
_SAME_AGAIN = frozenset({301, 302, 307, 308})
_SEE_OTHER = 303
_BUSY = frozenset({429, 503})
#: DSP0266 13.4.2: the privilege for a Reset of a ComputerSystem; the predefined roles that have it.
_NEEDED_PRIVILEGE = "ConfigureComponents"
_ROLES = {"Administrator": True, "Operator": True, "ReadOnly": False}
#: Resource.PowerState. A system that is powering off is not off.
_POWER = {
    "On": Power.ON,
    "PoweringOn": Power.ON,
    "PoweringOff": Power.ON,
    "Paused": Power.ON,
    "Off": Power.OFF,
}

Json = dict[str, Any]


class RedfishDriver:
    """The Driver of a Redfish service. `fingerprint`: SHA-256 of its certificate, in hex; else
    the certificate must be signed by `ca_file`'s or the system's authorities, unless `verify`
    is False. `system`: Id or path of one system, empty where it has but one."""

    def __init__(
        self,
        address: str,
        port: int,
        username: str,
        password: str,
        *,
        system: str = "",
        ca_file: str | None = None,
        fingerprint: str = "",
        verify: bool = True,
    ) -> None:
        self._address = address
        self._port = port
        self._username = username
        self._password = password
        self._system = system
        self._fingerprint = fingerprint.replace(":", "").lower()
        try:
            self._tls = ssl.create_default_context(cafile=ca_file)
        except OSError as error:  # ssl.SSLError is a subclass
            raise Pointless(f"{ca_file}: no certificates to be read there: {error}") from None
        if self._fingerprint or not verify:
            self._tls.check_hostname = False
            self._tls.verify_mode = ssl.CERT_NONE
        self._path = ""

    @contextmanager
    def login(self, timeout_s: float) -> Iterator[_RedfishLogin]:
        """Connect, check the certificate; log in with the first question."""
        connection = http.client.HTTPSConnection(self._address, self._port, context=self._tls)
        service = _Service(connection, self._tls, timeout_s, self._fingerprint)
        service.basic(self._username, self._password)
        try:
            if not self._path:
                self._path = _system_path(service, self._system)
            yield _RedfishLogin(service, self._path, self._username)
        except Exception:
            self._path = ""  # after an error: a service may name its systems anew
            raise
        finally:
            service.end()


class _Service:
    """Requests over one connection, with one deadline: when it is over the connection is cut,
    whatever the service does."""

    def __init__(
        self,
        connection: http.client.HTTPSConnection,
        tls: ssl.SSLContext,
        timeout_s: float,
        fingerprint: str,
    ) -> None:
        self._connection = connection
        self._tls = tls
        self._deadline_s = time.monotonic() + timeout_s
        self._fingerprint = fingerprint
        self._headers = {"Accept": "application/json", "OData-Version": "4.0"}
        self._account: Json = {}
        self._session = ""
        self._late = threading.Timer(max(0.0, timeout_s), self._cut)
        self._late.daemon = True
        self._late.start()

    @property
    def left_s(self) -> float:
        return self._deadline_s - time.monotonic()

    def basic(self, username: str, password: str) -> None:
        """Send these credentials with each request."""
        self._account = {"UserName": username, "Password": password}
        token = base64.b64encode(f"{username}:{password}".encode()).decode()
        self._headers["Authorization"] = f"Basic {token}"

    def get(self, path: str) -> Json:
        """Get one resource."""
        data = self._ask("GET", path)
        if not data:
            raise DeviceError(f"GET {path} answers without a body")
        return data

    def post(self, path: str, body: Json, still: Still) -> None:
        """Send one action; `still` is asked right before each attempt."""
        self._ask("POST", path, body, still)

    def allows_post(self, path: str) -> str:
        """Why an action would not be accepted there, as far as that can be known without sending
        it; empty: no objection is known. A service need not support OPTIONS."""
        answer, _ = self._follow("OPTIONS", path, None)
        if answer.status in (404, 410):
            return f"OPTIONS {path} answers {answer.status}: there is no such action"
        allowed = answer.getheader("Allow", "")
        if 200 <= answer.status < 300 and allowed and "POST" not in allowed.upper():
            return f"{path} allows {allowed[:100]}, not POST"
        return ""

    def end(self) -> None:
        """End the session, if one was made, and the connection."""
        if self._session and self.left_s > 0:
            with suppress(DeviceError, OSError, http.client.HTTPException):
                self._send("DELETE", self._session, None)
        self._late.cancel()
        self._connection.close()

    def _ask(self, method: str, path: str, body: Json | None = None, still: Still = always) -> Json:
        answer, data = self._follow(method, path, body, still)
        if answer.status == 401 and self._account and not self._session:
            # DSP0266 13.3.1: the challenge, if there is one, names what the service would accept.
            offered = " ".join(answer.headers.get_all("WWW-Authenticate") or [])
            if "basic" not in offered.lower():
                self._begin_session()
                answer, data = self._follow(method, path, body, still)
        if answer.status in (401, 403):
            # 401: who asks is not known (RFC 9110, 15.5.2); 403: what is asked is not allowed.
            refusal = Refused if answer.status == 401 else Pointless
            raise refusal(f"{method} {path} is refused ({answer.status}): {_message(data)}")
        taken = method == "POST" and answer.status == _SEE_OTHER
        if not 200 <= answer.status < 300 and not taken:
            raise DeviceError(f"{method} {path} answers {answer.status}: {_message(data)}")
        return data

    def _begin_session(self) -> None:
        """Make a session at the place that the service root names (DSP0266, 13.3.4); anyone may
        read the root."""
        basic = self._headers.pop("Authorization")
        try:
            root = self.get(_ROOT)
            sessions = _object(_object(root, "Links"), "Sessions").get("@odata.id")
            path = sessions if isinstance(sessions, str) else f"{_ROOT}SessionService/Sessions"
            answer, data = self._follow("POST", path, self._account)
        except DeviceError:
            self._headers["Authorization"] = basic
            raise
        token, place = answer.getheader("X-Auth-Token"), answer.getheader("Location", "")
        if answer.status in _BUSY or answer.status >= 500:  # as at a limit of sessions
            raise DeviceError(f"POST {path} answers {answer.status}: {_message(data)}")
        if answer.status not in (200, 201) or not token:
            raise Refused(f"the login is refused ({answer.status}): {_message(data)}")
        self._headers["X-Auth-Token"] = token
        self._session = urllib.parse.urlsplit(place).path

    def _follow(
        self, method: str, path: str, body: Json | None, still: Still = always
    ) -> tuple[http.client.HTTPResponse, Json]:
        """The answer after redirections within the service, and once the service is not busy."""
        redirected = put_off = 0
        while True:
            answer, data = self._send(method, path, body, still)
            if answer.status in _SAME_AGAIN or (answer.status == _SEE_OTHER and method == "GET"):
                redirected += 1
                if redirected > REDIRECTS_MAX:
                    raise DeviceError(f"{method} {path}: redirected {redirected} times")
                path = self._place(method, path, answer)
                continue
            wait_s = _retry_after_s(answer)
            if wait_s is None or put_off >= PUT_OFF_MAX or wait_s >= self.left_s:
                return answer, data
            put_off += 1
            time.sleep(wait_s)

    def _place(self, method: str, path: str, answer: http.client.HTTPResponse) -> str:
        """The target of a redirection; Pointless where that is another service: it would get the
        password, and nothing proves whose it is."""
        asked = f"{method} {path} answers {answer.status}"
        here = f"https://{_bracketed(self._connection.host)}:{self._connection.port}"
        try:
            to = urllib.parse.urlsplit(
                urllib.parse.urljoin(here + path, answer.getheader("Location", ""))
            )
            same = (to.scheme, to.hostname, to.port or 443) == (
                "https",
                self._connection.host.lower(),
                self._connection.port,
            )
        except ValueError:
            raise Pointless(f"{asked} with a Location that is none") from None
        if not same:
            raise Pointless(
                f"{asked} and leads to {to.scheme}://{to.netloc[:100]}, another service: set its"
                " address"
            )
        found = to.path + (f"?{to.query}" if to.query else "")
        if found == path:
            raise DeviceError(f"{asked} and leads to itself")
        return found

    def _send(
        self, method: str, path: str, body: Json | None, still: Still = always
    ) -> tuple[http.client.HTTPResponse, Json]:
        if self.left_s <= 0:
            raise DeviceError("no answer in time")
        if not path.startswith("/"):
            raise DeviceError(f"the service names a path that is none: {path[:100]!r}")
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            if self._connection.sock is None:
                self._connect()
            self._connection.sock.settimeout(max(0.01, self.left_s))
            go(still)
            self._connection.request(method, path, json.dumps(body) if body else None, headers)
            answer = self._connection.getresponse()
            raw = answer.read(BODY_BYTES_MAX)
            if self.left_s <= 0:
                raise TimeoutError
        except TimeoutError:
            raise DeviceError("no answer in time") from None
        except ssl.SSLCertVerificationError as error:
            raise Pointless(
                f"its certificate is not trusted: {error.verify_message};"
                " set ca-file or fingerprint"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            if self.left_s <= 0:
                raise DeviceError("no answer in time") from None
            raise DeviceError(why(error)) from None
        try:
            data = json.loads(raw) if raw.strip() else {}
        except (ValueError, RecursionError):
            data = {}
        return answer, data if isinstance(data, dict) else {}

    def _connect(self) -> None:
        """Connect before the first request: nothing is sent to a service before it is checked."""
        host, port = self._connection.host, self._connection.port
        plain = socket.create_connection((host, port), timeout=self.left_s)
        # The socket is known before the handshake, so that the handshake can be cut as well.
        sock = self._tls.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
        self._connection.sock = sock
        try:
            sock.do_handshake()
        except BaseException:
            self._connection.close()
            raise
        if not self._fingerprint:
            return
        certificate = sock.getpeercert(binary_form=True) or b""
        found = hashlib.sha256(certificate).hexdigest()
        if found != self._fingerprint:
            raise Pointless(f"its certificate's fingerprint is {found}, not the configured one")

    def _cut(self) -> None:
        """Cut the connection at the deadline: a blocked read or write returns."""
        with suppress(OSError, AttributeError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _retry_after_s(answer: http.client.HTTPResponse) -> float | None:
    """How long a busy service asks to wait; None where it does not say."""
    text = answer.getheader("Retry-After", "")
    if answer.status not in _BUSY or not (text.isascii() and text.isdigit() and len(text) < 5):
        return None
    return max(0.1, float(text))


class _RedfishLogin:
    def __init__(self, service: _Service, path: str, username: str) -> None:
        self._service = service
        self._path = path
        self._username = username
        self._system: Json = {}

    def guid(self) -> bytes | None:
        self._system = self._service.get(self._path)
        text = self._system.get("UUID")
        with suppress(ValueError):
            return uuid.UUID(text).bytes if isinstance(text, str) else None
        return None

    def power(self) -> Power:
        # The system that was read with the GUID a moment ago is fresh; it is used once.
        system, self._system = self._system or self._service.get(self._path), {}
        return _POWER.get(str(system.get("PowerState")), Power.UNKNOWN)

    def lacks(self) -> str | None:
        """The rights that this login lacks, as far as that can be known without an order."""
        reset = self._reset()
        kinds = self._kinds(reset)
        if kinds is not None and "ForceOff" not in kinds:
            return f"its system does not offer ForceOff, but {', '.join(map(str, kinds))}"
        if problem := self._service.allows_post(_target(reset)):
            return problem
        try:
            enough = self._may_configure()
        except DeviceError:
            return None  # an account that may not read accounts
        if enough is False:
            return f"the role of {self._username} lacks {_NEEDED_PRIVILEGE}"
        return "" if enough else None

    def switch(self, on: bool, still: Still) -> None:
        kind = "On" if on else "ForceOff"
        self._service.post(_target(self._reset()), {"ResetType": kind}, still)

    def _kinds(self, reset: Json) -> list[object] | None:
        """The kinds of orders (DSP0266, 7.11 and 8.3: beside the action, or in its ActionInfo);
        None where the service does not list them."""
        kinds = reset.get("ResetType@Redfish.AllowableValues")
        info = reset.get("@Redfish.ActionInfo")
        if kinds is None and isinstance(info, str):
            given = self._service.get(info).get("Parameters")
            for one in given if isinstance(given, list) else ():
                if isinstance(one, dict) and one.get("Name") == "ResetType":
                    kinds = one.get("AllowableValues")
        return kinds if isinstance(kinds, list) else None

    def _reset(self) -> Json:
        return _object(_object(self._service.get(self._path), "Actions"), _RESET)

    def _may_configure(self) -> bool | None:
        """Whether the user's role has the privilege; None where the service does not say."""
        service = self._service.get(_link(self._service.get(_ROOT), "AccountService"))
        for path in _members(self._service.get(_link(service, "Accounts"))):
            account = self._service.get(path)
            if account.get("UserName") != self._username:
                continue
            role = account.get("RoleId")
            if role in _ROLES:
                return _ROLES[role]
            given = self._service.get(_link(_object(account, "Links"), "Role"))
            privileges = given.get("AssignedPrivileges")
            return _NEEDED_PRIVILEGE in privileges if isinstance(privileges, list) else None
        return None


def _target(reset: Json) -> str:
    """The path for the order."""
    target = reset.get("target")
    if not isinstance(target, str):
        raise DeviceError(f"its system has no action {_RESET}")
    return target


def _system_path(service: _Service, wanted: str) -> str:
    """The path of the only system, or of the wanted one."""
    if wanted.startswith("/"):
        return wanted
    paths = _members(service.get(_link(service.get(_ROOT), "Systems")))
    if wanted:
        paths = [path for path in paths if path.rstrip("/").rpartition("/")[2] == wanted]
    if len(paths) != 1:
        what = f"no system {wanted!r}" if wanted else f"{len(paths)} systems; name one by system"
        raise Pointless(f"it has {what}")
    return paths[0]


def _members(collection: Json) -> list[str]:
    members = collection.get("Members")
    found = members[:MEMBERS_MAX] if isinstance(members, list) else []
    return [m["@odata.id"] for m in found if isinstance(m, dict) and "@odata.id" in m]


def _link(resource: Json, name: str) -> str:
    path = _object(resource, name).get("@odata.id")
    if not isinstance(path, str):
        raise DeviceError(f"the service has no {name}")
    return path


def _object(resource: Json, name: str) -> Json:
    found = resource.get(name)
    return found if isinstance(found, dict) else {}


def _message(data: Json) -> str:
    """The text of a Redfish error (DSP0266, 8.6); shown, never decided on."""
    error = _object(data, "error")
    more = error.get("@Message.ExtendedInfo")
    first = more[0] if isinstance(more, list) and more and isinstance(more[0], dict) else {}
    return str(first.get("Message") or error.get("message") or "no reason given")
