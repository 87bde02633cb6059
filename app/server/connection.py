"""One connection of a worker: Uvicorn's protocol, but it drains, and writes an answer's head together with its body.

Relied on, beyond the public interface (tests/app/test_contract.py): the protocol's `transport` is what it and its
cycles write to, with write(), is_closing() and close(); an answer is its head in one write(), which only a
100 Continue may come before, and on_response_complete() is called behind its last one.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CONTINUE = b"HTTP/1.1 100 "


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
            transport.flush()


class JoiningTransport:
    """A transport whose write() keeps the head of an answer until the first of its body comes.

    Uvicorn writes both by themselves: a system call more here, a read more in nginx, and two packets. It knows nothing
    of its protocol: holding each other, they would stay in memory until the garbage collector comes.
    """

    __slots__ = ("expects_head", "head", "heads", "is_closing", "transport")

    def __init__(self, transport: asyncio.Transport, heads: HeldHeads) -> None:
        self.transport = transport
        self.is_closing = transport.is_closing  # asked for each answer
        self.heads = heads
        self.expects_head = True
        self.head = b""

    def write(self, data: bytes) -> None:
        if self.head:
            head, self.head = self.head, b""
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

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


class DrainingProtocol(HttpToolsProtocol):
    """A connection that a shutdown leaves open: nginx may be sending on it at this very moment."""

    joining: JoiningTransport

    def __init__(self, heads: HeldHeads, **given: Any) -> None:
        super().__init__(**given)
        self.heads = heads
        self.idle_since = monotonic()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.joining = JoiningTransport(transport, self.heads)
        self.transport = cast(asyncio.Transport, self.joining)

    def on_response_complete(self) -> None:
        self.joining.flush()  # of an answer that has no body
        self.joining.expects_head = True
        self.idle_since = monotonic()
        super().on_response_complete()

    def handle_websocket_upgrade(self) -> None:
        self.transport = self.joining.transport
        super().handle_websocket_upgrade()

    @property
    def is_idle(self) -> bool:
        """No request is under way: none has come yet, or the last one is answered."""
        return self.cycle is None or self.cycle.response_complete

    def shutdown(self) -> None:
        """The answer that has not begun says `Connection: close`.

        One that has begun said nothing, so its connection goes back into nginx's pool and must stay open, or the next
        POST on it is lost.
        """
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def close_if_idle_since(self, moment: float) -> None:
        """Close it when it has been idle since `moment`, in monotonic time: nginx has given it up by then."""
        if self.is_idle and self.idle_since <= moment:
            self.transport.close()
