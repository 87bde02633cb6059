"""An application that does what applications do wrong. Bare ASGI, imports next to nothing, and has no lifespan."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.concurrency import run_in_threadpool

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
held: list[bytes] = []


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """The path names what is done, the query is its number; the answer is a number, the worker's pid as a rule."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    path, number = scope["path"], int(scope["query_string"] or 0)
    answer: int | None = os.getpid()
    if path == "/wait":
        await asyncio.sleep(number / 1000)
    elif path == "/block":
        time.sleep(number / 1000)  # noqa: ASYNC251 (that nothing else runs is the point)
    elif path == "/fork":
        answer = forked(number)
    elif path == "/multiprocessing":
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(number,), daemon=True)
        child.start()
        answer = child.pid
    elif path == "/spawn":  # as os.system() does: without subprocess's care for what a child may keep open
        answer = os.posix_spawnp("sleep", ["sleep", str(number)], os.environ)  # noqa: ASYNC221
    elif path == "/need":  # what an application loads at its first requests: a model, a table
        held[:] = held or [b"x" * (number << 20)]
    elif path == "/leak":
        held.append(b"x" * (number << 20))
    elif path == "/die":
        os._exit(number)
    elif path == "/exit":
        sys.exit("a handler has had enough")
    elif path == "/exit-in-a-thread":
        await run_in_threadpool(sys.exit, "a `def` handler has had enough")
    elif path == "/nothing":
        return
    body = str(answer).encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
    if path == "/twice":
        await send({"type": "http.response.start", "status": 200, "headers": []})


def forked(seconds: int) -> int:
    """The pid of a child that sleeps."""
    if (child := os.fork()) == 0:
        time.sleep(seconds)
        os._exit(0)
    return child
