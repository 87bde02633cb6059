"""By HTTPS nothing is lost or done twice either: nginx is reloaded, certificates are renewed, the app is replaced."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from proofs import certificates, events, http2, open_loop
from proofs.conftest import require_engine
from proofs.events import RATE
from proofs.open_loop import OpenLoop
from proofs.stack import Stack, until
from proofs.test_tls import put_for_all, reload_nginx, served
from proofs.test_zero_loss import LASTING

VERSIONS = ["HTTP/1.1", "HTTP/2"]
RENEWALS = 10
# One load at a time: two would be each other's noise.
pytestmark = pytest.mark.xdist_group("load")


@pytest.fixture(scope="module", params=["compose", "native"])
def secure(request: pytest.FixtureRequest) -> Iterator[Stack]:
    if request.param == "compose":
        require_engine()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        stack = Stack(request.param, "tls-load", **LASTING, TLS="files", TLS_FOLDER=folder)
        try:
            stack.up()
            yield stack
        finally:
            stack.down()


def load(stack: Stack, version: str, trusted: str = "") -> OpenLoop:
    """By HTTPS, with a client that takes no other certificate than the stack's, and those of `trusted`."""
    trust = stack.trust("h2" if version == "HTTP/2" else "http/1.1")
    if trusted:
        trust.load_verify_locations(cadata=trusted)
    kind = http2.Connections if version == "HTTP/2" else open_loop.Connections
    return OpenLoop(stack, RATE, connections=kind(stack.https_port, trust))


@pytest.mark.parametrize(
    ("secure", "version"),
    # Not natively over HTTP/1.1: before 1.27.4 a reload of nginx resets idle connections (docs/native.md).
    [("compose", "HTTP/1.1"), ("compose", "HTTP/2"), ("native", "HTTP/2")],
    indirect=["secure"],
)
def test_nothing_is_lost_in_twenty_reloads_of_nginx(secure: Stack, version: str) -> None:
    with load(secure, version) as running:
        for _ in range(20):
            reload_nginx(secure)
            running.run_for(0.3)
    running.outcome.assert_nothing_lost_or_doubled()
    if version == "HTTP/2":
        assert running.client.connections.goaways >= 20, "no reload has ended a connection: nothing was proved"


@pytest.mark.parametrize(
    ("secure", "version"),
    # Not natively over HTTP/1.1, where many connect: before 1.27.4 nginx reads certificate and key one after the other,
    # and who connects in between is refused (docs/native.md).
    [("compose", "HTTP/1.1"), ("compose", "HTTP/2"), ("native", "HTTP/2")],
    indirect=["secure"],
)
def test_nothing_is_lost_while_the_certificate_is_renewed(secure: Stack, version: str) -> None:
    """And whoever connects meanwhile gets a certificate that fits its key, the old one or the new one."""
    folder = Path(secure.rows["TLS_FOLDER"])
    first = (folder / "site.pem").read_bytes()
    renewals = [certificates.site() for _ in range(RENEWALS)]
    trusted = b"".join(renewals).decode()
    with load(secure, version, trusted) as running:
        if version == "HTTP/2":  # natively it is connecting that may fail (docs/native.md)
            client = running.client.connections
            until("its connections are open", lambda: len(client.open) == http2.MOST_CONNECTIONS)
        for pem in renewals:
            certificates.put(folder, pem)
            until("the new certificate", lambda pem=pem: served(secure).encode() in pem)  # type: ignore[misc]
        put_for_all(secure, first)
    running.outcome.assert_nothing_lost_or_doubled()


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_lost_when_the_app_is_replaced(secure: Stack, version: str) -> None:
    """In Compose by a deploy, natively by a reload."""
    with load(secure, version) as running:
        if secure.way == "compose":
            events.deploy(secure, running, 1)
        else:
            events.reload(secure, running, 3)
    running.outcome.assert_nothing_lost_or_doubled()
