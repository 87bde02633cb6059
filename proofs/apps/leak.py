"""The demo application, and handlers that do what applications do wrong: APP_MODULE=proofs.apps.leak:app."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse

from app.main import app

leaked: list[bytes] = []


@app.get("/leak")
async def leak(mb: int) -> int:
    """Holds so many MiB more, for good."""
    leaked.append(b"x" * (mb << 20))
    return os.getpid()


@app.get("/nap")
def nap(ms: int) -> int:
    """`def`: it takes a thread of the pool, and waits in it."""
    time.sleep(ms / 1000)
    return os.getpid()


@app.get("/hang")
async def hang(ms: int) -> int:
    """The event loop stands still, and all of its worker with it."""
    time.sleep(ms / 1000)  # noqa: ASYNC251 (the mistake is the point)
    return os.getpid()


@app.get("/begun")
async def begun(ms: int) -> float:
    """Takes its worker's loop for so long; when it began, on the clock that all processes of a machine share."""
    now = time.monotonic()
    time.sleep(ms / 1000)  # noqa: ASYNC251 (the mistake is the point)
    return now


@app.get("/late")
async def late(ms: int) -> StreamingResponse:
    """An answer whose head is there at once, and whose body comes so much later."""

    async def body() -> AsyncIterator[bytes]:
        await asyncio.sleep(ms / 1000)
        yield b"at last"

    return StreamingResponse(body())
