"""What grows: routes (GROWTH_ROUTES), WebSockets and event streams that are open, and a word to all of them.

APP_MODULE=bench.experiments.growth_app:app
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

from app.server.asgi import Receive, Scope, Send

framework = FastAPI()
sockets: set[WebSocket] = set()
streams: set[asyncio.Queue[bytes]] = set()
WORD = b"data: " + b"x" * 100 + b"\n\n"


def some() -> dict[str, str]:
    return {"ok": "ok"}


for number in range(int(os.environ.get("GROWTH_ROUTES", "1")) - 1):
    framework.add_api_route(f"/route{number}/{{name}}", some)


@framework.get("/")
async def root(request: Request) -> dict[str, int]:
    return {"headers": len(request.headers)}


@framework.get("/hold")
async def hold() -> dict[str, str]:
    """Holds the event loop, as work does, and needs no CPU: many workers can do it on few CPUs."""
    time.sleep(0.02)  # noqa: ASYNC251 (that is what it is for)
    return {"ok": "ok"}


@framework.websocket("/ws")
async def websocket(socket: WebSocket) -> None:
    await socket.accept()
    sockets.add(socket)
    try:
        while True:
            await socket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        sockets.discard(socket)


@framework.get("/events")
async def events() -> StreamingResponse:
    queue: asyncio.Queue[bytes] = asyncio.Queue()

    async def body() -> AsyncIterator[bytes]:
        streams.add(queue)
        try:
            yield b": hello\n\n"
            while True:
                try:
                    yield await asyncio.wait_for(queue.get(), 15)
                    queue.task_done()
                except TimeoutError:
                    yield b": ping\n\n"
        finally:
            streams.discard(queue)

    return StreamingResponse(body(), media_type="text/event-stream")


@framework.post("/broadcast")
async def broadcast() -> dict[str, float]:
    """The same word to all, and the seconds until the last was handed to its connection."""
    begun = time.monotonic()
    for queue in streams:
        queue.put_nowait(WORD)
    for socket in list(sockets):
        await socket.send_bytes(WORD)
    await asyncio.gather(*(queue.join() for queue in streams))
    return {"sent": len(sockets) + len(streams), "seconds": time.monotonic() - begun}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The framework's, but for WebSockets at /raw, which have none: what is the framework's share of one?"""
    if scope["type"] != "websocket" or scope["path"] != "/raw":
        await framework(scope, receive, send)
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass
