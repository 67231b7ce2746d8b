# SPDX-License-Identifier: LGPL-2.1-or-later
"""Orders and maintenance for another host (`--host NAME`): asks that host's broker, signed with the
cluster key (broker/peers/member_request.py). Who may read the key may ask: root, and the daemons.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from agent.terminal.errors import CommandError
from broker.client.ask import BrokerError, BrokerRefused, ask, refusal
from broker.client.other_host import ask_host
from broker.config.cluster_key import ClusterKey
from broker.config.secrets import load_cluster_key
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign import clean
from broker.daemon.foreign_json import decoded
from broker.peers.errors import BadAnswer
from broker.peers.heartbeat import new_nonce
from broker.peers.member_request import (
    CHALLENGE_PATH,
    PATH,
    AskOrder,
    Given,
    GiveOrder,
    Request,
    SetMaintenance,
    Wanted,
    answer_to,
    request_bytes,
)
from broker.peers.signed_answer import ANSWER_BYTES_MAX
from broker.wire.status import HostStatus, Maintenance, NewOrder, OrderStatus, Status

#: Time for one request; the other broker waits for no storage but for the file of its mode.
ASK_S = 5.0

#: A status of 2000 hosts has 3 MB.
STATUS_BYTES_MAX = 16 * 2**20
NOT_FOUND = 404
#: The answer of a broker that does not know the challenge.
EARLIER = "its broker is of an earlier version, and takes no orders from here"

T = TypeVar("T")


def host_named(status: Status, name: str, option: str) -> HostStatus:
    """A host by its id or its name; CommandError, which names `option`, where there is none."""
    found = [host for host in status.hosts.values() if name in (str(host.host_id), host.hostname)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{host.hostname} ({host.host_id})" for host in status.hosts.values())
    why = "more than one host has that name, give its id" if found else "no such host"
    raise CommandError(ExitCode.USAGE, f"{option} {name}: {why}; there are: {known}")


@dataclass(frozen=True, slots=True)
class OtherHost:
    """Another host, to be asked. `own`: this host's id; `who`: the person, user@host."""

    host: HostStatus
    own: int
    who: str
    key: ClusterKey

    def place(self, order: NewOrder) -> OrderStatus:
        """Give the order to its agent. CommandError, as all of these."""
        return self._asked(GiveOrder(order), OrderStatus)

    def look(self, number: int) -> OrderStatus:
        """The state of an order."""
        return self._asked(AskOrder(number), OrderStatus)

    def set_local(self, wanted: Maintenance) -> None:
        """Set or end its local maintenance."""
        self._asked(SetMaintenance("local", wanted), Maintenance)

    def status(self) -> Status:
        """The cluster as that host sees it. Anybody may read that: it is not signed."""
        for address in self.host.api:
            try:
                raw = ask_host(address, "GET", "/api/v1/status", STATUS_BYTES_MAX, ASK_S)
                return decoded(raw, Status)
            except (BrokerError, msgspec.MsgspecError):
                continue
        raise CommandError(ExitCode.BROKER_DOWN, f"{self.host.hostname} cannot be asked")

    def _asked(self, wanted: Wanted, kind: type[T]) -> T:
        """The answer to one request. Where it is lost the request is not repeated: an order may
        have been given."""
        name, (address, challenge) = self.host.hostname, self._challenge()
        request = Request(
            asker=self.own,
            asked=self.host.host_id,
            who=self.who,
            challenge=challenge,
            nonce=new_nonce(),
            body=msgspec.json.encode(wanted).decode(),
        )
        try:
            body = request_bytes(self.key, request)
            raw = ask_host(address, "POST", PATH, ANSWER_BYTES_MAX, ASK_S, body)
            answer = answer_to(self.key, raw, request)
        except (BrokerError, BadAnswer) as error:
            raise CommandError(
                ExitCode.FAILED,
                f"{name} ({address}) gave no answer that counts: {error};"
                " whether it does what was asked is not known: ha-agent --status",
            ) from None
        if answer.status != 200:
            said = clean(refusal(answer.status, answer.body.encode()))
            raise CommandError(ExitCode.REFUSED, f"{name} refuses: {said}")
        try:
            return decoded(answer.body, kind)
        except msgspec.MsgspecError as error:
            raise CommandError(
                ExitCode.FAILED,
                f"{name} ({address}) has done it, and says so in a form that is not known here:"
                f" {error}; is it of another version? ha-agent --status",
            ) from None

    def _challenge(self) -> tuple[str, str]:
        """The first of its addresses that answers, and its challenge."""
        name, problem = self.host.hostname, "it publishes no address (api.listen)"
        for address in self.host.api:
            try:
                raw = ask_host(address, "GET", CHALLENGE_PATH, ANSWER_BYTES_MAX, ASK_S)
                return address, decoded(raw, Given).challenge
            except BrokerRefused as error:
                why = EARLIER if error.status == NOT_FOUND else str(error)
                problem = f"{address}: {why}"
            except (BrokerError, msgspec.MsgspecError) as error:
                problem = f"{address}: {error}"
        raise CommandError(
            ExitCode.BROKER_DOWN,
            f"{name} cannot be asked: {problem}; its api.listen must be reached from here, or type"
            " the command there",
        )


def other_host(config: Config, name: str | None) -> OtherHost | None:
    """The host that `--host` names; None: it is this one, or none is named. Raises as `ask` does,
    CommandError, and ConfigError where the cluster key cannot be read."""
    if name is None:
        return None
    status = ask(config.daemon.socket, "GET", "/v1/status", Status)
    host = host_named(status, name, "--host")
    if host.host_id == status.host_id:
        return None
    key = load_cluster_key(config)
    if key is None:
        raise CommandError(
            ExitCode.CONFIG,
            "--host: there is no cluster-key here, with which hosts know each other (ha-agent"
            " config check); type the command on that host",
        )
    return OtherHost(host, status.host_id, f"{getpass.getuser()}@{config.host_name}", key)
