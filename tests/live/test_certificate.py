"""The end of a certificate, read without a library. That nginx shows it is proved in proofs/test_tls.py."""

from __future__ import annotations

import ssl

import pytest
from cryptography import x509

from live.certificate import not_after
from proofs import certificates


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
@pytest.mark.parametrize("days", [-2, 1, 90, 40_000], ids=str)  # from 2050 on the time is written in another way
def test_the_end_is_that_which_a_library_reads(kind: str, days: int) -> None:
    key = certificates.make_key(kind)
    pem = certificates.certificate(key, -3, days, "one.example.com", "two.example.com")
    end = x509.load_pem_x509_certificate(pem).not_valid_after_utc
    assert not_after(ssl.PEM_cert_to_DER_cert(pem.decode())) == end.timestamp()
