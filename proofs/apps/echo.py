"""An application that says what has reached it. The native stacks of proofs run it in the demo's place."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import JSONResponse

logger = logging.getLogger("app.echo")
Message = MutableMapping[str, Any]


async def app(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Logs each request, answers its head as JSON. `?block=MS` blocks the worker first, `?exit` ends it."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["type"] != "http":
        return
    logger.info("%s %s", scope["method"], scope["path"])
    asked = parse_qs(scope["query_string"].decode(), keep_blank_values=True)
    if "exit" in asked:
        os._exit(1)
    time.sleep(int(asked.get("block", ["0"])[0]) / 1000)  # noqa: ASYNC251 (that nothing else runs is the point)
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
    seen = {
        "method": scope["method"],
        "http_version": scope["http_version"],
        "pid": os.getpid(),
        "headers": headers,
    }
    await JSONResponse(seen, headers={"X-Request-ID": "the-apps-own"})(scope, receive, send)
