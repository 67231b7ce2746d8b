# SPDX-License-Identifier: LGPL-2.1-or-later
"""A request of one member to another: an order to its agent, or a maintenance mode. Pure.

Every holder of the cluster key may ask, since the key allows everything else as well; for a person,
a command that can read the secrets file signs the request. But an old request must not work again:
an overheard "power off" could be sent at any later time. So the asked host first issues a
challenge, and accepts it once.

Rules of this file:

1. A challenge is made by the asked host, for anybody: it costs no memory there. It holds for
   FRESH_S, in the process that made it, and for one request with a valid MAC.
2. Request and answer are signed with the cluster key, over texts that no other message can be:

       ha-agent member request 1 \\n asker \\n asked \\n who \\n challenge \\n nonce \\n body
       ha-agent member answer 1 \\n asked \\n nonce \\n status \\n body

   No field can hold a newline. The body is JSON. `who` is for people: user@host.
3. The MAC is checked before the challenge is taken: nobody else can use it up.
4. An answer carries the nonce of the request: it is the answer to this request, by a member.
"""

from __future__ import annotations

import hmac
import re
import secrets
from typing import Annotated, Literal

from msgspec import Meta, Struct

from broker.config.cluster_key import ClusterKey
from broker.daemon.foreign_json import decoded
from broker.peers.errors import BadAnswer
from broker.peers.heartbeat import Nonce
from broker.peers.signed_answer import Mac, answer_bytes, answer_in, has_mac, signed_text
from broker.wire.status import Maintenance, NewOrder

CHALLENGE_PATH = "/member-challenge"
PATH = "/member-request"
#: How long a challenge holds.
FRESH_S = 10.0
#: Requests within FRESH_S, of all members; more are refused.
TAKEN_MAX = 1000
_SECRET_BYTES, _RANDOM_BYTES = 32, 16
_CHALLENGE = re.compile(r"([0-9a-f]{1,16})\.([0-9a-f]{32})\.([0-9a-f]{64})")

_Line = Annotated[str, Meta(pattern=r"^[^\n]*\Z", max_length=200)]
Body = Annotated[str, Meta(pattern=r"^[^\n]*\Z", max_length=2048)]
HostId = Annotated[int, Meta(ge=1, le=2000)]


class Challenges:
    """Makes challenges, and takes each once."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._taken: dict[str, float] = {}

    def new(self, now_s: float) -> str:
        """A challenge that nobody can have known before. `now_s`: a monotonic time, not below 0."""
        begins = f"{int(now_s * 1000):x}.{secrets.token_hex(_RANDOM_BYTES)}"
        return f"{begins}.{self._mac(begins)}"

    def take(self, challenge: str, now_s: float) -> bool:
        """Take a challenge back; False: it is not of here, too old, or was taken before."""
        found = _CHALLENGE.fullmatch(challenge)
        if found is None or not hmac.compare_digest(self._mac(f"{found[1]}.{found[2]}"), found[3]):
            return False
        self._taken = {
            one: made_s for one, made_s in self._taken.items() if self._is_fresh(made_s, now_s)
        }
        made_s = int(found[1], 16) / 1000
        if not self._is_fresh(made_s, now_s) or challenge in self._taken:
            return False
        if len(self._taken) >= TAKEN_MAX:
            return False
        self._taken[challenge] = made_s
        return True

    def _is_fresh(self, made_s: float, now_s: float) -> bool:
        # Rounded down to a millisecond, it may seem to be made a little before now.
        return -0.001 <= now_s - made_s <= FRESH_S

    def _mac(self, text: str) -> str:
        return hmac.digest(self._secret, text.encode(), "sha256").hex()


class Given(Struct, frozen=True):
    """The answer to who asks for a challenge. `host_id`: of the host that gives it."""

    challenge: str
    host_id: HostId


class GiveOrder(Struct, frozen=True, tag="order"):
    """Give this order to the agent; answered with an OrderStatus."""

    order: NewOrder


class AskOrder(Struct, frozen=True, tag="order-status"):
    """Answered with the OrderStatus of this number."""

    number: Annotated[int, Meta(ge=0, le=10**15)]


class SetMaintenance(Struct, frozen=True, tag="maintenance"):
    """Set or end the local mode; answered with the Maintenance."""

    mode: Literal["local"]
    wanted: Maintenance


Wanted = GiveOrder | AskOrder | SetMaintenance


class Request(Struct, frozen=True):
    """`asker`, `asked`: host ids; `who`: the person; `body`: a Wanted as JSON."""

    asker: HostId
    asked: HostId
    who: _Line
    challenge: _Line
    nonce: Nonce
    body: Body
    mac: Mac = ""

    @property
    def wanted(self) -> Wanted:
        """What is asked for; msgspec.MsgspecError where this version does not know it."""
        found: Wanted = decoded(self.body, Wanted)
        return found

    def is_from(self, key: ClusterKey) -> bool:
        """Whether a holder of the key has asked this."""
        return has_mac(key, _request_text(self), self.mac)


class Answer(Struct, frozen=True):
    """`status`: as of HTTP; `body`: JSON, a Problem where the status is not 200."""

    asked: HostId
    nonce: Nonce
    status: Annotated[int, Meta(ge=100, le=599)]
    body: Body
    mac: Mac = ""


def request_bytes(key: ClusterKey, request: Request) -> bytes:
    """The signed request as bytes."""
    return answer_bytes(key, request, _request_text(request))


def signed_answer(key: ClusterKey, request: Request, status: int, body: bytes) -> bytes:
    """The signed answer to a good request, as bytes."""
    made = Answer(request.asked, request.nonce, status, body.decode())
    return answer_bytes(key, made, _answer_text(made))


def answer_to(key: ClusterKey, raw: bytes, request: Request) -> Answer:
    """The answer; BadAnswer where it is none to this request by a holder of the key."""
    found = answer_in(key, raw, Answer, _answer_text)
    if (found.asked, found.nonce) != (request.asked, request.nonce):
        raise BadAnswer("an answer to another request")
    return found


def _request_text(request: Request) -> bytes:
    hosts = str(request.asker), str(request.asked)
    rest = request.who, request.challenge, request.nonce, request.body
    return signed_text("ha-agent member request 1", *hosts, *rest)


def _answer_text(found: Answer) -> bytes:
    said = found.nonce, str(found.status), found.body
    return signed_text("ha-agent member answer 1", str(found.asked), *said)
