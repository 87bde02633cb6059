from __future__ import annotations

import asyncio
import gc
import os
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop
from uvicorn import Config
from uvicorn.server import ServerState

from app.server.asgi import ASGIApp, Receive, Scope, Send
from app.server.connection import COPIED_BYTES, DrainingProtocol, HeldHeads, TaskMaker
from app.server.deadlines import Deadlines
from app.server.forwarded import Forwarded

ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OTAxMjM0NQ==\r\n\r\n"
)
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Recorded(DrainingProtocol):
    """Notes what is written to the real transport, a piece for each call."""

    made: list[weakref.ref[Recorded]]
    written: list[bytes]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.made.append(weakref.ref(self))
        self.joining.transport = Recorder(transport, self.written)  # type: ignore[assignment]


class Recorder:
    def __init__(self, transport: asyncio.Transport, written: list[bytes]) -> None:
        self.transport, self.written = transport, written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def write(self, data: bytes) -> None:
        self.written.append(bytes(data))
        self.transport.write(data)

    def writelines(self, pieces: tuple[bytes, ...]) -> None:
        self.written.append(b"".join(pieces))
        self.transport.writelines(pieces)


def serve(
    app: ASGIApp,
    talk: Talk,
    run: Callable[..., None] = asyncio.run,
    made: list[weakref.ref[Recorded]] | None = None,
    keep: float = 75,
) -> Recorded:
    """`talk` to a server of `app` on loopback; its class, which has what was written and the connections made."""
    connections = [] if made is None else made

    class Kept(Recorded):
        made: list[weakref.ref[Recorded]] = connections
        written: list[bytes] = []  # noqa: RUF012

    async def talking() -> None:
        config = Config(app, http="httptools", lifespan="off", log_config=None)
        config.load()
        loop = asyncio.get_running_loop()
        state = ServerState()
        given = {"config": config, "server_state": state, "app_state": {}, "_loop": TaskMaker(loop)}
        shared = HeldHeads(loop), Forwarded(config.loaded_app), Deadlines(keep)
        server = await loop.create_server(lambda: Kept(*shared, **given), "127.0.0.1", 0)
        async with server, asyncio.timeout(20):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            await talk(reader, writer)
            writer.close()
            while state.connections:  # noqa: ASYNC110 (nothing tells of its end)
                await asyncio.sleep(0.01)

    run(talking())
    return Kept  # type: ignore[return-value]


def answering(*body: bytes, **headers: str) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": given})
        for part in body:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("size", [2, COPIED_BYTES, COPIED_BYTES + 1, 1 << 20])
def test_head_and_body_are_written_together(run: Callable[..., None], size: int) -> None:
    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            writer.write(ASK)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert await reader.readexactly(size) == b"x" * size

    found = serve(answering(b"x" * size, content_length=str(size)), twice, run)
    ends = [(piece[:15], piece[-1:]) for piece in found.written if piece]  # the end of the body is an empty piece
    assert ends == [(b"HTTP/1.1 200 OK", b"x")] * 2


def test_the_head_of_an_answer_whose_body_is_not_there_yet_goes_alone() -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"ok"})

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ASK)
        await reader.readuntil(b"\r\n\r\n")
        go_on.set()
        assert await reader.readexactly(2) == b"ok"

    assert len(serve(app, talk).written) == 2


def test_answers_without_a_body_and_with_one_are_told_apart_on_one_connection() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ASK.replace(b"GET", b"HEAD") * 2 + ASK * 2)
        for body in (b"", b"", b"ok", b"ok"):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            assert await reader.readexactly(len(body)) == body

    found = serve(answering(b"ok", content_length="2"), talk)
    pieces = [piece for piece in found.written if piece]
    assert [piece.count(b"HTTP/1.1 200 OK") for piece in pieces] == [1] * 4
    assert [piece.endswith(b"ok") for piece in pieces] == [False, False, True, True]


def test_an_answer_that_fails_behind_its_head_shows_its_head_and_is_cut() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        raise ValueError("no body")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ASK)
        assert await reader.read() == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"

    serve(app, talk)


def test_a_client_that_is_told_to_go_on_is_told_at_once_and_answered_whole() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": body})

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ok")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        assert await reader.readexactly(2) == b"ok"

    serve(app, talk)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_connection_is_closed_for_its_idleness_between_two_requests_alone(run: Callable[..., None]) -> None:
    """Not before its first one, and not while one comes or is answered."""
    keep, longer = 0.3, 0.7
    clients: list[int] = []
    answered: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(longer)
        answered.append(time.monotonic())
        await answering(b"ok", content_length="2")(scope, receive, send)
        if len(answered) == 1:
            os.write(clients[0], ASK[:10])  # and not a turn of the loop in between, however late the client is

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.append(writer.get_extra_info("socket").fileno())
        await asyncio.sleep(longer)
        writer.write(ASK[:10])
        for _ in range(2):
            await asyncio.sleep(longer)
            writer.write(ASK[10:])
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 OK\r\n")
        assert await reader.read() == b""
        assert time.monotonic() - answered[-1] > keep - 0.1

    serve(app, talk, run, keep=keep)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("close", ["drain", "keep-alive"])
def test_a_request_that_the_worker_has_not_read_yet_is_answered_where_idleness_would_close(
    run: Callable[..., None], close: str
) -> None:
    """A worker that got no CPU for a while finds the end of a connection's time before its next request."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ASK)
        await reader.readuntil(b"ok")
        connection = made[0]()
        assert connection is not None
        os.write(writer.get_extra_info("socket").fileno(), ASK)  # and not a turn of the loop in between
        if close == "drain":
            connection.close_if_idle_since(time.monotonic())
        else:
            connection.on_deadline()
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 OK\r\n")
        connection.close_if_idle_since(time.monotonic())
        assert await reader.read() == b""

    made: list[weakref.ref[Recorded]] = []
    serve(answering(b"ok", content_length="2"), talk, run, made)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_closed_connection_leaves_nothing_for_the_garbage_collector(run: Callable[..., None]) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ASK)
        await reader.readuntil(b"ok")

    gc.collect()
    gc.disable()
    try:
        found = serve(answering(b"ok", content_length="2"), talk, run)
        left = [each for each in found.made if each() is not None]
    finally:
        gc.enable()
    assert len(found.made) == 1
    assert not left, "the protocol of a closed connection is still in memory"


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_an_open_websocket_holds_nothing_of_the_protocol_that_began_it(run: Callable[..., None]) -> None:
    """Parser and protocol hold each other, some kilobytes: they stayed until the garbage collector came."""
    left: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "hello"})
        await receive()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(UPGRADE)
        await reader.readuntil(b"hello")
        left.extend(each() is not None for each in made)

    made: list[weakref.ref[Recorded]] = []
    gc.collect()
    gc.disable()
    try:
        serve(app, talk, run, made)
    finally:
        gc.enable()
    assert left == [False]
