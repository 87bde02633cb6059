"""Counters of all worker processes of this container, on /metrics in the Prometheus text format.

prometheus_client keeps each process's numbers in a memory-mapped file and adds the files up when asked. By default
the files are named by pid, so that workers which come and go leave more and more of them; here a worker takes the
first name that no living worker holds, and carries its counters on.

A request only adds to plain numbers; they go into the file once a second. Through prometheus_client's own calls each
request would cost ten times as much (make bench). A worker that is killed takes its last second along.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from bisect import bisect_left
from collections import Counter as Count
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess, values

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
FLUSH_SECONDS = 1.0
# Why an answer did not come to its end by the application, as the log's `reason` has it.
CUT_REASONS = ("deadline", "stall", "drain", "no answer", "error")


def _take_slot(folder: Path) -> int:
    """The lowest number whose lock file no living process holds; the lock ends with this process."""
    number = 0
    while (descriptor := _lock(folder / f"{number}.lock")) is None:
        number += 1
    # A lock is shared with the processes that the application forks: they must not hold it when this one is gone.
    os.register_at_fork(after_in_child=lambda: os.close(descriptor))
    return number


def _lock(file: Path) -> int | None:
    """The descriptor that holds the lock of this file; None where another process has it."""
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


class Metrics:
    """Requests by method, route and status, their durations in seconds, those in flight and those cut; WebSockets."""

    def __init__(self, folder: Path) -> None:
        """`folder` is shared by the workers of one container; it must be empty when the first of them starts."""
        slot = _take_slot(folder)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        self._folder = str(folder)
        self._requests = Counter(
            "http_requests", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "Time to the end of the answer, without event streams.",
            buckets=BUCKETS,
            registry=registry,
        )
        self._cut = Counter(
            "http_requests_cut", "Requests whose answer the application did not end.", ("reason",), registry=registry
        )
        for reason in CUT_REASONS:
            self._cut.labels(reason)  # from 0 on: increase() does not see the first of a series
        self._websockets = Gauge(
            "websocket_connections", "WebSockets that are open.", registry=registry, multiprocess_mode="livesum"
        )
        self._websockets.set(0)
        self._in_flight = Gauge(
            "http_requests_in_flight", "Requests being served.", registry=registry, multiprocess_mode="livesum"
        )
        self._in_flight.set(0)  # whoever had this slot may have been killed with its last number in it
        self.in_flight = 0
        self.websockets = 0
        self._cuts: Count[str] = Count()
        self._answers: Count[tuple[str, str, int]] = Count()
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """A request has come."""
        self.in_flight += 1
        if self._timer is None:
            self._flush_in_a_second()

    def end(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """It is answered. `route` is the path's pattern, never the path: each new value lives for good.

        `seconds` is None for an event stream: how long one lasts says nothing of how fast an answer was.
        """
        self.in_flight -= 1
        self._answers[method, route, status] += 1
        if seconds is not None:
            self._buckets[bisect_left(BUCKETS, seconds)] += 1
            self._sum += seconds

    def cut(self, reason: str) -> None:
        """The application has not ended its answer; `reason` is one of CUT_REASONS."""
        self._cuts[reason] += 1

    def websocket(self, change: int) -> None:
        """One has come (1), or gone (-1)."""
        self.websockets += change
        if self._timer is None:
            self._flush_in_a_second()

    def _flush_in_a_second(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Put what was counted into the shared files."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Looked at again in a second, while anything is in flight, so that the gauge goes back to zero.
        if self.in_flight or self.websockets:
            self._flush_in_a_second()
        self._in_flight.set(self.in_flight)
        self._websockets.set(self.websockets)
        for reason, count in self._cuts.items():
            self._cut.labels(reason).inc(count)
        self._cuts.clear()
        for (method, route, status), count in self._answers.items():
            self._requests.labels(method, route, str(status)).inc(count)
        self._answers.clear()
        # The histogram's own counters: observe() takes one value at a time.
        for bucket, count in zip(self._seconds._buckets, self._buckets, strict=True):
            if count:
                bucket.inc(count)
        self._buckets = [0] * len(self._buckets)
        self._seconds._sum.inc(self._sum)
        self._sum = 0.0

    def exposition(self) -> bytes:
        """The numbers of all workers together: of this one up to now, of the others up to a second ago."""
        self.flush()
        self._forget_gauges_of_the_dead()
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=self._folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _forget_gauges_of_the_dead(self) -> None:
        """A worker that was killed answers nothing more; its counters stay, and whoever takes its slot adds to them."""
        for file in Path(self._folder).glob("*.lock"):
            descriptor = _lock(file)
            if descriptor is not None:
                multiprocess.mark_process_dead(int(file.stem), self._folder)  # type: ignore[no-untyped-call]
                os.close(descriptor)
