from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from typing import Any

import pytest
from anyio import to_thread

from app.server import logs, worker_state
from app.server.asgi import ASGIApp, Message, Receive, Scope, Send
from app.server.metrics import CUT_REASONS, METRICS, Metrics, text
from app.server.middleware import RequestMiddleware
from app.server.observer import Samples, add_counts


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics()


def scope(path: str = "/", **headers: str) -> Scope:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "GET", "path": path, "headers": pairs}


Sent = list[Message]


def call(
    app: ASGIApp, metrics: Metrics, request: Scope, deadline: float = 30, stall: float = 30, slow: float = 30
) -> Sent:
    """Run one request through the middleware; the messages that came out."""
    sent: Sent = []
    body = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if body:
            return body.pop()
        await asyncio.sleep(60)
        raise AssertionError("nothing comes any more")

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(RequestMiddleware(app, metrics, deadline, stall, slow)(request, receive, send))  # type: ignore[arg-type]
    return sent


async def ok(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_an_answer_goes_through_unchanged(metrics: Metrics) -> None:
    sent = call(ok, metrics, scope())
    assert [m.get("status", m.get("body")) for m in sent] == [200, b"ok"]


def figures(metrics: Metrics) -> dict[str, float]:
    """What the observer says of this board's counters, by series."""
    samples: Samples = {metric.name: {} for metric in METRICS}
    add_counts(samples, metrics.board)
    lines = [line for line in text(samples, metrics.buckets).splitlines() if not line.startswith("#")]
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}


def test_a_deadline_is_counted_by_its_reason_and_the_other_reasons_are_there_from_the_start(metrics: Metrics) -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(60)

    before = figures(metrics)
    reasons = {series for series in before if series.startswith("http_requests_cut_total")}
    assert reasons == {f'http_requests_cut_total{{reason="{reason}"}}' for reason in CUT_REASONS}
    call(slow, metrics, scope(), deadline=0.05)
    after = figures(metrics)
    changed = {series for series in reasons if after[series] != before[series]}
    assert changed == {'http_requests_cut_total{reason="deadline"}'}


def test_an_event_stream_is_counted_and_is_no_latency(metrics: Metrics) -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        kind = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        await send({"type": "http.response.body", "body": b"data: end\n\n"})

    before = figures(metrics)
    call(stream, metrics, scope())
    call(ok, metrics, scope())
    after = figures(metrics)
    answered = 'http_requests_total{method="GET",route="",status="200"}'
    assert after[answered] - before.get(answered, 0) == 2
    timed = 'http_request_duration_seconds_count{route=""}'
    assert after[timed] - before.get(timed, 0) == 1


def test_a_websocket_is_counted_while_it_is_open(metrics: Metrics) -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(metrics.websockets)
        raise OSError("the client has gone")

    with pytest.raises(OSError, match="has gone"):
        call(app, metrics, {"type": "websocket", "path": "/ws", "headers": []})
    assert (seen, metrics.websockets) == ([1], 0)


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


def test_each_request_has_its_whole_time_beside_others_and_after_a_pause(metrics: Metrics) -> None:
    begun: dict[str, float] = {}
    seconds: dict[str, float] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/quick":
            return await ok(scope, receive, send)
        try:
            await asyncio.sleep(60)
        finally:
            seconds[scope["path"]] = time.perf_counter() - begun[scope["path"]]
        return None

    middleware = RequestMiddleware(app, metrics, 0.3, 30, 30)

    async def nothing(*_: object) -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def ask(path: str, after: float) -> None:
        await asyncio.sleep(after)
        begun[path] = time.perf_counter()
        await middleware(scope(path), nothing, nothing)

    async def run() -> None:
        await asyncio.gather(ask("/quick", 0), ask("/first", 0.05), ask("/second", 0.2), ask("/after a pause", 1))

    asyncio.run(run())
    assert list(seconds) == ["/first", "/second", "/after a pause"]
    assert min(seconds.values()) > 0.29
    assert not middleware.deadlines.begun, "what is done is still held"


@pytest.mark.parametrize("media_type", [b"text/event-stream", b"application/x-ndjson", b"text/csv", b"text/plain"])
def test_an_answer_that_has_begun_may_last_as_long_as_it_moves(metrics: Metrics, media_type: bytes) -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", media_type)]})
        for number in range(10):
            await asyncio.sleep(0.1)
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
        await send({"type": "http.response.body", "body": b"end"})

    sent = call(stream, metrics, scope(), deadline=0.05, stall=30)
    assert b"".join(message.get("body", b"") for message in sent) == b"0123456789end"


def test_an_answer_that_stands_still_is_cut_and_not_answered_twice(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled = []

    async def stands(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    assert [m.get("status") for m in call(stands, metrics, scope(), deadline=0.05, stall=0.1)] == [200]
    assert cancelled == [True]
    assert [vars(record)["reason"] for record in caplog.records] == ["stall"]


def test_a_part_that_the_client_does_not_take_is_not_the_applications_stall(metrics: Metrics) -> None:
    sent: Sent = []

    async def slow_client(message: Message) -> None:
        if message.get("more_body"):
            await asyncio.sleep(0.5)
        sent.append(message)

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"large", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    middleware = RequestMiddleware(stream, metrics, 0.05, 0.1, 30)
    asyncio.run(middleware(scope(), None, slow_client))  # type: ignore[arg-type]
    assert [message.get("body") for message in sent] == [None, b"large", b""]


def test_a_background_task_runs_to_its_end_and_is_not_part_of_the_request(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    done = []

    async def answers_first(scope: Scope, receive: Receive, send: Send) -> None:
        await ok(scope, receive, send)
        assert metrics.in_flight == 0
        await asyncio.sleep(0.3)
        done.append(True)

    call(answers_first, metrics, scope(), deadline=0.05, stall=0.05, slow=0.2)
    assert done == [True]
    assert not caplog.records, "a background task makes no slow request"


def test_a_handler_of_one_thread_call_after_the_other_is_cancelled_between_them(metrics: Metrics) -> None:
    begun = []

    async def threads(scope: Scope, receive: Receive, send: Send) -> None:
        for number in range(16):
            begun.append(number)
            await to_thread.run_sync(time.sleep, 0.1)

    sent = call(threads, metrics, scope(), deadline=0.25)
    assert sent[0]["status"] == 504
    assert len(begun) < 8, f"{len(begun)} of 16 threads were begun; the deadline was in the third"


def test_an_app_that_gives_no_answer_is_500_and_named(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    assert call(silent, metrics, scope())[0]["status"] == 500
    assert [(vars(record)["reason"], vars(record)["status"]) for record in caplog.records] == [("no answer", 500)]


def test_a_client_that_left_before_the_answer_is_no_fault_of_the_app(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    async def left() -> Message:
        return {"type": "http.disconnect"}

    async def gives_up(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.disconnect"

    sent: Sent = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(RequestMiddleware(gives_up, metrics, 30, 30, 30)(scope(), left, send))  # type: ignore[arg-type]
    assert not sent
    assert not caplog.records


def test_a_handler_that_exits_takes_nobody_along(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    before = metrics.in_flight

    async def exits(scope: Scope, receive: Receive, send: Send) -> None:
        sys.exit(3)

    assert call(exits, metrics, scope())[0]["status"] == 500
    assert metrics.in_flight == before
    (record,) = caplog.records
    assert vars(record)["reason"] == "error"


def test_an_app_that_answers_twice_is_logged_once(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    async def twice(scope: Scope, receive: Receive, send: Send) -> None:
        await ok(scope, receive, send)
        raise RuntimeError("Unexpected ASGI message 'http.response.start' sent, after response already completed.")

    assert [m.get("status", m.get("body")) for m in call(twice, metrics, scope())] == [200, b"ok"]
    assert [vars(record)["reason"] for record in caplog.records] == ["error"]


@pytest.mark.parametrize(
    ("begins", "sent", "reason"),
    [(None, [504], "drain"), (b"text/csv", [200], "drain"), (b"text/event-stream", [200, None], None)],
)
def test_what_a_drain_cuts_is_never_called_not_done(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    begins: bytes | None, sent: list[Any], reason: str | None,
) -> None:  # fmt: skip
    async def cut(scope: Scope, receive: Receive, send: Send) -> None:
        if begins:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", begins)]})
        raise asyncio.CancelledError

    monkeypatch.setattr(worker_state, "state", "draining")
    found = call(cut, metrics, scope())
    assert [m.get("status", m.get("body")) for m in found][: len(sent)] == sent
    assert not [name for m in found for name, _ in m.get("headers", ()) if name == b"retry-after"]
    assert [vars(record)["reason"] for record in caplog.records] == ([reason] if reason else [])


def test_an_event_stream_ends_well_when_the_worker_drains(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        worker_state.state = "draining"
        (end,) = worker_state.end_event_stream
        asyncio.get_running_loop().call_soon(end)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await send({"type": "http.response.body", "body": b"event: bye\n\n", "more_body": True})
            raise

    monkeypatch.setattr(worker_state, "state", "ready")
    assert [m.get("body") for m in call(stream, metrics, scope())] == [None, b"event: bye\n\n", None]
    assert not worker_state.end_event_stream


def test_a_lifespan_that_fails_says_why(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.failed", "message": "Traceback …\nValueError: no database\n"})

    monkeypatch.setattr(worker_state, "startup_failure", "")
    assert call(fails, metrics, {"type": "lifespan"})[0]["type"] == "lifespan.startup.failed"
    assert worker_state.startup_failure == "lifespan startup: ValueError: no database"


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
        monkeypatch.setattr(worker_state, "state", state)
        assert call(ok, metrics, scope("/readyz"))[0]["status"] == status
        assert call(ok, metrics, scope("/livez"))[0]["status"] == 200


def test_requests_are_counted_by_route_and_status(metrics: Metrics) -> None:
    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = type("Route", (), {"path": "/things/{id}"})()
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    for number in range(3):
        call(routed, metrics, scope(f"/things/{number}"))
    assert figures(metrics)['http_requests_total{method="GET",route="/things/{id}",status="404"}'] == 3


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
