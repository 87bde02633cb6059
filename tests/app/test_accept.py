"""What becomes of connections whose handshake has not ended when the last holder of a socket closes it."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import pytest
import uvloop

from app.server import accept, accept_queues
from app.server.accept import Acceptor, attach_filter

SO_DETACH_FILTER = 27


def begin_handshake(port: int) -> socket.socket:
    """A client that drops whatever comes, as the second packet of its handshake."""
    client = socket.socket()
    attach_filter(client, (0x06, 0, 0, 0))
    client.setblocking(False)
    client.connect_ex(("127.0.0.1", port))
    return client


class Greeting(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writer = cast(asyncio.WriteTransport, transport)
        writer.write(b"hello")
        writer.close()


def test_a_handshake_that_is_late_is_taken_before_the_socket_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy machine may take off the filter behind the second packet of the first second: the next comes after 3 s.
    monkeypatch.setattr(accept, "LONGEST_HANDSHAKE_SECONDS", 5 * accept.LONGEST_HANDSHAKE_SECONDS)

    async def late() -> bytes:
        loop = asyncio.get_running_loop()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        acceptor = Acceptor([listener], Greeting, lambda: None, backlog=10, at_once=10)
        acceptor.start()
        port = listener.getsockname()[1]
        with begin_handshake(port) as client:
            assert accept_queues.handshakes({port}) == 1
            acceptor.close_as_last_holder()
            await asyncio.sleep(0.1)
            assert acceptor.listeners, "closed while a handshake goes on"
            client.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
            answer = await loop.sock_recv(client, 100)  # the kernel sends the second packet again after a second
            while acceptor.listeners:  # noqa: ASYNC110 (nothing tells of its end)
                await asyncio.sleep(0.01)
        return answer

    async def bounded() -> bytes:
        async with asyncio.timeout(20):
            return await late()

    assert uvloop.run(bounded()) == b"hello"


def test_a_client_that_never_ends_its_handshake_holds_up_the_close_for_a_bounded_time() -> None:
    async def never() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        acceptor = Acceptor([listener], Greeting, lambda: None, backlog=10, at_once=10)
        acceptor.start()
        with begin_handshake(listener.getsockname()[1]):
            acceptor.close_as_last_holder()
            async with asyncio.timeout(20):
                while acceptor.listeners:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    uvloop.run(never())
