"""An application with large answers and large bodies, for the proofs of slow clients."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

logger = logging.getLogger("app.bulk")
Message = MutableMapping[str, Any]
MEBIBYTE = b"x" * (1 << 20)


async def app(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Logs each request when it begins and when its answer is gone. /bulk/N answers N MiB, all else the body's hash."""
    if scope["type"] != "http":
        return
    path: str = scope["path"]
    logger.info("begins %s", path)
    digest, more = hashlib.sha256(), True
    while more:
        message = await receive()
        digest.update(message.get("body", b""))
        more = message.get("more_body", False) and message["type"] == "http.request"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    if path.startswith("/bulk/"):
        for _ in range(int(path.removeprefix("/bulk/"))):
            await send({"type": "http.response.body", "body": MEBIBYTE, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body"})
    else:
        await send({"type": "http.response.body", "body": json.dumps({"sha256": digest.hexdigest()}).encode()})
    logger.info("ends %s", path)
