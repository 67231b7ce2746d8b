# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent invite`: prints a token, with which a new host joins: `ha-agent join TOKEN` there.

The token is answered by a process that this command leaves behind (agent/invite/server.py), which
gives the files out once, within ten minutes.
"""

from __future__ import annotations

import argparse
import datetime
import grp
import os
import pwd
import secrets
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.certificates.places import AUTHORITY_FILE
from agent.invite.offer import FIRST_PORT, HOLDS_S, PORTS, SAYS_S, Ids, Offer, Spec
from agent.invite.token import ADDRESSES_MAX, SECRET_BYTES, Token, fingerprint_of, written
from agent.setup.answers import FAR_AWAY, own_address
from agent.setup.fetched import lay
from agent.setup.written import Files, checked, read_text
from agent.terminal import in_json
from agent.terminal.errors import CommandError
from broker.config.addresses import split
from broker.config.secrets import SERVICE_USER
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign_toml import tables
from broker.daemon.version import VERSION

_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  what they are compared with
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
SANLOCK = "sanlock"
#: The dates of the certificate are not checked, since the newcomer's clock may be wrong.
_DAY = datetime.timedelta(days=1)


def run(arguments: argparse.Namespace, as_json: bool) -> int:
    """Print the token and leave the process behind; OK, or CommandError."""
    files = Files(Path(arguments.config).absolute())
    offer = offered(files)
    if arguments.folder:
        folder = Path(arguments.folder).absolute()
        lay(offer, folder)
        if as_json:
            in_json.show({"folder": str(folder)}, indent=None)
        else:
            print(f"on the new host: ha-agent join --from {folder}")
        return ExitCode.OK
    config = checked(offer.config, files.config)
    addresses = _addresses(config, arguments.address)
    certificate, der = _certificate()
    secret = secrets.token_bytes(SECRET_BYTES)
    port, sockets = _listening(addresses)
    spec = Spec(tuple(sock.fileno() for sock in sockets), certificate, secret.hex(), offer)
    process = _leave(spec)
    token = written(Token(addresses, port, fingerprint_of(der), secret))
    if as_json:
        in_json.show({"token": token, "port": port, "seconds": HOLDS_S, "pid": process.pid})
    else:
        print(token)
        if sys.stdout.isatty():
            print(
                f"on the new host, once, within {HOLDS_S / 60:.0f} minutes: ha-agent join TOKEN"
                f" (it asks tcp {port} here)"
            )
    return ExitCode.OK


def offered(files: Files) -> Offer:
    """The files that this member hands out; CommandError if one is missing."""
    if files.host_id() is None:
        raise CommandError(
            ExitCode.CONFIG,
            f"{files.config}: this host is a member of no cluster, and can invite to none; use:"
            " ha-agent init",
        )
    config = checked(files.text(), files.config)
    secret_file = Path(config.daemon.secrets)
    text = read_text(secret_file, ExitCode.CONFIG)
    try:
        key = tables(text).get("cluster-key", "")
    except tomllib.TOMLDecodeError:
        raise CommandError(ExitCode.CONFIG, f"{secret_file}: is not TOML; mend it") from None
    if not key:
        raise CommandError(
            ExitCode.CONFIG,
            f"{secret_file}: has no cluster-key to hand on; where it is a credential of systemd,"
            " copy it to the new host as here, and use: ha-agent join --from FOLDER",
        )
    definition = read_text(Path(config.vm.definition))
    if not definition:
        raise CommandError(ExitCode.DEFINITION, f"{config.vm.definition}: is not there")
    return Offer(
        config=files.text(),
        secrets=text,
        definition=definition,
        ids=ids_here(),
        version=VERSION,
        authority=read_text(files.folder / AUTHORITY_FILE),
    )


def ids_here() -> dict[str, Ids]:
    """The numbers of the users of this host that write to the storage, by name; users that do not
    exist here are left out."""
    found = {}
    for name in (SERVICE_USER, SANLOCK):
        try:
            found[name] = Ids(pwd.getpwnam(name).pw_uid, grp.getgrnam(name).gr_gid)
        except KeyError:
            continue
    return found


def _addresses(config: Config, given: list[str] | None) -> tuple[str, ...]:
    """Where the newcomer asks: as given, else where this host answers the others, else its address
    on the way to anywhere; CommandError where there is none."""
    found = list(given or [])
    if not found:
        places = (*(config.api.advertise or ()), *config.api.listen, *config.api.tls_listen)
        hosts = [split(place)[0] for place in places]
        found = [host for host in hosts if host not in (*_EVERYWHERE, *_LOOPBACK)]
    if not found:
        found = [address for address in map(own_address, FAR_AWAY) if address]
    if not found:
        raise CommandError(
            ExitCode.USAGE,
            "--address is missing: this host listens on no address of the network (api.listen),"
            " and has no way out that would show one; name the one that the new host reaches",
        )
    return tuple(dict.fromkeys(found))[:ADDRESSES_MAX]


def _listening(addresses: tuple[str, ...]) -> tuple[int, list[socket.socket]]:
    """Sockets at these addresses, at the first port that is free at all of them; CommandError."""
    problem = ""
    for port in range(FIRST_PORT, FIRST_PORT + PORTS):
        sockets: list[socket.socket] = []
        try:
            for address in addresses:
                family, kind, _, _, place = socket.getaddrinfo(
                    address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )[0]
                sock = socket.socket(family, kind)
                sockets.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(place)
                sock.listen()
            return port, sockets
        except OSError as error:
            problem = f"{address}: {error.strerror}"
            for sock in sockets:
                sock.close()
            if isinstance(error, socket.gaierror):
                break
    raise CommandError(
        ExitCode.FAILED,
        f"{problem}: cannot listen at tcp {FIRST_PORT} to {FIRST_PORT + PORTS - 1}; each open"
        f" invitation has one for up to {(HOLDS_S + SAYS_S) / 60:.0f} minutes",
    )


def _certificate() -> tuple[str, bytes]:
    """A new key with its certificate, in PEM; and the certificate in DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ha-agent invite")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    text = (pem + made.public_bytes(serialization.Encoding.PEM)).decode()
    return text, made.public_bytes(serialization.Encoding.DER)


def _leave(spec: Spec) -> subprocess.Popen[bytes]:
    """Start the process, which outlives this command."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": os.pathsep.join(part for part in sys.path if part),
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "agent.invite.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=spec.sockets,
            start_new_session=True,
            cwd="/",
            env=environment,
        )
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(msgspec.json.encode(spec))
        return process
    except OSError as error:
        raise CommandError(
            ExitCode.FAILED, f"the process that answers was not started: {error.strerror}"
        ) from None
