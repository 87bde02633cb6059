"""What every request gets: its id, a deadline, a line in the log if it fails or is slow, a place in the metrics.

It is one pure ASGI layer and not five, because each further layer costs a call for every message of every request
(make bench measures it). The health endpoints are in it for the same reason.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable
from time import monotonic
from types import CoroutineType
from typing import Any

from anyio import move_on_after

from app.server import logs, worker_state
from app.server.asgi import ASGIApp, Message, Receive, Scope, Send
from app.server.cache import Offers
from app.server.deadlines import Deadlines
from app.server.metrics import Metrics

logger = logging.getLogger("app.requests")


class RequestMiddleware:
    """Wraps `app`; takes its place as the ASGI application of the server."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        deadline_seconds: float,
        stall_seconds: float,
        slow_seconds: float,
        offers: Offers | None = None,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.deadlines = Deadlines(deadline_seconds)
        self.stall_seconds = stall_seconds
        self.slow_seconds = slow_seconds
        self.offers = offers
        self.internal = {"/livez": self._livez, "/readyz": self._readyz}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of a request it does all by itself: a call of another coroutine would cost one more frame for each."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                logs.request_id.set(value.decode("latin-1"))
                break
        if kind != "http":
            self.metrics.websocket(1)
            try:
                await self.app(scope, receive, send)
            finally:
                self.metrics.websocket(-1)
            return
        if (answer := self.internal.get(scope["path"])) is not None:
            await _respond(send, *answer())
            return
        request = RequestResponse(self, scope, receive, send)
        failure: BaseException | None = None
        try:
            await self.app(scope, receive, request.forward)
        except asyncio.CancelledError:
            if not request.may_be_cancelled():
                raise
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            failure = error  # also SystemExit: sys.exit() in a handler must not take the counters along
        finally:
            is_answered = request.on_end_of_call()
        if failure is not None or not is_answered:
            await request.end(failure)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                # Starlette's message is the traceback; its last line is the reason.
                reason = message.get("message", "").strip().rpartition("\n")[2]
                worker_state.startup_failure = f"lifespan startup: {reason}"
            await send(message)

        await self.app(scope, receive, watched)

    def _livez(self) -> tuple[int, bytes, bytes]:
        return 200, b"text/plain", b"alive\n"

    def _readyz(self) -> tuple[int, bytes, bytes]:
        return (200 if worker_state.state == "ready" else 503), b"text/plain", worker_state.state.encode() + b"\n"


class RequestResponse:
    """One request and its answer.

    The answer must begin within the deadline: else the client gets 504, and the handler is cancelled. One that has
    begun may last as long as it moves: it is cut when the application has sent nothing for `stall_seconds`, though
    the client takes what it gets. What the application does after its answer (background tasks) has no limit.
    """

    __slots__ = (
        "_answered",
        "_begun",
        "_cancelled",
        "_cut",
        "_ended",
        "_last_sent",
        "_middleware",
        "_own_answer",
        "_receive",
        "_recorded",
        "_scope",
        "_send",
        "_sending",
        "_start",
        "_status",
        "_streams_events",
        "_task",
        "_timer",
    )

    def __init__(self, middleware: RequestMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        """It begins."""
        self._middleware = middleware
        self._scope = scope
        self._receive = receive
        self._send = send
        self._status = 0  # 0: the answer has not begun
        self._answered = False  # to its end
        self._recorded = False
        self._cut = ""  # why it was not the application that ended it: "deadline", "stall", "no answer", "drain"
        self._cancelled = False  # from here
        self._ended = False  # the application's call
        self._timer: asyncio.TimerHandle | None = None  # for an answer that stands still
        self._own_answer: asyncio.Task[None] | None = None
        self._streams_events = False
        self._sending = 0  # parts of a stream that the client has not taken yet
        self._task: asyncio.Task[Any] = asyncio.current_task(worker_state.loop)  # type: ignore[assignment]
        self._start = monotonic()
        middleware.deadlines.add(self, self._start)
        middleware.metrics.begin()

    def may_be_cancelled(self) -> bool:
        """The application's call was cancelled: from here, or by a drain whose time is over, and not from elsewhere."""
        if not self._cancelled:
            if worker_state.state != "draining":
                self._record()
                return False
            self._cut = "" if self._answered or self._streams_events else "drain"
        return True

    def on_end_of_call(self) -> bool:
        """The application's call is over, in whatever way. Whether the answer is at its end, and says of no fault."""
        self._ended = True
        if not self._answered:
            self._stop_timing()
        if self._streams_events:
            worker_state.end_event_stream.discard(self._end_event_stream)
            self._middleware.metrics.stream(-1)
        return self._answered and self._status < 500

    async def end(self, failure: BaseException | None) -> None:
        """What the application's call has left to do: an answer that it did not give, and a line in the log."""
        if self._cancelled:
            self._task.uncancel()
        if self._own_answer is not None:
            await self._own_answer
        elif not self._status and self._cut == "drain":
            # What has begun may have been done: the answer must not say "not done, ask again".
            await self._answer(504, "Gateway Timeout")
        elif not self._status and (failure is not None or not await self._client_has_left()):
            self._cut = "" if failure else "no answer"
            await self._answer(500, "Internal Server Error")
        elif self._streams_events and not (self._answered or failure) and worker_state.state == "draining":
            await self._send({"type": "http.response.body"})
        # Any other answer that is not at its end stays so, and Uvicorn closes its connection: its client must see that
        # it is cut.
        self._record()
        if self._cut or failure is not None:
            self._middleware.metrics.cut(self._cut or "error")
        if self._cut or failure is not None or self._status >= 500:
            self._log(logging.ERROR, self._cut or "error", failure)

    def forward(self, message: Message) -> Awaitable[None]:
        """The application's `send`. Not a coroutine itself: that would be one more frame for each message."""
        if self._cut:
            return _nothing()  # the client has its answer, or has lost its connection
        if message["type"] == "http.response.start":
            if not self._status:
                self._begin(message)
        elif message["type"] == "http.response.body" and self._status:
            if message.get("more_body", False):
                return self._send_part(message)
            self._answered = True
            self._stop_timing()
            self._record()
        return self._send(message)

    def _begin(self, message: Message) -> None:
        self._status = message["status"]
        self._begun = self._last_sent = monotonic()
        for name, value in message.get("headers", ()):
            if name == b"content-type":
                if value.startswith(b"text/event-stream"):
                    self._streams_events = True
                    worker_state.end_event_stream.add(self._end_event_stream)
                    self._middleware.metrics.stream(1)
                break
        if (offers := self._middleware.offers) is not None:
            offers.look_at(self._scope, message)

    async def _send_part(self, message: Message) -> None:
        self._sending += 1
        try:
            await self._send(message)
        finally:
            self._sending -= 1
            self._last_sent = monotonic()

    def _stop_timing(self) -> None:
        self._middleware.deadlines.begun.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()

    def on_deadline(self) -> None:
        if self._status:
            self._on_stall()
            return
        self._cut = "deadline"
        # Answered from here and not from where the cancellation arrives: a handler in a thread cannot be cancelled,
        # and its client must not wait for it.
        self._own_answer = asyncio.ensure_future(self._answer(504, "Gateway Timeout"))
        self._cancel()

    def _cancel(self) -> None:
        if self._ended:
            return
        if (thread := _awaited_thread(self._task)) is None:
            self._cancelled = True
            self._task.cancel()
        else:
            # Cancelled now, it would give back its place in the thread pool while the thread works on: threads without
            # number, up to the container's limit, where no worker can be started any more.
            thread.add_done_callback(lambda _: self._cancel())

    def _on_stall(self) -> None:
        """Cut the answer if it has stood still for long enough; else look again when it may have.

        While the client has not taken a part, nginx judges whether it moves (CLIENT_SEND_TIMEOUT_SECONDS).
        """
        limit = self._middleware.stall_seconds
        standing = 0.0 if self._sending else monotonic() - self._last_sent
        if standing < limit:
            self._timer = asyncio.get_running_loop().call_later(limit - standing, self._on_stall)
        else:
            self._cut = "stall"
            self._cancel()

    def _end_event_stream(self) -> None:
        """The worker drains. The application may still send a last event when it is cancelled."""
        worker_state.end_event_stream.discard(self._end_event_stream)
        if not self._answered:  # what it does after its answer goes on
            self._cancel()

    async def _client_has_left(self) -> bool:
        """Whether a handler that gave no answer had nobody to give it to."""
        with move_on_after(0):
            while True:
                if (await self._receive())["type"] == "http.disconnect":
                    return True
        return False

    async def _answer(self, status: int, error: str) -> None:
        self._status = status
        self._begun = monotonic()
        self._answered = True
        body = {"status": status, "error": error, "request_id": logs.request_id.get()}
        await _respond(self._send, status, b"application/json", json.dumps(body).encode())

    def _record(self) -> None:
        """Count the request, once: at the end of its answer, not of what the application does after it."""
        if self._recorded:
            return
        self._recorded = True
        middleware, scope, now = self._middleware, self._scope, monotonic()
        route = getattr(scope.get("route"), "path", "")
        # 499: nginx's number for a client that left before the answer began
        seconds = None if self._streams_events else now - self._start
        middleware.metrics.end(scope["method"], route, self._status or 499, seconds)
        waited = (self._begun if self._status else now) - self._start
        if waited >= middleware.slow_seconds and not self._cut and self._status < 500:
            self._log(logging.WARNING, "slow", None)

    def _log(self, level: int, reason: str, failure: BaseException | None) -> None:
        extra = {
            "reason": reason,
            "status": self._status or 499,
            "duration_ms": round((monotonic() - self._start) * 1000, 1),
        }
        logger.log(level, "%s %s", self._scope["method"], self._scope["path"], exc_info=failure, extra=extra)


def _awaited_thread(task: asyncio.Task[None]) -> asyncio.Future[Any] | None:
    """What the task waits for, if that is a thread of the pool that works for it, and not yet a place there."""
    waiting: Any = task.get_coro()
    while isinstance(inner := getattr(waiting, "cr_await", None), CoroutineType):
        waiting = inner
    if getattr(waiting, "__name__", "") != "run_sync_in_worker_thread":
        return None
    future: asyncio.Future[Any] | None = task._fut_waiter  # type: ignore[attr-defined]
    return future


async def _respond(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _nothing() -> None:
    return None
