"""Answers that take their time, and what an application does after them: APP_MODULE=proofs.apps.answers:app."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

from fastapi import BackgroundTasks, FastAPI, Response
from fastapi.responses import FileResponse, StreamingResponse

app = FastAPI()
MARKS = Path(os.environ["DATA_DIR"]) / "marks"


def mark(name: str) -> None:
    with MARKS.open("a") as file:
        file.write(f"{name}\n")


def marked(name: str) -> bool:
    return MARKS.exists() and name in MARKS.read_text().splitlines()


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
async def late(ms: int = 0, name: str = "") -> StreamingResponse:
    """An answer with its length, whose body comes `ms` after its head, and when `name` is marked."""

    async def body() -> AsyncIterator[bytes]:
        await asyncio.sleep(ms / 1000)
        while name and not marked(name):  # noqa: ASYNC110 (another process marks it)
            await asyncio.sleep(0.05)
        yield b"at last"

    return StreamingResponse(body(), headers={"content-length": "7"})


@app.get("/until")
async def until(name: str) -> StreamingResponse:
    """Goes on until `name` is marked; marks its beginning."""

    async def lines() -> AsyncIterator[str]:
        mark(f"begun-{name}")
        while not marked(name):
            yield "not yet\n"
            await asyncio.sleep(0.1)
        yield "the end\n"

    return StreamingResponse(lines(), media_type="text/csv")


@app.post("/later")
async def later(tasks: BackgroundTasks, name: str, ms: int = 0, wait_for: str = "") -> str:
    """Answers at once; marks `name` after `ms`, and when `wait_for` is marked."""

    async def work() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(ms / 1000)
            while wait_for and not marked(wait_for):  # noqa: ASYNC110 (another process marks it)
                await asyncio.sleep(0.1)
            mark(name)

    tasks.add_task(work)
    return name


@app.post("/note")
async def note(name: str) -> Response:
    mark(name)
    return Response("noted")
