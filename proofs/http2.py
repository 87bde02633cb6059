"""An HTTP/2 client that does what RFC 9113 lets a client do at a GOAWAY, and nothing more.

A request with a higher number than the last that the server says it takes was not processed: it goes to a new
connection. Every other one is answered or lost. httpx drops both kinds.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import ConnectionInputs, ConnectionState, H2Connection, H2ConnectionStateMachine
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)

# h2 takes a connection for closed when the server will take no further request, though answers are still to come.
H2ConnectionStateMachine._transitions[ConnectionState.CLIENT_OPEN, ConnectionInputs.RECV_GOAWAY] = (
    None,
    ConnectionState.CLIENT_OPEN,
)

MOST_CONNECTIONS = 4


class NotProcessed(Exception):
    """The server says that it has not looked at the request: it may be sent again, whatever it is."""


@dataclass
class Stream:
    answer: asyncio.Future[int]
    status: int = 0
    body: bytearray = field(default_factory=bytearray)


class Connection(asyncio.Protocol):
    """One connection, with as many requests under way as are asked for."""

    def __init__(self) -> None:
        # A header that HTTP/2 forbids is sent as it is: h2 would leave it out.
        config = H2Configuration(
            header_encoding="utf-8", normalize_outbound_headers=False, validate_outbound_headers=False
        )
        self.h2 = H2Connection(config)
        self.transport: asyncio.Transport | None = None
        self.streams: dict[int, Stream] = {}
        self.no_more = False  # it takes no further request
        self.goaways: list[int] = []
        self.settings: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        assert self.transport is not None
        self.transport.write(self.h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, ConnectionTerminated):
                self._go_away(event)
            elif isinstance(event, RemoteSettingsChanged):
                if not self.settings.done():
                    self.settings.set_result(None)
            elif isinstance(event, ResponseReceived) and event.stream_id in self.streams:
                self.streams[event.stream_id].status = int(dict(event.headers)[":status"])  # type: ignore[index]
            elif isinstance(event, DataReceived):
                if event.stream_id in self.streams:
                    self.streams[event.stream_id].body += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                self._end(event.stream_id, None)
            elif isinstance(event, StreamReset):
                refused = event.error_code == ErrorCodes.REFUSED_STREAM
                error = f"stream reset: {event.error_code}"
                self._end(event.stream_id, NotProcessed(error) if refused else ConnectionError(error))
        self.flush()

    def _go_away(self, event: ConnectionTerminated) -> None:
        self.no_more = True
        self.goaways.append(int(event.error_code or 0))
        for number in [number for number in self.streams if number > (event.last_stream_id or 0)]:
            self._end(number, NotProcessed("GOAWAY"))
        self._close_when_done()

    def _end(self, number: int, error: Exception | None) -> None:
        stream = self.streams.pop(number, None)
        if stream is not None and not stream.answer.done():
            if error:
                stream.answer.set_exception(error)
            else:
                stream.answer.set_result(stream.status)
        self._close_when_done()

    def _close_when_done(self) -> None:
        if self.no_more and not self.streams and self.transport is not None:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.no_more = True
        for number in list(self.streams):
            self._end(number, exc or ConnectionError("closed without an answer"))

    def begin(self, headers: list[tuple[str, str]], body: bytes = b"") -> Stream:
        """Send a request; its answer is to come."""
        number = self.h2.get_next_available_stream_id()
        stream = self.streams[number] = Stream(asyncio.get_running_loop().create_future())
        self.h2.send_headers(number, headers, end_stream=not body)
        if body:
            self.h2.send_data(number, body, end_stream=True)
        self.flush()
        return stream


async def connect(port: int, trust: ssl.SSLContext) -> Connection:
    """A connection on which the server's settings have arrived; `trust` offers h2."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, "127.0.0.1", port, ssl=trust, server_hostname="localhost")
    await connection.settings
    return connection


def request_headers(
    method: str, path: str, port: int, more: list[tuple[str, str]] | None = None
) -> list[tuple[str, str]]:
    pseudo = [(":method", method), (":scheme", "https"), (":authority", f"localhost:{port}"), (":path", path)]
    return pseudo + (more or [])


class Connections:
    """What open_loop.Connections is for HTTP/1.1. Lives on one event loop."""

    def __init__(self, port: int, trust: ssl.SSLContext) -> None:
        self.port = port
        self.trust = trust
        self.open: list[Connection] = []
        self.sent_again = 0
        self.goaways = 0
        self.opening = asyncio.Lock()

    async def ask(self, request: bytes) -> int:
        """The status of the answer to `request`, written as in HTTP/1.1."""
        head, _, body = request.partition(b"\r\n\r\n")
        line, *rest = head.decode().split("\r\n")
        method, path, _ = line.split(" ")
        pairs = [(name.lower(), value) for name, _, value in (each.partition(": ") for each in rest)]
        headers = request_headers(method, path, self.port, [pair for pair in pairs if pair[0] != "host"])
        async with asyncio.timeout(60):
            while True:
                connection = await self._take()
                try:
                    return await connection.begin(headers, body).answer
                except NotProcessed:
                    self.sent_again += 1

    async def _take(self) -> Connection:
        async with self.opening:
            self.goaways += sum(bool(connection.goaways) for connection in self.open if connection.no_more)
            self.open = [connection for connection in self.open if not connection.no_more]
            if len(self.open) < MOST_CONNECTIONS:
                self.open.append(await connect(self.port, self.trust))
        usable = [connection for connection in self.open if not connection.no_more]
        return min(usable, key=lambda connection: len(connection.streams)) if usable else await self._take()

    def close(self) -> None:
        for connection in self.open:
            if connection.transport is not None:
                connection.transport.close()
