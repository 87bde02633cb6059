from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.server.asgi import ASGIApp, Receive, Scope, Send
from app.server.forwarded import LONGEST_REMEMBERED, Forwarded

TRUSTED = "127.0.0.1,10.0.0.0/8,2001:db8::/32"
PEERS = ["127.0.0.1", "10.1.2.3", "192.0.2.9", "2001:db8::1", "2001:db9::1", "", None]
FOR, PROTO = b"x-forwarded-for", b"x-forwarded-proto"
HEADERS: list[list[tuple[bytes, bytes]]] = [
    [],
    [(b"host", b"localhost")],
    [(FOR, b"192.0.2.1"), (PROTO, b"https")],
    [(FOR, b"192.0.2.1:4711")],
    [(FOR, b"[2001:db9::1]:4711"), (PROTO, b" https ")],
    [(FOR, b"2001:db9::1"), (PROTO, b"wss")],
    [(FOR, b"203.0.113.7, 192.0.2.1, 10.0.0.7")],
    [(FOR, b"203.0.113.7"), (FOR, b"192.0.2.1"), (FOR, b"10.0.0.7")],
    [(FOR, b"10.0.0.8, 10.0.0.7")],
    [(FOR, b"")],
    [(FOR, b""), (FOR, b"10.0.0.7")],
    [(FOR, b"nobody knows"), (PROTO, b"gopher")],
    [(PROTO, b"https"), (PROTO, b"gopher")],
    [(FOR, b"\xff\xfe"), (PROTO, b"HTTPS")],
    [(FOR, b"192.0.2.1" + b" " * LONGEST_REMEMBERED + b", 10.0.0.7")],
]


def heard(app: ASGIApp, peer: str | None, headers: list[tuple[bytes, bytes]]) -> tuple[Any, Any]:
    """The client and the scheme, as the application gets them."""
    client = None if peer is None else (peer, 1234)
    scope: Scope = {"type": "http", "client": client, "scheme": "http", "headers": headers}
    asyncio.run(app(scope, cast(Receive, None), cast(Send, None)))  # type: ignore[arg-type]
    return scope["client"], scope["scheme"]


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Nothing."""


@pytest.mark.parametrize("trusted", [TRUSTED, "*", "unix:"])
@pytest.mark.parametrize("headers", HEADERS, ids=str)
def test_the_client_and_the_scheme_are_those_that_uvicorn_finds(
    trusted: str, headers: list[tuple[bytes, bytes]]
) -> None:
    theirs = ProxyHeadersMiddleware(application, trusted)  # type: ignore[arg-type]
    ours = Forwarded(theirs)
    for peer in PEERS:
        wanted = heard(cast(ASGIApp, theirs), peer, headers)
        for _ in range(2):  # the second time it is remembered
            client = None if peer is None else (peer, 1234)
            assert heard(ours.app_for(client), peer, headers) == wanted, f"from {peer}"


def test_nobody_fills_the_memory_with_long_headers() -> None:
    ours = Forwarded(ProxyHeadersMiddleware(application, "*"))  # type: ignore[arg-type]
    for number in range(3):
        heard(ours.app_for(None), None, [(FOR, b"%d." % number + b"x" * LONGEST_REMEMBERED)])
    assert ours._remembered.cache_info().currsize == 0
