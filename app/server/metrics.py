"""Counters of all worker processes of this container, on /metrics in the Prometheus text format.

prometheus_client keeps each process's numbers in a memory-mapped file and adds the files up when asked. By default
the files are named by pid, so that workers which come and go leave more and more of them; here a worker takes the
first name that no living worker holds, and carries its counters on.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


def _take_slot(folder: Path) -> int:
    """The lowest number whose lock file no living process holds; the lock ends with this process."""
    number = 0
    while True:
        descriptor = os.open(folder / f"{number}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            number += 1
        else:
            return number


class Metrics:
    """Requests by method, route and status; their durations in seconds; requests in flight."""

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
        seconds = Histogram(
            "http_request_duration_seconds",
            "Time to the end of the answer.",
            buckets=BUCKETS,
            registry=registry,
        )
        self.observe = seconds.observe
        self.in_flight = Gauge(
            "http_requests_in_flight", "Requests being served.", registry=registry, multiprocess_mode="sum"
        )
        self.in_flight.set(0)  # a worker that was killed left its last number in this slot
        self._children: dict[tuple[str, str, int], Counter] = {}

    def count(self, method: str, route: str, status: int) -> None:
        """Count one answer. `route` is the path's pattern, never the path: each new value lives for good."""
        key = (method, route, status)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._requests.labels(method, route, str(status))
        child.inc()

    def exposition(self) -> bytes:
        """The numbers of all workers together."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=self._folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
