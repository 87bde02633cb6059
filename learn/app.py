"""The app of the exercises: waits, computes, blocks, and says which process it is."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from fastapi import FastAPI, WebSocket

app = FastAPI()


def burn(seconds: float) -> None:
    """Use that much CPU in this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@app.get("/pid")
async def pid() -> int:
    return os.getpid()


@app.get("/wait")
async def wait(ms: int) -> str:
    """As a handler does that awaits a database."""
    await asyncio.sleep(ms / 1000)
    return "waited"


@app.get("/compute")
async def compute(ms: int) -> str:
    burn(ms / 1000)
    return "computed"


@app.get("/block")
async def block(ms: int) -> str:
    """As a handler does that calls a library which does not await."""
    time.sleep(ms / 1000)  # noqa: ASYNC251
    return "blocked"


@app.get("/thread")
def thread(ms: int) -> str:
    """The same in a `def` handler: FastAPI calls it in a thread."""
    time.sleep(ms / 1000)
    return "slept"


@app.post("/post")
async def post() -> str:
    return "posted"


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """The same paths for a server of threads or processes."""
    work = burn if environ["PATH_INFO"] == "/compute" else time.sleep
    work(int(environ["QUERY_STRING"].partition("=")[2] or 0) / 1000)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
