"""One probe: requests arrive at a rate for some seconds, whether the stack keeps up or not. Do the objectives hold?

Made for rates at which they do not: a request that fails is counted, not fatal. It also watches itself and the machine,
for a generator that is late, or a machine that is busy with other work, makes a stack look slower than it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from math import sqrt
from typing import Any

import httptools
import uvloop

from bench import cpu
from bench.open_loop import percentile
from stack.settings import StackSettings

# The first connections are made: not counted.
SETTLE_SECONDS = 0.3
# Without an answer at one time; more is taken for a stack that does not keep up, whatever the objectives say.
MOST_UNDER_WAY = 2000
# Requests under way may grow by this share of those that came meanwhile, and by what chance makes of their number;
# beyond that the queue grows for as long as the load lasts, and a longer probe would have failed.
GROWTH_SHARE = 0.05
# The generator's own: its share of a CPU, and how late it sent 1 % of the requests.
BUSY, LATE_MS = 0.8, 10.0


@dataclass(frozen=True)
class Objectives:
    """The limits of .env that a rate must hold: milliseconds, and a share of the requests."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    error_share: float

    @classmethod
    def of(cls, settings: StackSettings) -> Objectives:
        return cls(settings.slo_p50_ms, settings.slo_p95_ms, settings.slo_p99_ms, settings.slo_error_share)

    def missed(self, latencies_ms: Sequence[float], error_share: float) -> list[str]:
        """A few words for each that these figures miss. Without one answer all are."""
        if not latencies_ms:
            return ["no right answer"]
        limits = ((0.5, self.p50_ms), (0.95, self.p95_ms), (0.99, self.p99_ms))
        found = [(share, percentile(list(latencies_ms), share), limit) for share, limit in limits]
        missed = [f"p{share * 100:g} {ms:.0f} ms" for share, ms, limit in found if ms > limit]
        return missed + ([f"{error_share:.2%} failed"] if error_share > self.error_share else [])


@dataclass(frozen=True)
class Probe:
    """What one probe saw. `under_way` is the mean, and `most_under_way` the most, of requests without their answer.

    `busy` and `late_ms` are the generator's; `others` and `idle` the shares of the machine's CPUs that went to other
    work and to none. `missed` says what did not hold.
    """

    rate: float
    requests: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    error_share: float
    under_way: float
    most_under_way: int
    busy: float
    late_ms: float
    others: float
    idle: float
    missed: tuple[str, ...]
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        return not self.missed

    @property
    def by_the_generator(self) -> bool:
        """Whether the generator was at its end, so that a miss says nothing of the stack."""
        return self.busy > BUSY or self.late_ms > LATE_MS

    @property
    def disturbed(self) -> bool:
        """Whether other work took CPU time that the stack had use for: none was left, and the stack had much of it."""
        return self.others > 0.1 and self.idle < 0.1 and 1 - self.others - self.idle > 0.3


@dataclass
class Sent:
    """A request: when it was due, when it was sent, and when its answer came; seconds since the start."""

    due: float
    path: str
    sent: float = -1.0
    done: float = -1.0
    error: str = ""


def run(port: int, rate: float, seconds: float, paths: Sequence[str], objectives: Objectives, seed: int) -> Probe:
    """Load `port` of loopback with GETs of the paths in turn. The same seed gives the same arrivals."""
    source = random.Random(seed)
    length = SETTLE_SECONDS + seconds
    dues = sorted(source.uniform(0, length) for _ in range(max(10, round(rate * length))))
    requests = [Sent(due, path) for due, path in zip(dues, islice(cycle(paths), len(dues)), strict=True)]
    # More than this is, by Little's law, a mean latency above the objective for 99 %.
    most = min(MOST_UNDER_WAY, int(rate * objectives.p99_ms / 1000) + 50)
    with _no_garbage_collection():
        machine, begun, own = Machine(), time.perf_counter(), time.process_time()
        load = _Load(port, requests, most, patience=min(objectives.p99_ms / 1000 + 1, 30))
        ended = uvloop.run(load.run())
        busy = (time.process_time() - own) / (time.perf_counter() - begun)
        others, idle = machine.shares()
    return summary(rate, requests, ended, length, objectives, load.gave_up, (busy, others, idle))


def summary(
    rate: float,
    requests: Sequence[Sent],
    ended: float,
    length: float,
    objectives: Objectives,
    gave_up: bool,
    shares: tuple[float, float, float],
) -> Probe:
    """What the requests of one probe say; one without an answer counts as long as it has waited."""
    sent = [each for each in requests if each.sent >= 0]
    # Where the load was given up, what is still to come is not a failure, and what waits has not failed yet.
    errors: dict[str, int] = {}
    for each in sent:
        error = each.error or ("" if each.done >= 0 or gave_up else "no answer")
        if error:
            errors[error] = errors.get(error, 0) + 1
    counted = [each for each in sent if each.due >= SETTLE_SECONDS and not each.error] or sent
    latencies = [((each.done if each.done >= 0 else ended) - each.due) * 1000 for each in counted]
    spans = [(each.due, each.done if each.done >= 0 else ended) for each in sent]
    error_share = sum(errors.values()) / max(len(sent), 1)
    missed = objectives.missed(latencies, error_share)
    if gave_up:
        missed.append("ever more requests under way")
    elif not missed:
        quarter = (length - SETTLE_SECONDS) / 4
        early = mean_under_way(spans, SETTLE_SECONDS + quarter, SETTLE_SECONDS + 2 * quarter)
        late = mean_under_way(spans, SETTLE_SECONDS + 3 * quarter, length)
        came = rate * 2 * quarter
        if late - early > GROWTH_SHARE * came + sqrt(came):
            missed.append(f"requests under way grew from {early:.0f} to {late:.0f}")
    busy, others, idle = shares
    return Probe(
        rate=rate, requests=len(sent),
        p50_ms=percentile(latencies, 0.5), p95_ms=percentile(latencies, 0.95), p99_ms=percentile(latencies, 0.99),
        error_share=error_share,
        under_way=mean_under_way(spans, min(SETTLE_SECONDS, ended / 2), min(length, ended)),
        most_under_way=most_at_once(spans),
        busy=busy, late_ms=percentile([(each.sent - each.due) * 1000 for each in sent], 0.99),
        others=others, idle=idle, missed=tuple(missed), errors=errors,
    )  # fmt: skip


def mean_under_way(spans: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """How many of the spans were open at a time, on average from `begin` to `end`."""
    return sum(max(0.0, min(last, end) - max(first, begin)) for first, last in spans) / (end - begin)


def most_at_once(spans: Sequence[tuple[float, float]]) -> int:
    changes = sorted([(first, 1) for first, _ in spans] + [(last, -1) for _, last in spans])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


class Machine:
    """What the CPUs did since this was made: others' work is what was not this process's or its children's."""

    def __init__(self) -> None:
        self._before = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        used, stolen, idle = cpu.machine_seconds()
        return used + stolen, idle, cpu.tree_seconds(os.getpid())

    def shares(self) -> tuple[float, float]:
        """Of all CPU time since: how much others had, and how much nobody."""
        used, idle, own = (now - before for now, before in zip(self._now(), self._before, strict=True))
        total = max(used + idle, cpu.TICK_SECONDS)
        return min(1.0, max(0.0, (used - own) / total)), min(1.0, max(0.0, idle / total))


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """It would hold requests back that are due."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Load:
    """Sends each request when it is due, on a keep-alive connection with nothing under way, or on a new one.

    No task for a request: at some thousand in a second the tasks would be the load.
    """

    def __init__(self, port: int, requests: list[Sent], most_under_way: int, patience: float) -> None:
        self.port = port
        self.requests = requests
        self.most_under_way = most_under_way
        self.patience = patience
        self.under_way = 0
        self.gave_up = False
        self.idle: deque[_Connection] = deque()
        self.opened: list[_Connection] = []
        self.opening: set[asyncio.Task[None]] = set()
        self.begun = 0.0
        self.all_sent = False
        self.all_answered = asyncio.Event()

    def now(self) -> float:
        return time.perf_counter() - self.begun

    async def run(self) -> float:
        """Seconds from the start until the last answer, or until none is waited for any more."""
        self.begun = time.perf_counter()
        for request in self.requests:
            if (early := request.due - self.now()) > 0:
                await asyncio.sleep(early)
            if self.under_way >= self.most_under_way:
                self.gave_up = True
                break
            self._send(request)
        self.all_sent = True
        if self.under_way and not self.gave_up:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.all_answered.wait(), self.patience)
        ended = self.now()
        for task in self.opening:
            task.cancel()
        for connection in self.opened:
            connection.forget()
        await asyncio.sleep(0)
        return ended

    def _send(self, request: Sent) -> None:
        request.sent = self.now()
        self.under_way += 1
        while self.idle:
            connection = self.idle.popleft()  # the one that was idle longest: all of them stay in use
            if not connection.closed:
                connection.ask(request)
                return
        task = asyncio.get_running_loop().create_task(self._open(request))
        self.opening.add(task)
        task.add_done_callback(self.opening.discard)

    async def _open(self, request: Sent) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.port)
        except OSError as error:
            self.finished(request, f"no connection: {error.strerror}")
            return
        self.opened.append(connection)
        connection.ask(request)

    def finished(self, request: Sent, error: str = "") -> None:
        request.done = self.now()
        request.error = error
        self.under_way -= 1
        if self.all_sent and not self.under_way:
            self.all_answered.set()


class _Connection(asyncio.Protocol):
    """One keep-alive connection. The parser's callbacks have the parser's names."""

    def __init__(self, load: _Load) -> None:
        self.load = load
        self.request: Sent | None = None
        self.transport: Any = None
        self.closed = False
        self.parser: Any = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def ask(self, request: Sent) -> None:
        self.request = request
        if self.closed:
            self._finish("connection closed")
            return
        self.transport.write(f"GET {request.path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.closed = True
            self.transport.close()
            self._finish("answer is no HTTP")

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        if not self.parser.should_keep_alive():
            self.closed = True
            self.transport.close()
        self._finish("" if 200 <= status < 300 else f"status {status}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._finish("connection closed")

    def _finish(self, error: str) -> None:
        request, self.request = self.request, None
        if request is None:
            return
        if not self.closed:
            self.load.idle.append(self)
        self.load.finished(request, error)

    def forget(self) -> None:
        """Close it without counting what is under way."""
        self.request = None
        self.transport.abort()
