"""What the worker puts around the shell: ASGI, but with a view of Uvicorn's loop and of the drain."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from app.server import lifecycle

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
# Between a connection and the start of its first request lie three turns of the loop. Without a bound each turn lasts
# as long as all requests that have come, so the last connections of a burst wait for whole rounds of requests that came
# after them (make bench EXPERIMENTS=burst). With fewer in a turn a busy worker asks the kernel more often than it pays.
REQUESTS_IN_A_TURN = 16


class Edge:
    """ASGI, outermost. At most REQUESTS_IN_A_TURN requests begin in one turn of the loop, in the order they came; an
    answer that a drain cancels still ends well; and a failed start says why.
    """

    def __init__(self, app: ASGIApp, tell: Callable[[str], None]) -> None:
        self.app = app
        self.tell = tell
        self.begun = 0  # in this turn
        self.waiting: deque[asyncio.Future[None]] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        try:
            if self.begun >= REQUESTS_IN_A_TURN or self.waiting:
                waiter = asyncio.get_running_loop().create_future()
                self.waiting.append(waiter)
                await waiter
            else:
                if not self.begun:
                    asyncio.get_running_loop().call_soon(self._next_turn)
                self.begun += 1
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            if lifecycle.state != "draining":
                raise
            if scope["type"] == "http":
                await _end_answer(scope, send)

    def _next_turn(self) -> None:
        self.begun = 0
        while self.waiting and self.begun < REQUESTS_IN_A_TURN:
            waiter = self.waiting.popleft()
            if not waiter.done():  # its request may have been cancelled
                waiter.set_result(None)
                self.begun += 1
        if self.begun:
            asyncio.get_running_loop().call_soon(self._next_turn)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                # Starlette's message is the traceback; its last line is the reason.
                reason = message.get("message", "").strip().rpartition("\n")[2]
                self.tell(f"failed lifespan startup: {reason}")
            await send(message)

        await self.app(scope, receive, watched)


async def _end_answer(scope: Scope, send: Send) -> None:
    cycle = getattr(send, "__self__", None)
    if cycle is None or cycle.response_complete:
        return
    if not cycle.response_started:
        headers = [(b"content-length", b"0"), (b"retry-after", b"1")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body"})
    elif lifecycle.is_stream(scope):
        await send({"type": "http.response.body"})
    # Any other answer stays unfinished, and Uvicorn closes its connection: its client must see that it is cut.
