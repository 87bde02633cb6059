"""The load of an overload: requests come when they are due, and what became of each is noted; nothing is a failure.

It is bounded, or it would collapse before the stack does: a request without an answer after PATIENCE_SECONDS is given
up, and one that finds MOST_CONNECTIONS in use is not sent.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import uvloop

from bench.open_loop import Arrival
from proofs.open_loop import Connection

PATIENCE_SECONDS = 5
MOST_CONNECTIONS = 4000


@dataclass(frozen=True)
class Outcome:
    """What became of a request that was due so many seconds after the start. Status 0: no answer."""

    due: float
    status: int
    ms: float

    @property
    def end(self) -> float:
        return self.due + self.ms / 1000


def run(port: int, arrivals: list[Arrival]) -> list[Outcome]:
    """What became of each, in the order of the arrivals."""
    return uvloop.run(_Load(port).run(arrivals))


class _Load:
    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[Connection] = []
        self.connections = 0
        self.start = 0.0

    async def run(self, arrivals: list[Arrival]) -> list[Outcome]:
        self.start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            asked = []
            for arrival in arrivals:
                await asyncio.sleep(max(0.0, self.start + arrival.due - time.perf_counter()))
                asked.append(group.create_task(self._ask(arrival)))
        for connection in self.idle:
            _close(connection)
        return [task.result() for task in asked]

    async def _ask(self, arrival: Arrival) -> Outcome:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                status = await self._status(arrival.path)
        except (OSError, TimeoutError):
            status = 0
        return Outcome(arrival.due, status, (time.perf_counter() - self.start - arrival.due) * 1000)

    async def _status(self, path: str) -> int:
        while self.idle and self.idle[-1].closed:
            self.idle.pop()
            self.connections -= 1
        if self.connections - len(self.idle) >= MOST_CONNECTIONS:
            return 0
        if self.idle:
            connection = self.idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, "127.0.0.1", self.port)
            self.connections += 1
        try:
            status = await connection.ask(f"GET {path} HTTP/1.1\r\nHost: bench.test\r\n\r\n".encode())
        except BaseException:
            _close(connection)
            self.connections -= 1
            raise
        self.idle.append(connection)
        return status


def _close(connection: Connection) -> None:
    assert connection.transport is not None
    connection.transport.close()
