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
# Between a connection and the start of its first request lie three turns of the loop, and a turn lasts as long as all
# requests that begin in it: the last connections of a burst would wait for whole rounds of requests that came after
# theirs (make bench EXPERIMENTS=burst). So turns are short while connections are new. Not always: with fewer requests
# in a turn the kernel is asked more often, and each request costs more.
REQUESTS_IN_A_SHORT_TURN = 4
SHORT_TURNS = 3


class Edge:
    """ASGI, outermost. While connections are new, so many requests begin in one turn of the loop, in the order they
    came; an answer that a drain cancels still ends well; and a failed start says why.
    """

    def __init__(self, app: ASGIApp, tell: Callable[[str], None]) -> None:
        self.app = app
        self.tell = tell
        self.short_turns = 0  # still to come
        self.begun = 0  # in this one
        self.waiting: deque[asyncio.Future[None]] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        try:
            if self.short_turns:
                if self.begun >= REQUESTS_IN_A_SHORT_TURN or self.waiting:
                    waiter = asyncio.get_running_loop().create_future()
                    self.waiting.append(waiter)
                    await waiter
                else:
                    self.begun += 1
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            if lifecycle.state != "draining":
                raise
            if scope["type"] == "http":
                await _end_answer(scope, send)

    def connections_are_new(self) -> None:
        if not self.short_turns:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self.short_turns = SHORT_TURNS

    def _next_turn(self) -> None:
        self.short_turns -= 1
        self.begun = 0
        while self.waiting and (self.begun < REQUESTS_IN_A_SHORT_TURN or not self.short_turns):
            waiter = self.waiting.popleft()
            if not waiter.done():  # its request may have been cancelled
                waiter.set_result(None)
                self.begun += 1
        if self.short_turns:
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
