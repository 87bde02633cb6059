"""The client that nginx names: what Uvicorn makes of X-Forwarded-For and X-Forwarded-Proto, at less of a cost.

Uvicorn's middleware is a coroutine around each request. It asks each time whether the other end of the connection is
trusted, which never changes, and takes apart the addresses of the same few clients. Whom it trusts, and which address
of a list is the client's, it still decides; WebSockets go through it as ever.

Relied on (tests/app/test_contract.py): `app` and `trusted_hosts` of that middleware.
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import lru_cache
from typing import cast

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.server.asgi import ASGIApp, Receive, Scope, Send

SCHEMES = {scheme.encode(): scheme for scheme in ("http", "https", "ws", "wss")}
# An address of IPv6 with its port takes 47. What is longer may have any length, and is not remembered.
LONGEST_REMEMBERED = 64


class Forwarded:
    """In the place of `theirs`, for the requests of a connection."""

    def __init__(self, theirs: ProxyHeadersMiddleware) -> None:
        self.app = cast(ASGIApp, theirs.app)
        self._trusted = theirs.trusted_hosts
        self._remembered = lru_cache(maxsize=1024)(self._client)

    def app_for(self, peer: tuple[str, int] | None) -> ASGIApp:
        """What serves the requests of a connection from there."""
        return self._believe if (peer[0] if peer else None) in self._trusted else self.app

    def _believe(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Not a coroutine itself: that would be one more frame for each request."""
        said: bytes | None = None
        scheme: bytes | None = None
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                said = value if said is None else said + b", " + value
            elif name == b"x-forwarded-proto":
                scheme = value
        if scheme is not None:
            scope["scheme"] = SCHEMES.get(scheme.strip(), scope["scheme"])
        if said is not None:
            client = self._remembered(said) if len(said) <= LONGEST_REMEMBERED else self._client(said)
            if client[0]:
                scope["client"] = client
        return self.app(scope, receive, send)

    def _client(self, said: bytes) -> tuple[str, int]:
        return self._trusted.get_trusted_client_address(said.decode("latin-1"))
