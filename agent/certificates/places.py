# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files of this host's certificates: ours, and those where libvirt and QEMU look for them."""

from __future__ import annotations

import grp
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.certificates.authority import Issued
from broker.config.addresses import split
from broker.config.host_certificates import AUTHORITY, AUTHORITY_OF_QEMU, OF_LIBVIRT, OF_QEMU
from broker.config.sections import Config
from broker.daemon.atomic_file import write_atomically

#: Beside the configuration: the authority, root's alone; this host's certificate and its key.
AUTHORITY_FILE, HOST_FILE, HOST_KEY_FILE = "authority.pem", "host.pem", "host.key"
#: The daemons look at the target of a migration as a client of its libvirt.
GROUP = "ha-agent"
#: The group that QEMU runs as where qemu.conf does not say: Debian's, then EL's and Fedora's.
_QEMU_GROUPS = ("libvirt-qemu", "qemu")


@dataclass(frozen=True, slots=True)
class Place:
    """A file: `what` it holds (authority, certificate or key), and whose it is."""

    path: Path
    what: str
    mode: int = 0o644
    group: str = ""


def host_places(config: Config, folder: Path) -> list[Place]:
    """All files that a host's certificate goes to; `folder`: of the configuration."""
    root, qemu = Path(config.libvirt.pki_dir), _group_of_qemu(Path(config.libvirt.qemu_conf))
    return [
        Place(folder / HOST_KEY_FILE, "key", 0o640, GROUP),
        Place(folder / HOST_FILE, "certificate"),
        Place(root / AUTHORITY, "authority"),
        Place(root / "libvirt/private/serverkey.pem", "key", 0o600),
        Place(root / "libvirt/private/clientkey.pem", "key", 0o640, GROUP),
        *(Place(root / name, "certificate") for name in OF_LIBVIRT),
        Place(root / AUTHORITY_OF_QEMU, "authority"),
        Place(root / "qemu/server-key.pem", "key", 0o640, qemu),
        Place(root / "qemu/client-key.pem", "key", 0o640, qemu),
        *(Place(root / name, "certificate") for name in OF_QEMU),
    ]


def write(places: list[Place], issued: Issued, authority: bytes) -> None:
    """Write them all; OSError. `authority`: its certificate."""
    held = {"authority": authority, "certificate": issued.certificate, "key": issued.key}
    for place in places:
        for folder in reversed(place.path.parents):
            if not folder.exists():
                folder.mkdir()
                folder.chmod(
                    0o755
                )  # whatever root's umask: libvirt, QEMU and the daemons read there
        write_atomically(place.path, held[place.what], place.mode, place.group)


def names_of(config: Config) -> tuple[str, ...]:
    """The names and addresses by which others may reach this host, each once: its own name, which
    stands in the others' URIs; what libvirt here calls the host; where our own server listens."""
    return tuple(dict.fromkeys(name for name in _names(config) if name))


def _names(config: Config) -> Iterator[str]:
    yield config.host_name.removesuffix(".").strip("[]")
    system = socket.gethostname()
    yield system
    try:
        # As libvirt makes the name that a migration's data is sent to.
        found = socket.getaddrinfo(system, None, flags=socket.AI_CANONNAME)
    except OSError:
        found = []
    yield from (name for *_, name, _ in found if name)
    for place in (*config.api.listen, *config.api.tls_listen, *(config.api.advertise or ())):
        host, _ = split(place)
        yield "" if host in ("0.0.0.0", "::") else host  # noqa: S104  compared with, not bound


def _group_of_qemu(conf: Path) -> str:
    try:
        said = re.findall(r'^\s*group\s*=\s*"([^"]+)"', conf.read_text(errors="replace"), re.M)
    except OSError:
        said = []
    for name in (*said, *_QEMU_GROUPS):
        try:
            return grp.getgrnam(name.removeprefix("+")).gr_name
        except KeyError:
            continue
    return ""
