"""WAY=swarm: what the node that asks the CA answers the others, and what they take."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from renew import share
from renew.pem import UnusableError

KEY = Fernet(Fernet.generate_key())


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    server = share.serve(tmp_path, KEY, 0)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_certificate_is_for_whoever_has_the_key(tmp_path: Path, address: str) -> None:
    (tmp_path / "site.pem").write_bytes(b"the private key")
    assert share.fetch(address, KEY) == b"the private key"
    with urllib.request.urlopen(f"{address}/site.sealed") as answer:
        assert b"private" not in answer.read()
    with pytest.raises(UnusableError, match="sealed with another key"):
        share.fetch(address, Fernet(Fernet.generate_key()))


@pytest.mark.parametrize("path", ["/site.pem", "/.well-known/acme-challenge/../../site.pem", "/", "/site.sealed"])
def test_nothing_else_is_answered(tmp_path: Path, address: str, path: str) -> None:
    """Nor the certificate before there is one."""
    if path != "/site.sealed":
        (tmp_path / "site.pem").write_bytes(b"the private key")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}{path}")


def test_the_ca_gets_its_file(tmp_path: Path, address: str) -> None:
    (tmp_path / ".well-known/acme-challenge").mkdir(parents=True)
    (tmp_path / ".well-known/acme-challenge/a-token_1").write_text("a-token_1.thumb")
    with urllib.request.urlopen(f"{address}/.well-known/acme-challenge/a-token_1") as answer:
        assert (answer.read(), answer.headers["content-type"]) == (b"a-token_1.thumb", "text/plain")
