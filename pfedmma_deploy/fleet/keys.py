"""Keys and certificates: a small authority per federation, one key per site, no password.

<fleet>/keys/ca.pem, ca-key.pem           the authority; only `ca.pem` is in invitations
<fleet>/keys/server.pem, server-key.pem   made anew at each start, for the address of then
"""

from __future__ import annotations

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pfedmma_deploy.store.files import read_bytes, write_bytes

PrivateKey = ec.EllipticCurvePrivateKey
AUTHORITY_YEARS = 10
SERVER_DAYS = 397
"""What TLS clients accept of a server's certificate at most."""


def make_site_key() -> tuple[str, str]:
    """A site's private and public key as PEM; P-384, which Flower's node keys are."""
    key = ec.generate_private_key(ec.SECP384R1())
    return _private_pem(key).decode(), _public_pem(key).decode()


def make_authority(folder: Path, name: str) -> None:
    """Write `ca.pem` and `ca-key.pem`: the root that the sites of this federation trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"pfedmma fleet {name}")
    now = datetime.now(UTC)
    certificate = (
        _builder(subject, subject, key, now, now + timedelta(days=365 * AUTHORITY_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_private(folder / "ca-key.pem", _private_pem(key))
    write_bytes(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))


def issue_server_certificate(folder: Path, hosts: list[str]) -> tuple[Path, Path]:
    """Write `server.pem` and `server-key.pem`, valid for these host names and addresses.

    Returns:
        Paths of the certificate and its key.

    Raises:
        StoreError: the authority's files are missing.
    """
    authority = x509.load_pem_x509_certificate(read_bytes(folder / "ca.pem"))
    loaded = serialization.load_pem_private_key(read_bytes(folder / "ca-key.pem"), password=None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        _builder(
            _name(hosts[0][:64]), authority.subject, key, now, now + timedelta(days=SERVER_DAYS)
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_alternative(h) for h in hosts]), False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(_usage(digital_signature=True), critical=True)
        .sign(loaded, hashes.SHA256())
    )
    files = folder / "server.pem", folder / "server-key.pem"
    write_private(files[1], _private_pem(key))
    write_bytes(files[0], certificate.public_bytes(serialization.Encoding.PEM))
    return files


def load_private(pem: str) -> PrivateKey:
    """A private key of PEM text. Raises `ValueError` where it is none."""
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not a key of an elliptic curve")
    return key


def public_pem(key: PrivateKey) -> str:
    """The public half as PEM text."""
    return _public_pem(key).decode()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A site's clock may be a little behind.
        .not_valid_before(start - timedelta(days=1))
        .not_valid_after(end)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _public_pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def write_private(path: Path, data: bytes) -> None:
    """Write a secret under its name in one step, readable for its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
