import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench.experiments import layers
from bench.processes import CannotRun
from stack import native
from stack.settings import GIVEN, StackSettings, read, rows

LAYERS = ("request_id", "deadline", "metrics", "log", "typical")
SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "path": "/items",
    "raw_path": b"/items",
    "query_string": b"n=3",
    "root_path": "",
    "scheme": "http",
    "headers": [(b"host", b"bench.test"), (b"x-request-id", b"the-id-of-a-test")],
    "client": ("192.0.2.1", 0),
    "server": ("127.0.0.1", 80),
}


@pytest.fixture
def apps(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, as a worker of the app server finds its environment."""
    table = rows() | {"APP_MODULE": "app.demo.main:app"}
    for name, value in native.environment(read(StackSettings, GIVEN | table), table).items():
        monkeypatch.setenv(name, value)
    for name in ("app.demo.main", "bench.experiments.layers_app"):
        monkeypatch.delitem(sys.modules, name, raising=False)  # the middleware of one test is not in the next
    import bench.experiments.layers_app

    return bench.experiments.layers_app


def ask(app: Callable[..., Any], path: str = "/items") -> tuple[int, bytes]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(SCOPE | {"path": path, "raw_path": path.encode()}, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_leaves_the_answer_as_it_is(apps: ModuleType, layer: str) -> None:
    status, body = ask(getattr(apps, layer)())
    assert status == 200
    assert [item["sku"] for item in json.loads(body)] == ["sku-0", "sku-1", "sku-2"]


def test_all_layers_in_one_process_are_chosen_by_the_path(apps: ModuleType) -> None:
    app = apps.chosen()
    for part in ("bare", *layers.PARTS):
        status, body = ask(app, path=f"/{part}/items")
        assert status == 200, part
        assert [item["sku"] for item in json.loads(body)] == ["sku-0", "sku-1", "sku-2"]
    assert set(app.apps) == {"bare", *layers.PARTS}


def test_the_metrics_layer_counts(apps: ModuleType) -> None:
    app = apps.metrics()
    before = app.metrics.board.get("http_requests", "GET", "/items", "200")
    ask(app)
    assert app.metrics.board.get("http_requests", "GET", "/items", "200") == before + 1
    assert app.metrics.in_flight == 0


def test_the_deadline_layer_ends_a_handler(apps: ModuleType) -> None:
    app = apps.deadline()

    async def for_ever(*_: object) -> None:
        await asyncio.sleep(3600)

    app.middleware.app, app.middleware.deadlines.seconds = for_ever, 0.01
    assert ask(app)[0] == 504


def test_the_log_layer_tells_of_slow_requests_alone(
    apps: ModuleType, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apps, "settings", apps.settings.model_copy(update={"slow_request_ms": 60_000}))
    app = apps.log()
    ask(app)
    assert not caplog.records
    app.end(SCOPE, 200, 3600)
    assert [record.getMessage() for record in caplog.records] == ["GET /items"]


def test_an_app_of_another_framework_has_no_tutorial_middleware(
    apps: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apps, "_bare", lambda: ask)
    with pytest.raises(TypeError, match="is no FastAPI application"):
        apps.typical()


def test_logs_without_a_line_for_each_request_do_not_count(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    access, structured = '192.0.2.1:0 - "GET / HTTP/1.1" 200\n', '{"event": "request"}\n'
    log.write_text((access + structured) * 300 + access)
    layers.require_lines(log)
    for text in ("", access * 300, structured * 300):
        log.write_text(text)
        with pytest.raises(CannotRun, match="lines in the access log"):
            layers.require_lines(log)
