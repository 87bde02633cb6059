"""An open loop: requests come when they are due, whether the stack keeps up or not, and wait from that moment on.

And the closed loop that finds what the stack can do, of which the open one asks for a share.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import count

import uvloop

from bench.load import PERCENTILES
from bench.processes import CannotRun
from proofs.open_loop import Connections

MOST_CONNECTIONS = 1000


@dataclass(frozen=True)
class Arrival:
    """A request that is due so many seconds after the start."""

    due: float
    path: str


def poisson(rate: float, seconds: float, fast: str, slow: str, slow_share: float, seed: int) -> list[Arrival]:
    """Arrivals at random moments, each independent of all others, `slow_share` of them for the path `slow`.

    Their number and their share are exact: drawn too, they would make each round another load (a Poisson process on
    condition of its count). The same seed gives the same arrivals, so that two variants meet the same ones.
    """
    source = random.Random(seed)
    number = round(rate * seconds)
    slow_ones = set(source.sample(range(number), round(number * slow_share)))
    moments = sorted(source.uniform(0, seconds) for _ in range(number))
    return [Arrival(due, slow if i in slow_ones else fast) for i, due in enumerate(moments)]


def run(port: int, arrivals: list[Arrival]) -> dict[str, list[float]]:
    """Milliseconds from when each was due to its answer, by path, in the order of the arrivals.

    Over keep-alive connections to `port` of loopback, as many as it takes. Raises CannotRun when a request fails.
    """
    return uvloop.run(_Load(port).run(arrivals))


def capacity(port: int, fast: str, slow: str, slow_share: float, connections: int, seconds: float) -> float:
    """Requests a second when each of so many connections asks again as soon as it is answered.

    Raises CannotRun when a request fails.
    """
    return uvloop.run(_Load(port).capacity(fast, slow, slow_share, connections, seconds))


class _Load:
    def __init__(self, port: int) -> None:
        self.connections = Connections(port)

    async def run(self, arrivals: list[Arrival]) -> dict[str, list[float]]:
        start = time.perf_counter()
        async with self._tasks() as group:
            asked = []
            for arrival in arrivals:
                await asyncio.sleep(max(0.0, start + arrival.due - time.perf_counter()))
                asked.append(group.create_task(self._ask(arrival.path, start + arrival.due)))
        found: dict[str, list[float]] = {}
        for arrival, task in zip(arrivals, asked, strict=True):
            found.setdefault(arrival.path, []).append(task.result())
        return found

    async def capacity(self, fast: str, slow: str, slow_share: float, connections: int, seconds: float) -> float:
        begun = time.perf_counter()
        numbers = count(1)

        async def again_and_again() -> int:
            answered = 0
            while time.perf_counter() - begun < seconds:
                # Evenly among the fast: drawn at random, so few slow ones would be another share each time.
                path = slow if next(numbers) % round(1 / slow_share) == 0 else fast
                await self._ask(path, begun)
                answered += 1
            return answered

        async with self._tasks() as group:
            loops = [group.create_task(again_and_again()) for _ in range(connections)]
        return sum(task.result() for task in loops) / (time.perf_counter() - begun)

    @contextlib.asynccontextmanager
    async def _tasks(self) -> AsyncIterator[asyncio.TaskGroup]:
        """Requests under way, all of them answered at the end of the block; then the connections are closed."""
        try:
            async with asyncio.TaskGroup() as group:
                yield group
        except* (OSError, TimeoutError, CannotRun) as failures:
            raise CannotRun(f"a request of the load failed: {failures.exceptions[0]!r}") from None
        finally:
            self.connections.close()

    async def _ask(self, path: str, due: float) -> float:
        if not self.connections.idle and len(self.connections.open) >= MOST_CONNECTIONS:
            raise CannotRun(f"{MOST_CONNECTIONS} requests are without an answer: the machine is too slow for this load")
        status = await self.connections.ask(f"GET {path} HTTP/1.1\r\nHost: bench.test\r\n\r\n".encode())
        if status != 200:
            raise CannotRun(f"GET {path}: status {status}")
        return (time.perf_counter() - due) * 1000


def percentile(values: list[float], share: float) -> float:
    """The smallest of `values` that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def curve(values: list[float]) -> dict[float, float]:
    """The percentiles that so many values can tell: for the 99th it takes a hundred."""
    told = [each for each in PERCENTILES if round(len(values) * (100 - each), 3) >= 100]
    return {each: percentile(values, each / 100) for each in told}
