"""The shell: one pure ASGI layer around the application.

Request id, deadline, metrics, the log of errors and slow requests, and the health endpoints are one layer and not
five, because each further layer costs a call for every message of every request (make bench measures it).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from types import CoroutineType
from typing import Any

from app.server import lifecycle, logs
from app.server.metrics import CONTENT_TYPE, Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("app.requests")
THREAD_POLL_SECONDS = 0.1


class Shell:
    """Wraps `app`; takes its place as the ASGI application of the server."""

    def __init__(self, app: ASGIApp, metrics: Metrics, deadline_seconds: float, slow_seconds: float) -> None:
        self.app = app
        self.metrics = metrics
        self.deadline_seconds = deadline_seconds
        self.slow_seconds = slow_seconds
        self.internal = {"/livez": self._livez, "/readyz": self._readyz, "/metrics": self._metrics}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            self.metrics.flush()  # the worker is about to leave
            return
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                logs.request_id.set(value.decode("latin-1"))
                break
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif (answer := self.internal.get(scope["path"])) is not None:
            await _respond(send, *answer())
        else:
            await Exchange(self, scope, send).run(receive)

    def _livez(self) -> tuple[int, bytes, bytes]:
        return 200, b"text/plain", b"alive\n"

    def _readyz(self) -> tuple[int, bytes, bytes]:
        return (200 if lifecycle.state == "ready" else 503), b"text/plain", lifecycle.state.encode() + b"\n"

    def _metrics(self) -> tuple[int, bytes, bytes]:
        return 200, CONTENT_TYPE, self.metrics.exposition()


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_answer_504",
        "_expired",
        "_scope",
        "_send",
        "_shell",
        "_start",
        "_status",
        "_task",
        "_timer",
    )

    def __init__(self, shell: Shell, scope: Scope, send: Send) -> None:
        self._shell = shell
        self._scope = scope
        self._send = send
        self._start = perf_counter()
        self._status = 0  # 0: the answer has not started
        self._expired = False
        self._answer_504: asyncio.Task[None] | None = None

    async def run(self, receive: Receive) -> None:
        shell = self._shell
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task(loop)
        self._timer = loop.call_later(shell.deadline_seconds, self._expire)
        shell.metrics.begin()
        failure: Exception | None = None
        try:
            await shell.app(self._scope, receive, self._forward)
        except asyncio.CancelledError:
            if not self._expired:
                self._record(None)
                raise
            assert self._task is not None
            self._task.uncancel()
        except Exception as error:
            failure = error
        finally:
            self._timer.cancel()
        if self._answer_504 is not None:
            await self._answer_504
        elif failure is not None and not self._status:
            self._status = 500
            await self._refuse(500, "Internal Server Error")
        self._record(failure)

    def _forward(self, message: Message) -> Awaitable[None]:
        """The application's `send`. Not a coroutine itself: that would be one more frame for each message."""
        if self._expired:
            return _nothing()  # the deadline has answered in the handler's place
        if message["type"] == "http.response.start":
            self._status = message["status"]
            for name, value in message.get("headers", ()):
                if name == b"content-type":
                    if value.startswith(b"text/event-stream"):
                        self._timer.cancel()
                        lifecycle.mark_stream(self._scope)
                    break
        return self._send(message)

    def _expire(self) -> None:
        self._expired = True
        if not self._status:
            # Answered from here and not from where the cancellation arrives: a handler in a thread cannot be
            # cancelled, and its client must not wait for it.
            self._status = 504
            self._answer_504 = asyncio.ensure_future(self._refuse(504, "Gateway Timeout"))
        self._cancel()

    def _cancel(self) -> None:
        assert self._task is not None
        if _waits_for_thread(self._task):
            # Cancelled, it would give back its place in the thread pool while the thread works on: threads without
            # number, up to the container's limit, where no worker can be started any more.
            self._timer = asyncio.get_running_loop().call_later(THREAD_POLL_SECONDS, self._cancel)
        else:
            self._task.cancel()

    async def _refuse(self, status: int, error: str) -> None:
        body = {"status": status, "error": error, "request_id": logs.request_id.get()}
        await _respond(self._send, status, b"application/json", json.dumps(body).encode())

    def _record(self, failure: Exception | None) -> None:
        shell, scope = self._shell, self._scope
        status = self._status or 499  # nginx's number for a client that left before the answer began
        seconds = perf_counter() - self._start
        route = getattr(scope.get("route"), "path", "")
        shell.metrics.end(scope["method"], route, status, seconds)
        if status < 500 and failure is None and not self._expired and seconds < shell.slow_seconds:
            return
        reason = "deadline" if self._expired else "error" if failure or status >= 500 else "slow"
        logger.log(
            logging.WARNING if reason == "slow" else logging.ERROR,
            "%s %s", scope["method"], scope["path"], exc_info=failure,
            extra={"reason": reason, "status": status, "duration_ms": round(seconds * 1000, 1)},
        )  # fmt: skip


def _waits_for_thread(task: asyncio.Task[None]) -> bool:
    """Whether a thread of the pool works for this task: anyio's function then awaits a future, not yet a place."""
    waiting: Any = task.get_coro()
    while isinstance(inner := getattr(waiting, "cr_await", None), CoroutineType):
        waiting = inner
    return getattr(waiting, "__name__", "") == "run_sync_in_worker_thread"


async def _respond(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _nothing() -> None:
    return None
