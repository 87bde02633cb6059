"""What site.pem must be: the private key, the certificate that it fits, and the certificate's chain."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key


class UnusableError(Exception):
    """Why nobody could use it, in a few words."""


def first_certificate(pem: bytes) -> x509.Certificate:
    """The certificate that nginx would show. Raises UnusableError where there is none, or no key that fits it."""
    if not pem.strip():
        raise UnusableError("it is empty")
    try:
        first = x509.load_pem_x509_certificates(pem)[0]
    except ValueError:
        raise UnusableError("it holds no certificate") from None
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise UnusableError("its private key has a password, for which nobody could ask at night") from None
    except ValueError:
        raise UnusableError("it holds no private key") from None
    if _public(key.public_key()) != _public(first.public_key()):
        raise UnusableError("the private key is not that of its first certificate")
    return first


def hold_to_dates(certificate: x509.Certificate) -> None:
    """Raises UnusableError where it is not valid now."""
    now = datetime.datetime.now(datetime.UTC)
    if now >= certificate.not_valid_after_utc:
        raise UnusableError(f"it expired on {certificate.not_valid_after_utc:%Y-%m-%d}")
    if now < certificate.not_valid_before_utc:
        begin = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M}"
        raise UnusableError(f"it is valid from {begin} UTC on; is the clock right?")


def names(certificate: x509.Certificate) -> list[str]:
    """The names and addresses that it is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in found]


def _public(key: object) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return encoded
