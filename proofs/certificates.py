"""Certificates for the proofs: right ones, and those that nobody should get to see."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
DAY = datetime.timedelta(days=1)


def make_key(kind: str = "ecdsa") -> Key:
    return rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())


def certificate(key: Key, begin: int = -1, end: int = 30, *names: str) -> bytes:
    """PEM of a certificate that signs itself, for `names` or localhost; from day `begin` to `end`, today being 0."""
    return certificate_for(key, [x509.DNSName(name) for name in names or ("localhost",)], begin, end)


def certificate_for(key: Key, names: list[x509.GeneralName], begin: int = -1, end: int = 30) -> bytes:
    """The same for addresses too."""
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(names[0].value))])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begin * DAY)
        .not_valid_after(now + end * DAY)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def private(key: Key, password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def site(kind: str = "ecdsa", begin: int = -1, end: int = 30) -> bytes:
    """What site.pem holds: key and certificate."""
    key = make_key(kind)
    return private(key) + certificate(key, begin, end)


def put(folder: Path, pem: bytes) -> None:
    """Rename it into its place, readable by nginx in its container."""
    part = folder / "site.new"
    part.write_bytes(pem)
    part.chmod(0o644)
    part.rename(folder / "site.pem")
