"""The app of the exercises: waits, computes, blocks, and says which process it is."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from fastapi import FastAPI, WebSocket

app = FastAPI()


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
    end = time.thread_time() + ms / 1000
    while time.thread_time() < end:
        pass
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
    path, _, query = environ["PATH_INFO"], 0, environ["QUERY_STRING"]
    seconds = int(query.partition("=")[2] or 0) / 1000
    if path == "/compute":
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
    else:
        time.sleep(seconds)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
