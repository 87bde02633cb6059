"""Answers that take their time, and what an application does after them: APP_MODULE=proofs.apps.answers:app."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

from fastapi import BackgroundTasks, FastAPI, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

app = FastAPI()
MARKS = Path(os.environ["LEDGER_PATH"]).with_name("marks")


def mark(name: str) -> None:
    with MARKS.open("a") as file:
        file.write(f"{name}\n")


@app.api_route("/parts", methods=["GET", "POST"])
async def parts(count: int, interval_ms: int, media_type: str) -> StreamingResponse:
    """Numbers, one a line, each `interval_ms` after the one before it."""

    async def numbers() -> AsyncIterator[str]:
        for number in range(count):
            await asyncio.sleep(interval_ms / 1000)
            yield f"{number}\n"

    return StreamingResponse(numbers(), media_type=media_type)


@app.get("/stall")
async def stall(name: str) -> StreamingResponse:
    """Begins, and then stands still; marks `name` when it is cancelled."""

    async def one_part() -> AsyncIterator[str]:
        yield "the first\n"
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            mark(name)
            raise

    return StreamingResponse(one_part(), media_type="text/plain")


@app.get("/large")
async def large(mb: int) -> StreamingResponse:
    def pieces() -> Iterator[bytes]:
        for _ in range(mb * 16):
            yield b"x" * 65536

    return StreamingResponse(pieces(), media_type="application/octet-stream")


@app.get("/file")
async def file() -> FileResponse:
    return FileResponse(__file__)


@app.get("/late")
async def late(request: Request, ms: int) -> StreamingResponse:
    """An answer with its length, whose body comes `ms` after its head."""

    async def body() -> AsyncIterator[bytes]:
        await asyncio.sleep(ms / 1000)
        yield b"at last"

    return StreamingResponse(body(), headers={"content-length": "7"})


@app.post("/later")
async def later(tasks: BackgroundTasks, name: str, ms: int) -> str:
    """Answers at once; marks `name` after `ms`."""

    async def work() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(ms / 1000)
            mark(name)

    tasks.add_task(work)
    return name


@app.post("/note")
async def note(name: str) -> Response:
    mark(name)
    return Response("noted")
