# SPDX-License-Identifier: LGPL-2.1-or-later
"""The certificates that this host shows to others, in the files where libvirt, QEMU and our own
server look for them, and when each ends."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from broker.config.addresses import is_over_tls
from broker.config.sections import Config

if TYPE_CHECKING:
    from cryptography import x509

DAY_S = 86_400.0
#: A file of certificates is not larger.
BYTES_MAX = 1024 * 1024
#: Below `libvirt.pki-dir`, as libvirt's remote.html ("Public key infrastructure") and QEMU's
#: default_tls_x509_cert_dir (qemu.conf) have them.
AUTHORITY = "CA/cacert.pem"
OF_LIBVIRT = ("libvirt/servercert.pem", "libvirt/clientcert.pem")
OF_QEMU = ("qemu/server-cert.pem", "qemu/client-cert.pem")
AUTHORITY_OF_QEMU = "qemu/ca-cert.pem"


@dataclass(frozen=True, slots=True)
class Ends:
    """One file with a certificate. `ends`: UTC seconds since 1970; None: not known, and `problem`
    says why."""

    path: str
    ends: float | None
    problem: str = ""

    def days_left(self, now: float) -> int | None:
        """Whole days until then, negative when it has ended; `now`: UTC seconds since 1970."""
        return None if self.ends is None else int((self.ends - now) // DAY_S)


def shown_files(config: Config) -> list[Path]:
    """The files that count for this host: libvirt's and QEMU's where the VM is migrated over TLS,
    ours where we answer over TLS."""
    found = []
    if is_over_tls(config.libvirt.migration_uri):
        root = Path(config.libvirt.pki_dir)
        found += [root / name for name in (AUTHORITY, *OF_LIBVIRT, *OF_QEMU)]
    if config.api.tls_listen and config.api.certificate is not None:
        found.append(Path(config.api.certificate))
    return found


def all_ends(config: Config) -> list[Ends]:
    """When each of those that are there ends: a site may have libvirt look elsewhere. Reads
    files, and loads a library at the first call."""
    return [ends_of(path) for path in shown_files(config) if path.exists()]


def ends_of(path: Path) -> Ends:
    """When the first certificate in a file ends."""
    from cryptography import x509  # only where certificates are used: it costs 20 MB

    try:
        with path.open("rb") as file:
            found = x509.load_pem_x509_certificate(file.read(BYTES_MAX))
    except OSError as error:
        return Ends(str(path), None, error.strerror or "cannot be read")
    except ValueError:
        return Ends(str(path), None, "holds no certificate in PEM")
    return Ends(str(path), end_of(found).timestamp())


def end_of(certificate: x509.Certificate) -> datetime.datetime:
    """When it ends."""
    # Before version 42 of the library its times are UTC without saying so.
    end: datetime.datetime | None = getattr(certificate, "not_valid_after_utc", None)
    return end or certificate.not_valid_after.replace(tzinfo=datetime.UTC)
