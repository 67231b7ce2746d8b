# SPDX-License-Identifier: LGPL-2.1-or-later
"""Certificates for libvirt and QEMU of a lab's hosts, so that they talk by TLS over the lab's
network: one authority per lab, one certificate per host, good as server and as client."""

from __future__ import annotations

from pathlib import Path

import trustme

from .layout import HostLayout

#: Where a host sees its own, below its private /etc/libvirt.
FOLDER = "/etc/libvirt/pki"
#: The names that libvirt (remote.html, "Public key infrastructure") and QEMU (qemu.conf,
#: migrate_tls_x509_cert_dir) look for in such a folder.
_AUTHORITY = ("cacert.pem", "ca-cert.pem")
_CHAIN = ("servercert.pem", "clientcert.pem", "server-cert.pem", "client-cert.pem")
_KEY = ("serverkey.pem", "clientkey.pem", "server-key.pem", "client-key.pem")


def write(hosts: list[HostLayout]) -> None:
    """Make them all anew."""
    authority = trustme.CA()
    for host in hosts:
        issued = authority.issue_cert(host.name, host.address)
        folder = host.etc / "libvirt/pki"
        folder.mkdir(parents=True, exist_ok=True)
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        _write(folder, _AUTHORITY, authority.cert_pem.bytes())
        _write(folder, _CHAIN, chain)
        _write(folder, _KEY, issued.private_key_pem.bytes())


def _write(folder: Path, names: tuple[str, ...], content: bytes) -> None:
    for name in names:
        path = folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)
