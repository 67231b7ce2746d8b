# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cluster's own certificate authority, and the certificates that it makes. Pure but for the
keys' random bits: bytes in, bytes out.

An authority is one PEM text: its key, then its certificate. Who has it can make himself a member's
certificate, and is then let in by every member's libvirt: it is guarded as the cluster key is.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker.config.host_certificates import end_of
from broker.daemon.errors import HaError

#: A part of each authority's name: it distinguishes ours from a site's.
ORGANISATION = "ha-agent"
AUTHORITY_LASTS = datetime.timedelta(days=20 * 365)
HOST_LASTS = datetime.timedelta(days=365)
#: A host's certificate is made anew when a third of its time is left. If that fails, a person has
#: months to find out why.
RENEW_WITHIN = HOST_LASTS / 3
#: The clocks of the members may differ by that.
CLOCKS_DIFFER = datetime.timedelta(days=2)
#: RFC 5280: a common name is not longer.
_NAME_CHARS_MAX = 64


class NoAuthority(HaError):
    """The text is no authority of ours."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A host's certificate, and its key, in PEM."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Issued(***)"


def new_authority(cluster: str, now: datetime.datetime) -> bytes:
    """A new authority for a cluster of this name."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"authority of {cluster}")
    made = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LASTS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _key_pem(key) + _pem(made)


def certificate_of(authority: bytes) -> bytes:
    """The authority's certificate alone, in PEM; NoAuthority."""
    return _pem(_read(authority)[1])


def issue(authority: bytes, host: str, names: tuple[str, ...], now: datetime.datetime) -> Issued:
    """A certificate for a host, good as server and as client. `names`: DNS names and addresses by
    which others reach it. NoAuthority."""
    signer, by = _read(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    ends_in = min(HOST_LASTS, end_of(by) - now)
    usage = x509.ExtendedKeyUsage(
        [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    )
    made = (
        _builder(_name(host), by.subject, key.public_key(), now, ends_in)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternatives(names)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    return Issued(_pem(made), _key_pem(key))


def why_not_good(
    certificate: bytes, authority: bytes, names: tuple[str, ...], now: datetime.datetime
) -> str:
    """Why a certificate must be made anew; "": it is still good. NoAuthority."""
    try:
        found = x509.load_pem_x509_certificate(certificate)
    except ValueError:
        return "it is no certificate"
    if not _is_by(found, _read(authority)[1]):
        return "another authority made it"
    alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if lacks := [each.value for each in _alternatives(names) if each not in alternatives]:
        return f"it lacks the name {', '.join(map(str, lacks))}"
    left = end_of(found) - now
    if left < min(RENEW_WITHIN, end_of(_read(authority)[1]) - now):
        return f"it ends in {left.days} days"
    return ""


def is_ours(certificate: bytes) -> bool:
    """Whether a certificate is one of an authority of ours, this cluster's or another's."""
    try:
        found = x509.load_pem_x509_certificate(certificate)
    except ValueError:
        return False
    names = found.issuer.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return any(name.value == ORGANISATION for name in names)


def _read(authority: bytes) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        key = serialization.load_pem_private_key(authority, None)
        made = x509.load_pem_x509_certificate(authority)
    except (ValueError, TypeError):
        raise NoAuthority("holds no key with its certificate in PEM") from None
    fits = isinstance(key, ec.EllipticCurvePrivateKey) and _public(made.public_key()) == _public(
        key.public_key()
    )
    if not fits or not is_ours(_pem(made)) or not _is_by(made, made):
        raise NoAuthority("holds an authority that ha-agent has not made")
    assert isinstance(key, ec.EllipticCurvePrivateKey), "checked above"
    return key, made


def _is_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    key, by = authority.public_key(), certificate.signature_hash_algorithm
    if certificate.issuer != authority.subject or by is None:
        return False
    assert isinstance(key, ec.EllipticCurvePublicKey), "_read checks it"
    try:
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(by))
    except InvalidSignature:
        return False
    return True


def _public(key: object) -> bytes:
    """A public key in DER; empty where it is of another kind."""
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return b""
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(encoding, form)


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common[:_NAME_CHARS_MAX]),
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    lasts: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(now + lasts)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    # libvirt and QEMU ask for key encipherment, whatever the kind of key.
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=not signs_certificates,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _alternatives(names: tuple[str, ...]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in dict.fromkeys(names):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
