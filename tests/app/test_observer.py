"""Boards, and what the observer makes of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from anyio import CapacityLimiter
from prometheus_client.parser import text_string_to_metric_families

from app.server import accept_queues, board, status
from app.server.account import MASTER
from app.server.board import Board, Full
from app.server.metrics import METRICS, Metrics, duration_buckets, text
from app.server.observer import Observer, Samples, add_counts

ROWS = {
    "APP_PORT": "8000",
    "WORKERS": "2",
    "WORKER_LISTENERS": "per-worker",
    "APP_MAX_REQUESTS_IN_FLIGHT": "256",
    "WORKER_MEMORY_MB": "160",
    "SLO_P50_MS": "100",
    "SLO_P95_MS": "300",
    "SLO_P99_MS": "1000",
}
BUCKETS = duration_buckets(ROWS)


def parsed(exposition: str) -> dict[str, float]:
    """By Prometheus' own rules: raises ValueError where the text breaks one."""
    families = list(text_string_to_metric_families(exposition))
    assert len({family.name for family in families}) == len(families)
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in families
        for sample in family.samples
    }


def exposition(boards: Sequence[Board]) -> str:
    samples: Samples = {metric.name: {} for metric in METRICS}
    for one in boards:
        add_counts(samples, one)
    return text(samples, BUCKETS)


def worker(folder: Path, slot: int, number: int = 0, alive: bool = True) -> Metrics:
    """One that is this process, or that is gone."""
    path = folder / f"{slot}-{number}"
    metrics = Metrics(BUCKETS)
    metrics.use(Board(path))
    started = float(status.started(os.getpid()))
    for name, value in (("slot", slot), ("generation", 1), ("pid", os.getpid()), ("started", started - (not alive))):
        metrics.board.put(value, name)
    return metrics


def observer(folder: Path, **rows: str) -> Observer:
    master = Board(folder / MASTER)
    master.put(2, "wanted")
    return Observer(folder, ROWS | rows)


def test_what_one_process_writes_another_reads_and_the_next_goes_on_with(tmp_path: Path) -> None:
    first = Board(tmp_path / "a")
    reader = Board(tmp_path / "a")
    first.add(2, "requests", "GET", 'a "name"\twith\nall')
    cell = first.cell("histogram", size=3)
    first.values[cell + 2] = 0.5
    reader.learn()
    assert reader.get("requests", "GET", 'a "name"\twith\nall') == 2
    assert reader.values[reader.cells[("histogram",)].start + 2] == 0.5
    second = Board(tmp_path / "a")
    second.add(1, "requests", "GET", 'a "name"\twith\nall')
    assert reader.get("requests", "GET", 'a "name"\twith\nall') == 3


def test_a_board_that_is_full_counts_the_rest_as_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "CELLS", 400)
    metrics = Metrics()
    for number in range(100):
        metrics.begin()
        metrics.end("GET", f"/route/{number}", 200, 0.02)
    with pytest.raises(Full):
        metrics.board.cell("another", size=20)
    counts = {series: n for series, n in parsed(text_of(metrics)).items() if series.startswith("http_requests_total")}
    assert sum(counts.values()) == 100
    assert 50 < counts["http_requests_total[('method', 'other'), ('route', 'other'), ('status', 'other')]"] < 100
    assert metrics.in_flight == 0


def text_of(metrics: Metrics) -> str:
    samples: Samples = {metric.name: {} for metric in METRICS}
    add_counts(samples, metrics.board)
    return text(samples, metrics.buckets)


def test_the_counts_of_workers_that_are_gone_stay_and_what_they_had_in_flight_goes(tmp_path: Path) -> None:
    living, gone = worker(tmp_path, 0), worker(tmp_path, 1, alive=False)
    for metrics in (living, gone):
        metrics.begin()
        metrics.begin()
        metrics.accepted()
        metrics.end("GET", "/a", 200, 0.3)
    found = parsed(observer(tmp_path).metrics())
    assert found["http_requests_total[('method', 'GET'), ('route', '/a'), ('status', '200')]"] == 2
    assert found["http_requests_in_flight[('worker', '0')]"] == 1
    assert found["http_requests_in_flight[('worker', '1')]"] == 0
    assert found["app_worker_connections_accepted_total[('worker', '1')]"] == 1
    assert "app_worker_memory_bytes[('worker', '1')]" not in found
    bucket = "http_request_duration_seconds_bucket[('le', '{}'), ('route', '/a')]"
    assert (found[bucket.format("0.25")], found[bucket.format("0.3")], found[bucket.format("+Inf")]) == (0, 2, 2)


def test_a_worker_that_takes_a_board_goes_on_counting_and_says_what_is_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        metrics = worker(tmp_path, 0)
        metrics.begin()
        metrics.end("POST", "/a", 201, None)
        metrics.begin()
    found = observer(tmp_path)
    assert parsed(found.metrics())["http_requests_total[('method', 'POST'), ('route', '/a'), ('status', '201')]"] == 2
    (now,) = found.state()["workers"]
    assert (now["requests"], now["in_flight"]) == (1, 1)


def test_two_generations_of_a_slot_are_two_workers_and_one_series(tmp_path: Path) -> None:
    old, new = worker(tmp_path, 0), worker(tmp_path, 0, number=1)
    new.board.put(2, "generation")
    old.be("draining")
    for metrics in (old, new):
        metrics.begin()
        limiter = cast(CapacityLimiter, SimpleNamespace(
            borrowed_tokens=1, total_tokens=40, statistics=lambda: SimpleNamespace(tasks_waiting=2)
        ))  # fmt: skip
        metrics.tick(0.1, 3, limiter)
    found = observer(tmp_path)
    assert [(now["generation"], now["state"]) for now in found.state()["workers"]] == [(1, "draining"), (2, "starting")]
    series = parsed(found.metrics())
    assert series["http_requests_in_flight[('worker', '0')]"] == 2
    assert series["app_worker_threads_waiting[('worker', '0')]"] == 4
    assert series["app_workers[('state', 'draining')]"] == 1
    assert series["app_worker_descriptors_limit[('worker', '0')]"] > 0


def test_a_socket_that_all_workers_share_is_one_queue(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=7) as shared:
        port = shared.getsockname()[1]
        worker(tmp_path, 0)
        found = observer(tmp_path, APP_PORT=str(port), WORKER_LISTENERS="shared")
        with socket.create_connection(("127.0.0.1", port)):
            series = parsed(found.metrics())
            assert found.state()["workers"][0]["queue"] == 1
    assert series["app_worker_accept_queue[('worker', 'all')]"] == 1
    assert series["app_worker_accept_queue_limit[('worker', 'all')]"] == 7
    assert "app_worker_accept_queue[('worker', '0')]" not in series


def test_the_queue_of_many_listeners_is_read_whole() -> None:
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=number + 1) for number in range(300)]
    try:
        found = accept_queues.read()
        assert [found[one.getsockname()[1]].limit for one in listeners] == list(range(1, 301))
    finally:
        for one in listeners:
            one.close()


def test_every_declared_metric_is_exposed_and_no_other(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        metrics = worker(tmp_path, 0)
        metrics.begin()
        metrics.end("GET", "/", 200, 0.1)
        exposed = observer(tmp_path, APP_PORT=str(listener.getsockname()[1])).metrics()
    families = {family.name: family for family in text_string_to_metric_families(exposed)}
    assert set(families) == {metric.name for metric in METRICS}
    for metric in METRICS:
        assert families[metric.name].type == metric.kind
        for sample in families[metric.name].samples:
            assert set(sample.labels) - {"le"} == set(metric.labels), metric.name
