"""Litestar, made by a factory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proofs.conftest import started
from proofs.stack import MOVES, Stack

pytestmark = pytest.mark.xdist_group(__name__)

FACTORY = "proofs.applications.litestar_orders:create_app"


@pytest.fixture(scope="module")
def orders() -> Iterator[Stack]:
    yield from started(Stack("native", "litestar", **MOVES, APP_MODULE=f"{FACTORY}()"))


def test_requests_are_answered(orders: Stack) -> None:
    with orders.client() as client:
        placed = client.post("/orders", json={"item": "tea", "quantity": 2})
        assert (placed.status_code, placed.json()) == (201, {"item": "tea", "quantity": 2, "total": 6})


def test_its_own_refusals_reach_the_client(orders: Stack) -> None:
    with orders.client() as client:
        refused = client.post("/orders", json={"item": "tea", "quantity": "many"})
        assert (refused.status_code, refused.json()["extra"][0]["key"]) == (400, "quantity")
        assert client.get("/nowhere").json() == {"status_code": 404, "detail": "Not Found"}


def test_links_have_the_name_that_the_client_used(orders: Stack) -> None:
    with orders.client() as client:
        answer = client.get("/where").json()
        assert answer == {"url": f"{orders.url}/where", "client": "127.0.0.1"}
        moved = client.get("/old")
        assert (moved.status_code, moved.headers["location"]) == (302, "/where")


def test_its_schema_and_its_docs_are_served(orders: Stack) -> None:
    with orders.client() as client:
        assert "/orders" in client.get("/schema/openapi.json").json()["paths"]
        docs = client.get("/schema", headers={"Accept-Encoding": "gzip"})
    assert (docs.status_code, docs.headers["content-encoding"]) == (200, "gzip")


def test_a_stream_is_longer_than_the_deadline(orders: Stack) -> None:
    with orders.client() as client:
        lines = client.get("/ticks").text.splitlines()
    assert lines == [str(n) for n in range(8)]


def test_without_its_parentheses_the_factory_is_refused_before_anything_runs() -> None:
    stack = Stack("native", "litestar-bare", APP_MODULE=FACTORY)
    try:
        done = stack.make("up")
    finally:
        stack.down()
    assert done.returncode != 0
    assert f"APP_MODULE={FACTORY} is a factory" in done.stdout + done.stderr
    assert f"write {FACTORY}()" in done.stdout + done.stderr
