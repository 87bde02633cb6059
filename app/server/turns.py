"""Short turns of the event loop while connections are new.

Between a connection and the start of its first request lie three turns of the loop, and a turn lasts as long as all
requests that begin in it: the last connections of a burst would wait through full rounds of requests that came after
theirs (make bench EXPERIMENTS=burst). Turns are short only while connections are new: with few requests in a turn the
kernel is asked more often, and each request costs more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable

from app.server.asgi import ASGIApp, Receive, Scope, Send

REQUESTS_IN_A_SHORT_TURN = 4
SHORT_TURNS = 3


class TurnGate:
    """ASGI, outermost: at most REQUESTS_IN_A_SHORT_TURN requests begin in a short turn, in the order they came."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.short_turns = 0  # still to come
        self._begun = 0  # requests, in this turn
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Not a coroutine itself: that would be one more frame for each request."""
        if self.short_turns and scope["type"] != "lifespan":
            if self._begun >= REQUESTS_IN_A_SHORT_TURN or self._waiting:
                return self._in_its_turn(scope, receive, send)
            self._begun += 1
        return self.app(scope, receive, send)

    async def _in_its_turn(self, scope: Scope, receive: Receive, send: Send) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter
        await self.app(scope, receive, send)

    def shorten_turns(self) -> None:
        """A connection is new: this turn and the next ones are short."""
        if not self.short_turns:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self.short_turns = SHORT_TURNS

    def _next_turn(self) -> None:
        self.short_turns -= 1
        self._begun = 0
        while self._waiting and (self._begun < REQUESTS_IN_A_SHORT_TURN or not self.short_turns):
            waiter = self._waiting.popleft()
            if not waiter.done():  # its request may have been cancelled
                waiter.set_result(None)
                self._begun += 1
        if self.short_turns:
            asyncio.get_running_loop().call_soon(self._next_turn)
