"""The application of the experiment `download`: an answer of 1 GB, in pieces as a file is read."""

from __future__ import annotations

from typing import Any

SIZE = 1_000_000_000
PIECE = b"x" * (64 << 10)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    size = SIZE if scope["path"] == "/download" else 0
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for sent in range(0, size, len(PIECE)):
        piece = PIECE[: min(len(PIECE), size - sent)]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})
