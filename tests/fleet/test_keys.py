"""Keys and certificates."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from pfedmma_deploy.errors import StoreError
from pfedmma_deploy.fleet.keys import (
    issue_server_certificate,
    load_private,
    make_authority,
    make_site_key,
    public_pem,
    write_private,
)
from tests.fleet.scripted import mode


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_site_has_a_key_of_its_own() -> None:
    private, public = make_site_key()
    key = load_private(private)
    assert isinstance(key.curve, ec.SECP384R1)
    assert public_pem(key) == public
    assert make_site_key()[1] != public


def test_what_is_no_key() -> None:
    with pytest.raises(ValueError):
        load_private("no key")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    other = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with pytest.raises(ValueError, match="not a key of an elliptic curve"):
        load_private(other.decode())


def test_the_authority_signs_servers_and_nothing_else(tmp_path: Path) -> None:
    make_authority(tmp_path, "wards")
    authority = certificate(tmp_path / "ca.pem")
    limits = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert limits.critical and limits.value.ca and limits.value.path_length == 0
    file, key = issue_server_certificate(tmp_path, ["fed.example.org", "127.0.0.1", "::1"])
    issued = certificate(file)
    issued.verify_directly_issued_by(authority)
    names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert issued.not_valid_before_utc < datetime.now(UTC) < issued.not_valid_after_utc
    assert (issued.not_valid_after_utc - issued.not_valid_before_utc).days == 398
    assert public_pem(load_private(key.read_text())) == public_pem(load_private(key.read_text()))


def test_another_authority_did_not_sign_it(tmp_path: Path) -> None:
    make_authority(tmp_path / "a", "wards")
    make_authority(tmp_path / "b", "wards")
    file, _ = issue_server_certificate(tmp_path / "a", ["localhost"])
    with pytest.raises(InvalidSignature):
        certificate(file).verify_directly_issued_by(certificate(tmp_path / "b" / "ca.pem"))


def test_secrets_are_their_owners_only(tmp_path: Path) -> None:
    make_authority(tmp_path, "wards")
    _, key = issue_server_certificate(tmp_path, ["localhost"])
    assert mode(tmp_path / "ca-key.pem") == 0o600 and mode(key) == 0o600
    write_private(tmp_path / "secret", b"1")
    (tmp_path / "secret").chmod(0o644)
    write_private(tmp_path / "secret", b"2")
    assert mode(tmp_path / "secret") == 0o600 and (tmp_path / "secret").read_bytes() == b"2"
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*.partial"))


def test_without_an_authority_no_server(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"ca\.pem: No such file"):
        issue_server_certificate(tmp_path, ["localhost"])


def test_a_site_key_signs(tmp_path: Path) -> None:
    key = load_private(make_site_key()[0])
    signature = key.sign(b"now", ec.ECDSA(hashes.SHA256()))
    key.public_key().verify(signature, b"now", ec.ECDSA(hashes.SHA256()))
    with pytest.raises(InvalidSignature):
        key.public_key().verify(signature, b"later", ec.ECDSA(hashes.SHA256()))
