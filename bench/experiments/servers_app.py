"""The application of the experiments `servers` and `keepalive`: what BENCH_APP_MODULE names, and some paths more."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from gunicorn.util import import_app

WAIT, BLOCK, ANY = "/bench/wait", "/bench/block", "/bench/any"
WAIT_SECONDS = 1.5
BLOCK_SECONDS = 1.5

# Before the first request, and not where only the paths are wanted.
named = os.environ.get("BENCH_APP_MODULE")
others: Any = import_app(named) if named else None


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http" or not scope["path"].startswith("/bench/"):
        await others(scope, receive, send)
        return
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == WAIT:
        await asyncio.sleep(WAIT_SECONDS)
    elif scope["path"] == BLOCK:
        time.sleep(BLOCK_SECONDS)  # noqa: ASYNC251 (the mistake is the point)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})
