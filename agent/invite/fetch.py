# SPDX-License-Identifier: LGPL-2.1-or-later
"""The newcomer's side: asks the member of a token for the offer. Blocking, with a deadline.

The member is known by its certificate alone, whose fingerprint is in the token: the secret is sent
after that was compared, so that who stands in for the member does not learn it.
"""

from __future__ import annotations

import socket
import ssl

import msgspec

from agent.invite.offer import ANSWER_BYTES_MAX, Answer, Asked, Offer
from agent.invite.token import NoToken, Token, fingerprint_of, read
from agent.terminal.errors import CommandError
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign import clean
from broker.daemon.foreign_json import decoded

CONNECT_S, TALK_S = 10.0, 20.0
AGAIN = "type ha-agent invite on a member again"


def fetched(text: str, host: str) -> Offer:
    """The offer for a token; CommandError, in one sentence. `host`: this host's name."""
    try:
        token = read(text)
    except NoToken as error:
        raise CommandError(ExitCode.USAGE, f"TOKEN: {error}") from None
    said = []
    for address in token.addresses:
        where = f"[{address}]:{token.port}" if ":" in address else f"{address}:{token.port}"
        try:
            with socket.create_connection((address, token.port), CONNECT_S) as plain:
                return _talk(token, plain, where, host)
        except ssl.SSLError:
            said.append(f"{where}: who answers speaks no TLS that this host knows")
        except OSError as error:
            said.append(f"{where}: {error.strerror or 'no answer'}")
    raise CommandError(
        ExitCode.FAILED,
        f"{'; '.join(said)}: the token holds for ten minutes and once, and needs tcp {token.port}"
        f" open on the member; {AGAIN}",
    )


def _talk(token: Token, plain: socket.socket, where: str, host: str) -> Offer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Which certificate it must be is in the token: no authority and no name is asked.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with context.wrap_socket(plain) as talk:
        talk.settimeout(TALK_S)
        if fingerprint_of(talk.getpeercert(binary_form=True) or b"") != token.fingerprint:
            raise CommandError(
                ExitCode.REFUSED,
                f"{where}: who answers is not the member that made this token (its certificate is"
                f" another one), and the secret was not said; {AGAIN}",
            )
        talk.sendall(msgspec.json.encode(Asked(token.secret.hex(), host)) + b"\n")
        answer = _answer(talk, where)
    if answer.offer is None:
        raise CommandError(ExitCode.REFUSED, f"{where}: {clean(answer.problem)}")
    return answer.offer


def _answer(talk: ssl.SSLSocket, where: str) -> Answer:
    data = b""
    while not data.endswith(b"\n") and len(data) <= ANSWER_BYTES_MAX:
        part = talk.recv(64 * 1024)
        if not part:
            break
        data += part
    try:
        return decoded(data, Answer)
    except msgspec.MsgspecError:
        pass
    text = "closed without an answer: too many asked it at once; try again in a minute"
    raise CommandError(ExitCode.REFUSED, f"{where}: {text if not data else 'answered in part'}")
