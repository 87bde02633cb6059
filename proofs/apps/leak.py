"""The demo application, and handlers that do what applications do wrong: APP_MODULE=proofs.apps.leak:app."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from fastapi.responses import StreamingResponse

from app.demo.main import app
from app.server.worker import Worker

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


@app.get("/held")
async def held(until: Path) -> int:
    """The event loop stands still until there is such a file; one beside it says that it does."""
    until.with_suffix(".begun").touch()
    while not until.exists():  # noqa: ASYNC240 (the mistake is the point)
        time.sleep(0.005)  # noqa: ASYNC251
    return os.getpid()


@app.get("/deaf")
async def deaf(ms: int) -> int:
    """Goes on when it is cancelled."""
    end = time.monotonic() + ms / 1000
    while time.monotonic() < end:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.1)
    return os.getpid()


@app.get("/begun")
async def begun(ms: int) -> float:
    """Takes its worker's loop for so long; when it began, on the clock that all processes of a machine share."""
    now = time.monotonic()
    time.sleep(ms / 1000)  # noqa: ASYNC251 (the mistake is the point)
    return now


@app.get("/short")
async def short() -> int:
    """How many turns of the worker's loop, with this one, are still to be short as this request begins."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(worker := frame.f_locals.get("self"), Worker):
            return worker.turn_gate.short_turns
        frame = frame.f_back
    raise LookupError("no Worker runs this")


@app.get("/late")
async def late(after: Path | None = None) -> StreamingResponse:
    """An answer whose head is there at once, and whose body comes when there is such a file."""

    async def body() -> AsyncIterator[bytes]:
        while after and not after.exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.02)
        yield b"at last"

    return StreamingResponse(body())


@app.get("/drip")
async def drip() -> StreamingResponse:
    """An answer that goes on, a little at a time, as long as its client stays."""

    async def body() -> AsyncIterator[bytes]:
        while True:
            yield b"drop"
            await asyncio.sleep(0.2)

    return StreamingResponse(body())
