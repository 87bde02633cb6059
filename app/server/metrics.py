"""The metrics: their declared table, the worker's counting of its requests, and the Prometheus text format.

A worker adds to the cells of its board with each request, and the observer reads the boards of all (observer.py): no
event loop has any part in a scrape, and a worker that is killed takes nothing along.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from app.server.board import Board, Full

if TYPE_CHECKING:
    from anyio import CapacityLimiter  # not for the observer, which needs little memory

# Seconds. The objectives are put between them: a share of requests within one is exact at a bucket alone.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
OBJECTIVES = ("SLO_P50_MS", "SLO_P95_MS", "SLO_P99_MS")
LAG_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# What a worker writes ten times a second.
TICKED = ("heartbeat", "cpu seconds", "connections", "threads busy", "threads limit", "threads waiting")
DRAIN_BUCKETS = (1, 2.5, 5, 10, 15, 30, 60, 120, 300, 600)
# Why an answer did not come to its end by the application, as the log's `reason` has it; `killed`: its worker died.
CUT_REASONS = ("deadline", "stall", "drain", "no answer", "error", "killed")
# Why a worker process ended (arbiter.py).
EXIT_REASONS = ("reload", "max_requests", "memory", "signal", "silent", "late", "boot", "crashed")
RELOAD_RESULTS = ("ok", "failed", "superseded")
# The parts of a worker's life (arbiter.py); `left`: it has done all, and its process ends.
State = Literal["starting", "ready", "draining", "finishing", "left"]
STATES: tuple[State, ...] = get_args(State)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"  # a method that is not among these, a route for which there is no room

Kind = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    """One row of docs/metrics.md. `name` is without the _total of a counter."""

    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """As rules and dashboards name it, but for a histogram's _bucket, _sum and _count."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


WORKER = ("worker",)
METRICS = (
    Metric("counter", "http_requests", "Requests answered.", ("method", "route", "status")),
    Metric("histogram", "http_request_duration_seconds", "Seconds to an answer's end; no streams.", ("route",)),
    Metric("gauge", "http_requests_in_flight", "Requests that the worker has begun and not answered.", WORKER),
    Metric("gauge", "http_requests_in_flight_limit", "APP_MAX_REQUESTS_IN_FLIGHT, of each worker; 0: no limit."),
    Metric("counter", "http_requests_cut", "Requests whose answer the application did not end.", ("reason",)),
    Metric("gauge", "http_streams_open", "Event streams that are open."),
    Metric("gauge", "websocket_connections", "WebSockets that are open."),
    Metric("gauge", "app_worker_accept_queue", "Connections that no worker has accepted yet.", WORKER),
    Metric("gauge", "app_worker_accept_queue_max", "The longest that this queue was in the last minute.", WORKER),
    Metric("gauge", "app_worker_accept_queue_limit", "What fits into it (LISTEN_BACKLOG).", WORKER),
    Metric("counter", "app_listen_overflows", "Connections refused because this queue was full.", WORKER),
    Metric("gauge", "app_worker_connections", "Connections that the worker holds.", WORKER),
    Metric("counter", "app_worker_connections_accepted", "Connections that it has accepted.", WORKER),
    Metric("gauge", "app_worker_loop_silence_seconds", "How long its event loop has not moved.", WORKER),
    Metric("histogram", "app_worker_loop_lag_seconds", "How late event loops came to what was due."),
    Metric("gauge", "app_worker_threads_busy", "Threads of the pool for `def` endpoints that work.", WORKER),
    Metric("gauge", "app_worker_threads_limit", "Threads that this pool has at most.", WORKER),
    Metric("gauge", "app_worker_threads_waiting", "Calls that wait for a thread of it.", WORKER),
    Metric("gauge", "app_worker_memory_bytes", "Resident memory, as WORKER_MEMORY_MB bounds it.", WORKER),
    Metric("gauge", "app_worker_memory_limit_bytes", "WORKER_MEMORY_MB; 0: no limit."),
    Metric("counter", "app_worker_cpu_seconds", "CPU time.", WORKER),
    Metric("gauge", "app_worker_descriptors", "Open file descriptors.", WORKER),
    Metric("gauge", "app_worker_descriptors_limit", "How many may be open.", WORKER),
    Metric("gauge", "app_workers", "Worker processes.", ("state",)),
    Metric("gauge", "app_workers_wanted", "Workers that should serve."),
    Metric("gauge", "app_generation", "The generation that serves: each reload that succeeds counts it up."),
    Metric("counter", "app_reloads", "Reloads of the application's code.", ("result",)),
    Metric("counter", "app_worker_exits", "Worker processes that ended.", ("reason",)),
    Metric("histogram", "app_drain_seconds", "How long workers took to leave, from their last accept to their end."),
    Metric("counter", "app_drain_cut_requests", "Requests cancelled because a worker's time to leave was over."),
)  # fmt: skip
BOUNDS = {"app_worker_loop_lag_seconds": LAG_BUCKETS, "app_drain_seconds": DRAIN_BUCKETS}


def duration_buckets(rows: Mapping[str, str]) -> tuple[float, ...]:
    """In seconds; `rows` has the objectives, in milliseconds."""
    return tuple(sorted({*BUCKETS, *(int(rows[row]) / 1000 for row in OBJECTIVES)}))


class Metrics:
    """What one worker counts, on its board. Each call of a request costs some additions."""

    def __init__(self, buckets: tuple[float, ...] = BUCKETS) -> None:
        """It counts for itself alone, until it is given a board that others read."""
        self.buckets = buckets
        self.use(Board())

    def use(self, board: Board) -> None:
        """Count on this board from now on. The counters on it go on, gauges begin at 0. Raises Full."""
        self.board = board
        self._values = board.values
        self._series: dict[tuple[str, str, int], tuple[int, int]] = {}
        gauges = ("http_requests_in_flight", "http_streams_open", "websocket_connections")
        self._in_flight, self._streams, self._websockets = map(board.cell, gauges)
        self._accepted = board.cell("app_worker_connections_accepted")
        self._lag = board.cell("app_worker_loop_lag_seconds", size=len(LAG_BUCKETS) + 2)
        self._state = [board.cell(name) for name in TICKED]
        board.add(board.get("cpu seconds"), "app_worker_cpu_seconds")  # of the processes before
        board.put(board.get("app_worker_connections_accepted"), "accepted before")
        board.put(answered(board), "answered before")
        for cell in (self._in_flight, self._streams, self._websockets, *self._state):
            self._values[cell] = 0
        for reason in CUT_REASONS:  # from 0 on: increase() does not see the first of a series
            board.cell("http_requests_cut", reason)
        board.cell("app_drain_cut_requests")

    # --- requests -------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        return int(self._values[self._in_flight])

    @property
    def websockets(self) -> int:
        return int(self._values[self._websockets])

    def begin(self) -> None:
        """A request has come."""
        self._values[self._in_flight] += 1

    def end(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """It is answered. `route` is the path's pattern, never the path: each new value lives for good.

        `seconds` is None for an event stream: how long one lasts says nothing of how fast an answer was.
        """
        values = self._values
        values[self._in_flight] -= 1
        try:
            count, durations = self._series[method, route, status]
        except KeyError:
            count, durations = self._first(method, route, status)
        values[count] += 1
        if seconds is not None:
            values[durations + bisect_left(self.buckets, seconds)] += 1
            values[durations + len(self.buckets) + 1] += seconds

    def _first(self, method: str, route: str, status: int) -> tuple[int, int]:
        try:
            if method not in METHODS:  # nor is it remembered: a client may send any
                return self._cells(OTHER, route, str(status))
            cells = self._series[method, route, status] = self._cells(method, route, str(status))
        except Full:
            return self._cells(OTHER, OTHER, OTHER, spare=True)
        return cells

    def _cells(self, method: str, route: str, status: str, spare: bool = False) -> tuple[int, int]:
        size = len(self.buckets) + 2
        durations = self.board.cell("http_request_duration_seconds", route, size=size, spare=spare)
        return self.board.cell("http_requests", method, route, status, spare=spare), durations

    def cut(self, reason: str) -> None:
        """The application has not ended its answer; `reason` is one of CUT_REASONS."""
        self.board.add(1, "http_requests_cut", reason)

    def stream(self, change: int) -> None:
        """An event stream has begun (1), or ended (-1)."""
        self._values[self._streams] += change

    def websocket(self, change: int) -> None:
        """One has come (1), or gone (-1)."""
        self._values[self._websockets] += change

    # --- the process ----------------------------------------------------------------------------------------

    def be(self, state: State) -> None:
        """The worker is in this part of its life."""
        self.board.put(STATES.index(state), "state")

    def accepted(self) -> None:
        """A connection has come."""
        self._values[self._accepted] += 1

    def tick(self, interval: float, connections: int, limiter: CapacityLimiter) -> None:
        """The event loop moves; it should do so each `interval` seconds. `limiter` is that of the thread pool."""
        now, (heartbeat, *others) = time.monotonic(), self._state
        if last := self._values[heartbeat]:
            late = max(0.0, now - last - interval)
            self._values[self._lag + bisect_left(LAG_BUCKETS, late)] += 1
            self._values[self._lag + len(LAG_BUCKETS) + 1] += late
        busy, limit, waiting = limiter.borrowed_tokens, limiter.total_tokens, limiter.statistics().tasks_waiting
        for cell, value in zip(others, (time.process_time(), connections, busy, limit, waiting), strict=True):
            self._values[cell] = value
        self._values[heartbeat] = now


def answered(board: Board) -> float:
    """Requests that were answered by all processes that had this board."""
    return sum(board.values[cells.start] for name, cells in board.cells.items() if name[0] == "http_requests")


# --- the text -----------------------------------------------------------------------------------------------


def text(samples: Mapping[str, Mapping[tuple[str, ...], Sequence[float]]], buckets: Sequence[float]) -> str:
    """The Prometheus text format. `samples` has for each metric its numbers by labels: one, or of a histogram the count
    of each bucket (`buckets` are those of http_request_duration_seconds) and the sum behind them.
    """
    lines = []
    for metric in METRICS:
        lines += [f"# HELP {metric.family} {metric.help}", f"# TYPE {metric.family} {metric.kind}"]
        for values, found in samples.get(metric.name, {}).items():
            labels = [f'{label}="{_escaped(value)}"' for label, value in zip(metric.labels, values, strict=True)]
            if metric.kind == "histogram":
                lines += _histogram(metric.name, labels, BOUNDS.get(metric.name, buckets), found)
            else:
                lines.append(f"{metric.family}{_braced(labels)} {found[0]:.15g}")
    return "\n".join(lines) + "\n"


def _histogram(name: str, labels: list[str], bounds: Sequence[float], found: Sequence[float]) -> Iterator[str]:
    *counts, total = found
    below = 0.0
    for bound, count in zip([*map("{:g}".format, bounds), "+Inf"], counts, strict=True):
        below += count
        upper = f'le="{bound}"'
        yield f"{name}_bucket{_braced([*labels, upper])} {below:.15g}"
    yield f"{name}_sum{_braced(labels)} {total:.15g}"
    yield f"{name}_count{_braced(labels)} {below:.15g}"


def _braced(labels: Sequence[str]) -> str:
    return f"{{{','.join(labels)}}}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
