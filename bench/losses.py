"""Requests of which each one's fate is counted: as idle connections end, and while something happens to the app.

Nothing is sent twice: a request without a success answer is lost.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import uvloop

from proofs.open_loop import Connection, Connections

BODY = b"{}"
POST_SHARE = 0.5
LONG_SECONDS = 0.5
AT_ONCE = 10


@dataclass
class Fate:
    """What became of some requests."""

    sent: int = 0
    why: Counter[str] = field(default_factory=Counter)  # of those that were lost
    waited: int = 0  # those that got their success only after LONG_SECONDS

    @property
    def lost(self) -> int:
        return self.why.total()

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {why}" for why, count in self.why.most_common())
        return f"{self.lost} of {self.sent}" + (f" ({reasons})" if reasons else "")


class Client:
    """Sends to one port of loopback. Lives on one event loop."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.fate = Fate()
        self.connections = Connections(port)

    async def send(self, method: str = "POST", path: str = "/") -> None:
        self.fate.sent += 1
        begun = time.perf_counter()  # waiting for a connection is part of it
        try:
            status = await self._ask(method, path)
        except (OSError, TimeoutError) as error:
            self.fate.why[type(error).__name__] += 1
            return
        if not 200 <= status < 300:
            self.fate.why[str(status)] += 1
            return
        self.fate.waited += time.perf_counter() - begun > LONG_SECONDS

    async def _ask(self, method: str, path: str) -> int:
        length = f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n" if method == "POST" else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: bench.test\r\n{length}\r\n".encode()
        return await self.connections.ask(head + (BODY if method == "POST" else b""))

    def close(self) -> None:
        self.connections.close()


def volleys(gaps_of: Mapping[int, Sequence[float]], size: int, path: str) -> dict[int, Fate]:
    """For each port: `size` POSTs at once, a silence of the first of its gaps, as many again, the next silence …

    All connections of the proxy to the app idle for just so long in between. A gap of 0 is AT_ONCE rounds in which
    each is asked again as soon as it is answered. All ports at the same time.
    """

    async def of_one(number: int, port: int, gaps: Sequence[float]) -> Fate:
        await asyncio.sleep(number / 4)  # not all volleys at one moment
        client = Client(port)

        async def ask(times: int) -> None:
            for _ in range(times):
                await client.send(path=path)

        await asyncio.gather(*(ask(1) for _ in range(size)))
        for gap in gaps:
            await asyncio.sleep(gap)
            await asyncio.gather(*(ask(1 if gap else AT_ONCE) for _ in range(size)))
        client.close()
        return client.fate

    async def of_all() -> list[Fate]:
        return await asyncio.gather(*(of_one(n, port, gaps) for n, (port, gaps) in enumerate(gaps_of.items())))

    return dict(zip(gaps_of, uvloop.run(of_all()), strict=True))


def idle_seconds(ports: Sequence[int], path: str, longest: float) -> dict[int, float | None]:
    """For each port, after how many seconds it closes an idle connection; None where it has not after `longest`."""

    async def of_one(port: int) -> float | None:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
        assert connection.transport is not None
        await connection.ask(f"GET {path} HTTP/1.1\r\nHost: bench.test\r\n\r\n".encode())
        begun = time.perf_counter()
        connection.waiter = asyncio.get_running_loop().create_future()  # its end fails it
        try:
            async with asyncio.timeout(longest):
                await connection.waiter
        except TimeoutError:
            return None
        except OSError:
            return time.perf_counter() - begun
        finally:
            connection.transport.close()
        return None

    async def of_all() -> list[float | None]:
        return await asyncio.gather(*(of_one(port) for port in ports))

    return dict(zip(ports, uvloop.run(of_all()), strict=True))


Event = Callable[[Client], Awaitable[None]]


def during(events: Mapping[int, Event], rate: float, path: str) -> dict[int, Fate]:
    """For each port requests at a constant rate, half of them POST, until its event is over; all at the same time.

    An event may send requests of its own with the client that it is given.
    """

    async def of_one(port: int, event: Event) -> Fate:
        client = Client(port)
        happening = asyncio.ensure_future(event(client))
        asked: list[asyncio.Task[None]] = []
        due = time.perf_counter()
        while not happening.done() and rate:
            method = "POST" if len(asked) * POST_SHARE % 1 == 0 else "GET"
            asked.append(asyncio.create_task(client.send(method, path)))
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await happening
        await asyncio.gather(*asked)
        client.close()
        return client.fate

    async def of_all() -> list[Fate]:
        return await asyncio.gather(*(of_one(port, event) for port, event in events.items()))

    return dict(zip(events, uvloop.run(of_all()), strict=True))
