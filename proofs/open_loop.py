"""A load client for the proofs: it notes what became of every single request, and asks the app afterwards.

Requests arrive at a constant rate whether the stack keeps up or not (a true open loop), over keep-alive connections.
Nothing is ever sent twice: a request without a success answer is lost, whatever a kinder client would have done.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from proofs.stack import Stack, until

# About 1 KB, as in real life; every field of the demo app's model.
BODY = json.dumps(
    {
        "customer": {"name": "Ada Lovelace", "email": "ada@example.com", "address": "12 St James's Square, London"},
        "lines": [{"sku": f"sku-{n}", "quantity": n, "unit_price_cents": 250} for n in range(1, 11)],
        "note": "n" * 400,
    }
).encode()
GET_PATHS = ("/work/io?ms=1",)
ANSWER_SECONDS = 60  # an answer that takes longer counts as none
# Requests under way at once. One that is due while as many are without an answer waits its turn, and its wait counts
# from the moment it was due; without this bound a slow minute would turn into ever more load on a slow machine.
MOST_UNDER_WAY = 100


@dataclass
class Outcome:
    """What became of the requests of one run. Times are seconds since its start, latencies seconds."""

    prefix: str
    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    lost: list[tuple[float, str, str, str]] = field(default_factory=list)  # when, method, key, why
    latencies: list[float] = field(default_factory=list)
    doubled: dict[str, int] = field(default_factory=dict)
    applied: int = 0

    @property
    def total(self) -> int:
        return self.sent.total()

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def lost_since(self, when: float) -> list[tuple[float, str, str, str]]:
        return [entry for entry in self.lost if entry[0] >= when]

    def __str__(self) -> str:
        why = Counter(f"{method} {reason}" for _, method, _, reason in self.lost)
        return (
            f"{self.total} requests ({self.sent['POST']} POST), {len(self.lost)} lost {dict(why)}, "
            f"{len(self.doubled)} doubled, longest wait {max(self.latencies, default=0):.2f} s"
        )

    def assert_nothing_lost_or_doubled(self) -> None:
        assert self.total > 0
        assert self.sent["POST"] >= 0.3 * self.total, self
        assert not self.lost, f"{self}; the first: {self.lost[:5]}"
        assert not self.doubled, f"{self}: {list(self.doubled.items())[:5]}"
        assert self.applied == self.answered["POST"], f"{self}: {self.applied} POSTs are in the ledger"


class Connection(asyncio.Protocol):
    """One keep-alive connection to nginx, with one request under way at the most."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.waiter: asyncio.Future[int] | None = None
        self.buffer = b""
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        headers = head.lower().split(b"\r\n")
        length = next((int(h[15:]) for h in headers if h.startswith(b"content-length:")), 0)
        if len(body) < length:
            return
        self.buffer = b""
        if b"connection: close" in headers:
            self.closed = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(exc or ConnectionError("closed without an answer"))

    async def ask(self, request: bytes) -> int:
        assert self.transport is not None
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self.waiter
        finally:
            self.waiter = None


class Connections:
    """Keep-alive connections to one port of loopback, as many as it takes; with `trust` by TLS. Lives on one loop."""

    def __init__(self, port: int, trust: ssl.SSLContext | None = None) -> None:
        self.port = port
        self.trust = trust
        self.idle: deque[Connection] = deque()
        self.open: set[Connection] = set()

    async def ask(self, request: bytes) -> int:
        """The status of the answer; on the connection that was idle longest, so that every one sees idle time."""
        return await self.ask_on(await self.take(), request)

    async def ask_on(self, connection: Connection, request: bytes) -> int:
        try:
            status = await connection.ask(request)
        except BaseException:
            self._close(connection)  # an answer that comes later must not be taken for another's
            raise
        if connection.closed:
            self._close(connection)
        else:
            self.idle.append(connection)
        return status

    async def take(self) -> Connection:
        """One that is idle, or a new one."""
        while self.idle:
            connection = self.idle.popleft()
            if not connection.closed:
                return connection
            self._close(connection)
        connection = await self.connect()
        self.open.add(connection)
        return connection

    async def connect(self) -> Connection:
        name = "localhost" if self.trust else None
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, "127.0.0.1", self.port, ssl=self.trust, server_hostname=name
        )
        return connection

    def _close(self, connection: Connection) -> None:
        self.open.discard(connection)
        assert connection.transport is not None
        connection.transport.close()

    def close(self) -> None:
        for connection in list(self.open):
            self._close(connection)


class Client:
    """Sends requests to one stack and notes their outcome. Lives on one event loop."""

    def __init__(
        self,
        port: int,
        post_share: float = 0.4,
        get_paths: Sequence[str] = GET_PATHS,
        body: bytes = BODY,
        connections: Any = None,
    ) -> None:
        """Each GET is for one of `get_paths`, by chance; one that stands there twice is asked for twice as often.

        `connections` take the place of those to `port`: by TLS, or of HTTP/2.
        """
        self.connections = connections or Connections(port)
        self.post_share = post_share
        self.get_paths = get_paths
        self.body = body
        self.outcome = Outcome(prefix=uuid.uuid4().hex[:12])
        self.places = asyncio.Semaphore(MOST_UNDER_WAY)
        self.start = time.monotonic()

    async def send(self, due: float | None = None) -> None:
        """One request, timed from the moment it was due."""
        due = time.monotonic() if due is None else due
        # In turn and not by chance: a short load has its share of POSTs too.
        number = self.outcome.total
        method = "POST" if int((number + 1) * self.post_share) > int(number * self.post_share) else "GET"
        key = f"{self.outcome.prefix}-{number}"
        self.outcome.sent[method] += 1
        path = "/orders" if method == "POST" else random.choice(self.get_paths)
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: {key}\r\n"
        if method == "POST":
            head += f"Idempotency-Key: {key}\r\nContent-Type: application/json\r\nContent-Length: {len(self.body)}\r\n"
        try:
            async with self.places:
                status = await self.connections.ask(head.encode() + b"\r\n" + (self.body if method == "POST" else b""))
            why = "" if status in (200, 201) else f"status {status}"
        except (OSError, TimeoutError) as error:
            why = f"{type(error).__name__}: {error}"
        if why:
            self.outcome.lost.append((due - self.start, method, key, why))
        else:
            self.outcome.answered[method] += 1
            self.outcome.latencies.append(time.monotonic() - due)

    def close(self) -> None:
        self.connections.close()


class OpenLoop:
    """Load at `rate` requests a second for as long as the `with` block lasts, from a thread of its own.

    Afterwards `outcome` is complete: all answers are in, and `ledger` was asked what was applied: the demo app's, or
    another app's.
    """

    def __init__(
        self, stack: Stack, rate: float, ledger: Callable[[Stack, Outcome], None] | None = None, **client: Any
    ) -> None:
        self.stack = stack
        self.rate = rate
        self.ledger = ledger or ask_the_ledger
        self.client = Client(stack.http_port, **client)
        self.outcome = self.client.outcome
        self._ending = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()), daemon=True)

    @property
    def now(self) -> float:
        return time.monotonic() - self.client.start

    async def _run(self) -> None:
        under_way: set[asyncio.Task[None]] = set()
        due = self.client.start = time.monotonic()
        while not self._ending.is_set():
            while due <= time.monotonic():
                task = asyncio.create_task(self.client.send(due))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                due += 1 / self.rate
            await asyncio.sleep(max(0.001, due - time.monotonic()))
        if under_way:
            await asyncio.wait(under_way)
        self.client.close()

    def __enter__(self) -> OpenLoop:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self._thread.join()
        if exc == (None, None, None):
            self.ledger(self.stack, self.outcome)

    def run_for(self, seconds: float) -> None:
        """Let the load run on. Not a wait for anything: the time is the amount of load."""
        time.sleep(seconds)


def volleys(stack: Stack, size: int, gaps: list[float]) -> Outcome:
    """`size` requests at once, a silence of the first of `gaps` seconds, as many again, the next silence …

    All connections of the proxy to the app idle for just so long in between.
    """
    client = Client(stack.http_port, post_share=0.7, get_paths=["/"])

    async def run() -> None:
        await asyncio.gather(*(client.send() for _ in range(size)))
        for gap in gaps:
            await asyncio.sleep(gap)
            await asyncio.gather(*(client.send() for _ in range(size)))
        client.close()

    uvloop.run(run())
    ask_the_ledger(stack, client.outcome)
    return client.outcome


sent_by_this_process = 0


def ask_the_ledger(stack: Stack, outcome: Outcome) -> None:
    global sent_by_this_process
    sent_by_this_process += outcome.total
    with stack.client() as client:

        def ledger() -> Any:
            answer = client.get("/orders", params={"prefix": f"{outcome.prefix}-"})
            return answer.json() if answer.status_code == 200 else None

        # A stack that was broken on purpose may take some seconds to answer again.
        found = until("an answer about the ledger", ledger)
    outcome.applied, outcome.doubled = found["keys"], found["repeated"]
