"""One connection of a worker: Uvicorn's protocol, but it drains, and writes an answer's head together with its body.

Relied on, beyond the public interface (tests/app/test_contract.py): the protocol's `transport` is what it and its
cycles write to, with write(), is_closing() and close(); an answer is its head in one write(), which only a
100 Continue may come before, and on_response_complete() is called behind its last one. Of its loop the protocol wants
tasks, and a timer for each answer that closes the connection when it has been idle for too long.
"""

from __future__ import annotations

import asyncio
from array import array
from fcntl import ioctl
from termios import FIONREAD
from time import monotonic
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.server.deadlines import Deadlines
from app.server.forwarded import Forwarded

CONTINUE = b"HTTP/1.1 100 "
# Up to here, to copy the body behind its head costs less than to write two pieces at a time.
COPIED_BYTES = 16384


class HeldHeads:
    """The heads of answers that wait for their bodies; those whose bodies do not follow in this turn of the loop, as
    in a stream, go alone.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.held: list[JoiningTransport] = []

    def hold(self, transport: JoiningTransport) -> None:
        if not self.held:
            self.loop.call_soon(self._release)
        self.held.append(transport)

    def _release(self) -> None:
        held, self.held = self.held, []
        for transport in held:
            if transport.head:
                transport.flush()


class JoiningTransport:
    """A transport whose write() keeps the head of an answer until the first of its body comes.

    Uvicorn writes both by themselves: a system call more here, a read more in nginx, and two packets. It knows nothing
    of its protocol: holding each other, they would stay in memory until the garbage collector comes. It has no
    __getattr__: with one, each look at any of its fields would cost more.
    """

    __slots__ = ("expects_head", "get_extra_info", "head", "heads", "is_closing", "transport")

    def __init__(self, transport: asyncio.Transport, heads: HeldHeads) -> None:
        self.transport = transport
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info
        self.heads = heads
        self.expects_head = True
        self.head = b""

    def write(self, data: bytes) -> None:
        if self.head:
            head, self.head = self.head, b""
            if len(data) <= COPIED_BYTES:
                self.transport.write(head + data)
            else:
                self.transport.writelines((head, data))
        elif self.expects_head and not data.startswith(CONTINUE):
            self.expects_head = False
            self.head = data
            self.heads.hold(self)
        else:
            self.transport.write(data)

    def flush(self) -> None:
        if self.head:
            head, self.head = self.head, b""
            if not self.is_closing():
                self.transport.write(head)

    def close(self) -> None:
        self.flush()
        self.transport.close()


class Kept:
    """In the place of the timer that closes an idle connection, as long as Uvicorn would have one."""

    def cancel(self) -> None:
        """Nothing."""


class TaskMaker:
    """All that a protocol gets of its loop: for the timer of an idle connection there are its Deadlines."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.create_task = loop.create_task
        self.kept = Kept()

    def call_later(self, seconds: float, close: Any) -> Kept:
        return self.kept


class DrainingProtocol(HttpToolsProtocol):
    """A connection that a shutdown leaves open: nginx may be sending on it at this very moment."""

    joining: JoiningTransport

    def __init__(self, heads: HeldHeads, forwarded: Forwarded, idle: Deadlines, **given: Any) -> None:
        super().__init__(**given)
        self.heads = heads
        self.forwarded = forwarded
        self.idle = idle
        self.idle_since = monotonic()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app = self.forwarded.app_for(self.client)
        self.joining = JoiningTransport(transport, self.heads)
        self.transport = cast(asyncio.Transport, self.joining)

    def on_response_complete(self) -> None:
        joining = self.joining
        if joining.head:
            joining.flush()  # of an answer that has no body
        joining.expects_head = True
        self.idle_since = now = monotonic()
        super().on_response_complete()
        # The next request does not take it out, which would be one more call for each: on_deadline() looks.
        self.idle.begun.pop(self, None)
        self.idle.add(self, now)

    def on_deadline(self) -> None:
        if self.timeout_keep_alive_task is not None and self.has_nothing_unread:  # none has come since
            self.timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        self.idle.begun.pop(self, None)
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        self.transport = self.joining.transport
        super().handle_websocket_upgrade()
        self.idle.begun.pop(self, None)
        # It holds this protocol, which holds it: both would stay as long as the WebSocket, or until the garbage
        # collector comes.
        self.parser = None  # type: ignore[assignment]

    @property
    def is_idle(self) -> bool:
        """No request is under way: none has come yet, or the last one is answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def has_nothing_unread(self) -> bool:
        """No byte has come that the loop has not seen yet.

        A worker that had no CPU for a while may find that a connection's time is over before it finds the request that
        came in time: a POST would be lost.
        """
        unread = array("i", [0])
        if not self.transport.is_closing():
            ioctl(self.joining.get_extra_info("socket").fileno(), FIONREAD, unread)
        return not unread[0]

    def shutdown(self) -> None:
        """The answer that has not begun says `Connection: close`.

        One that has begun said nothing, so its connection goes back into nginx's pool and must stay open, or the next
        POST on it is lost.
        """
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def close_if_idle_since(self, moment: float) -> None:
        """Close it when it has been idle since `moment`, in monotonic time: nginx has given it up by then."""
        if self.is_idle and self.idle_since <= moment and self.has_nothing_unread:
            self.transport.close()
