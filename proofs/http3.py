"""An HTTP/3 client: one connection, as many requests at a time as are asked for, nothing sent twice."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, QuicEvent, StreamReset

Headers = Sequence[tuple[str, str]]


@dataclass
class Answer:
    """`pieces` are the parts of the body, each with the time of the event loop at which it came."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


class Client(QuicConnectionProtocol):
    """`ended` has the reason when the connection is over."""

    host = "localhost"
    port: int

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.h3 = H3Connection(self._quic)
        self.waiting: dict[int, tuple[Answer, asyncio.Future[Answer]]] = {}
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ConnectionTerminated):
            why = f"{event.error_code} {event.reason_phrase}"
            self.ended.set_result(why)
            for _, future in self.waiting.values():
                future.set_exception(ConnectionError(why))
            self.waiting.clear()
        elif isinstance(event, StreamReset) and event.stream_id in self.waiting:
            _, future = self.waiting.pop(event.stream_id)
            future.set_exception(ConnectionError(f"stream reset: {event.error_code}"))
        for found in self.h3.handle_event(event):
            self._note(found)

    def _note(self, event: H3Event) -> None:
        if not isinstance(event, HeadersReceived | DataReceived) or event.stream_id not in self.waiting:
            return
        answer, future = self.waiting[event.stream_id]
        if isinstance(event, HeadersReceived):
            answer.headers = {name.decode(): value.decode() for name, value in event.headers}
            answer.status = int(answer.headers[":status"])
        elif event.data:
            answer.pieces.append((self._loop.time(), event.data))
        if event.stream_ended:
            del self.waiting[event.stream_id]
            future.set_result(answer)

    def begin(self, method: str, path: str, headers: Headers = (), body: bytes = b"") -> asyncio.Future[Answer]:
        """Send a request; its answer is to come."""
        number = self._quic.get_next_available_stream_id()
        future: asyncio.Future[Answer] = self._loop.create_future()
        self.waiting[number] = (Answer(), future)
        pseudo = [
            (":method", method),
            (":scheme", "https"),
            (":authority", f"{self.host}:{self.port}"),
            (":path", path),
        ]
        sent = [(name.encode(), value.encode()) for name, value in [*pseudo, *headers]]
        self.h3.send_headers(number, sent, end_stream=not body)
        if body:
            self.h3.send_data(number, body, end_stream=True)
        self.transmit()
        return future

    def take_back(self, method: str, path: str) -> None:
        """Send a request, and reset its stream at once."""
        number = self._quic.get_next_available_stream_id()
        pseudo = [
            (":method", method),
            (":scheme", "https"),
            (":authority", f"{self.host}:{self.port}"),
            (":path", path),
        ]
        self.h3.send_headers(number, [(name.encode(), value.encode()) for name, value in pseudo])
        self._quic.reset_stream(number, 0x10C)  # H3_REQUEST_CANCELLED
        self._quic.stop_stream(number, 0x10C)
        self.transmit()

    async def ask(self, method: str, path: str, headers: Headers = (), body: bytes = b"") -> Answer:
        async with asyncio.timeout(60):
            return await self.begin(method, path, headers, body)


@asynccontextmanager
async def connected(port: int, trusted: Path, address: str = "127.0.0.1", idle: float = 60) -> AsyncIterator[Client]:
    """A connection to localhost, whose certificate is in `trusted`; it ends after `idle` seconds without an answer."""
    configuration = QuicConfiguration(
        alpn_protocols=H3_ALPN, server_name="localhost", idle_timeout=idle, verify_mode=ssl.CERT_REQUIRED
    )
    configuration.load_verify_locations(str(trusted))
    async with connect(address, port, configuration=configuration, create_protocol=Client) as client:
        assert isinstance(client, Client)
        client.port = port
        yield client
