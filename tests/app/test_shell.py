from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest

from app.server import lifecycle, logs
from app.server.metrics import Metrics
from app.server.shell import ASGIApp, Message, Receive, Scope, Send, Shell


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    return Metrics(tmp_path_factory.mktemp("metrics"))


def scope(path: str = "/", **headers: str) -> Scope:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "GET", "path": path, "headers": pairs}


def call(app: ASGIApp, metrics: Metrics, request: Scope, deadline: float = 30, slow: float = 30) -> list[Message]:
    """Run one request through the shell; the messages that came out."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(Shell(app, metrics, deadline, slow)(request, receive, send))  # type: ignore[arg-type]
    return sent


async def ok(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_an_answer_goes_through_unchanged(metrics: Metrics) -> None:
    sent = call(ok, metrics, scope())
    assert [m.get("status", m.get("body")) for m in sent] == [200, b"ok"]


def test_a_handler_past_the_deadline_is_cancelled_and_504_is_sent(metrics: Metrics) -> None:
    cancelled = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            await send({"type": "http.response.start", "status": 200, "headers": []})  # too late, must not be sent
            raise

    sent = call(slow, metrics, scope(x_request_id="abc"), deadline=0.05)
    assert cancelled == [True]
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 504
    assert json.loads(sent[1]["body"]) == {"status": 504, "error": "Gateway Timeout", "request_id": "abc"}


def test_an_event_stream_has_no_deadline(metrics: Metrics) -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await asyncio.sleep(0.3)
        await send({"type": "http.response.body", "body": b"data: 1\n\n"})

    sent = call(stream, metrics, scope(), deadline=0.05)
    assert sent[1]["body"] == b"data: 1\n\n"


def test_an_answer_that_has_begun_is_cut_at_the_deadline_and_not_answered_twice(metrics: Metrics) -> None:
    async def trickle(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(60)

    assert [m.get("status") for m in call(trickle, metrics, scope(), deadline=0.05)] == [200]


def test_a_fault_of_the_app_is_500_as_json_and_one_line_with_the_traceback(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("no such thing")

    with caplog.at_level(logging.INFO):
        sent = call(faulty, metrics, scope(x_request_id="abc"))
    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"])["request_id"] == "abc"
    (record,) = caplog.records
    assert vars(record)["reason"] == "error"
    assert record.exc_info is not None


def test_a_cancellation_from_elsewhere_is_not_taken_for_the_deadline(metrics: Metrics) -> None:
    async def cancelled(scope: Scope, receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        call(cancelled, metrics, scope())


def test_readiness_follows_the_lifecycle(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    for state, status in (("starting", 503), ("ready", 200), ("draining", 503)):
        monkeypatch.setattr(lifecycle, "state", state)
        assert call(ok, metrics, scope("/readyz"))[0]["status"] == status
        assert call(ok, metrics, scope("/livez"))[0]["status"] == 200


def test_requests_are_counted_by_route_and_status(metrics: Metrics) -> None:
    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = type("Route", (), {"path": "/things/{id}"})()
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    for number in range(3):
        call(routed, metrics, scope(f"/things/{number}"))
    text = call(ok, metrics, scope("/metrics"))[1]["body"].decode()
    assert 'http_requests_total{method="GET",route="/things/{id}",status="404"} 3.0' in text


def count_and_stay(folder: Path, go: Any, counted: Any) -> None:
    async def one_request() -> None:
        metrics.begin()
        metrics.end("GET", "/", 200, 0.02)
        metrics.flush()

    metrics = Metrics(folder)
    asyncio.run(one_request())
    counted.release()
    go.wait(60)


def test_workers_that_come_and_go_leave_no_files_behind_and_lose_no_counts(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    for _generation in range(2):
        go, counted = context.Event(), context.Semaphore(0)
        workers = [context.Process(target=count_and_stay, args=(tmp_path, go, counted)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for _ in workers:
            assert counted.acquire(timeout=60)
        go.set()
        for worker in workers:
            worker.join()
        assert len(list(tmp_path.glob("counter_*.db"))) == 2
    text = asyncio.run(exposition(Metrics(tmp_path)))
    assert 'http_requests_total{method="GET",route="/",status="200"} 4.0' in text
    assert 'http_request_duration_seconds_bucket{le="0.01"} 0.0' in text
    assert 'http_request_duration_seconds_bucket{le="0.025"} 4.0' in text
    assert "http_request_duration_seconds_count 4.0" in text
    assert "http_requests_in_flight 0.0" in text


async def exposition(metrics: Metrics) -> str:
    return metrics.exposition().decode()


def test_what_is_in_flight_is_seen_in_another_workers_exposition(tmp_path: Path) -> None:
    async def two_workers() -> None:
        busy, asked = Metrics(tmp_path), Metrics(tmp_path)
        busy.begin()
        busy.begin()
        busy.flush()
        assert "http_requests_in_flight 2.0" in asked.exposition().decode()
        for _ in range(2):
            busy.end("GET", "/", 200, 0.1)
        busy.flush()
        assert "http_requests_in_flight 0.0" in asked.exposition().decode()

    asyncio.run(two_workers())


def test_a_log_line_is_one_line_of_json_with_the_request_id() -> None:
    token = logs.request_id.set("abc")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.makeLogRecord({"msg": "it %s", "args": ("broke",), "exc_info": sys.exc_info(), "status": 500})
    line = logs.JsonFormatter().format(record)
    logs.request_id.reset(token)
    assert "\n" not in line
    parsed = json.loads(line)
    assert (parsed["message"], parsed["request_id"], parsed["status"]) == ("it broke", "abc", 500)
    assert "ValueError: two\nlines" in parsed["exception"]
