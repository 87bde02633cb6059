"""Every endpoint of the demo app, through nginx."""

from __future__ import annotations

import hashlib
import resource
import uuid

import pytest
from websockets.sync.client import connect

from proofs.stack import DEADLINE, Stack

ORDER = {
    "customer": {"name": "Ada Lovelace", "email": "ada@example.com", "address": "12 St James's Square, London"},
    "lines": [{"sku": f"sku-{n}", "quantity": n, "unit_price_cents": 250} for n in range(1, 11)],
    "note": "n" * 400,
}


def test_the_app_says_who_served(stack: Stack) -> None:
    with stack.client() as client:
        answer = client.get("/").json()
    assert answer["pid"] > 0
    assert answer["scheme"] == "http"
    assert answer["host"] == f"127.0.0.1:{stack.http_port}", "the port must be there, or redirects break"


@pytest.mark.parametrize("kind", ["io", "cpu", "block"])
def test_work_is_done(stack: Stack, kind: str) -> None:
    with stack.client() as client:
        answer = client.get(f"/work/{kind}", params={"ms": 20})
    assert (answer.status_code, answer.json()["kind"], answer.json()["ms"]) == (200, kind, 20)


def test_an_order_is_applied_once_for_each_key(stack: Stack) -> None:
    key = uuid.uuid4().hex
    with stack.client() as client:
        answers = [client.post("/orders", json=ORDER, headers={"Idempotency-Key": key}) for _ in range(6)]
        ledger = client.get(f"/orders/{key}").json()
    assert {a.status_code for a in answers} == {201}
    assert [a.json()["applied"] for a in answers] == [True] + [False] * 5
    assert answers[0].json()["total_cents"] == sum(n * 250 for n in range(1, 11))
    assert ledger == {"key": key, "deliveries": 6, "applied": 1}


def test_an_order_that_the_volume_has_no_space_for_is_not_applied_and_costs_no_other(native_stack: Stack) -> None:
    """The workers' files may not grow past a part of the next line: as on a full disk, a part of it is written."""
    workers = [worker["pid"] for worker in native_stack.workers()]
    torn, next_one = uuid.uuid4().hex, uuid.uuid4().hex
    with native_stack.client() as client:

        def place(key: str) -> tuple[int, bool]:
            answer = client.post("/orders", json=ORDER, headers={"Idempotency-Key": key})
            return answer.status_code, answer.status_code == 201 and answer.json()["applied"]

        assert place(uuid.uuid4().hex) == (201, True)
        full = (native_stack.folder / "data/ledger").stat().st_size + 40
        limits = [resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in workers]
        try:
            for pid, (_, hard) in zip(workers, limits, strict=True):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (full, hard))
            refused = [place(torn), place(torn), place(next_one)]
        finally:
            for pid, limit in zip(workers, limits, strict=True):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
        assert refused == [(507, False)] * 3, f"without space for their lines, orders got {refused}"
        placed = [place(next_one), place(torn), place(torn)]
    assert placed == [(201, True), (201, True), (201, False)], f"with space again, they got {placed}"


def test_an_upload_arrives_whole(stack: Stack) -> None:
    data = bytes(range(256)) * 200
    with stack.client() as client:
        answer = client.post("/upload", content=data).json()
    assert answer == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_websocket_echoes(stack: Stack) -> None:
    with connect(f"ws://127.0.0.1:{stack.http_port}/ws/echo", open_timeout=DEADLINE) as websocket:
        for text in ("hello", "ünïcode", "x" * 10_000):
            websocket.send(text)
            assert websocket.recv(timeout=30) == text


@pytest.mark.parametrize(
    ("path", "field"),
    [("/work/io?ms=60001", "ms"), ("/work/io?ms=-1", "ms"), ("/work/cpu?ms=x", "ms"), ("/items?n=1001", "n"),
     ("/events?count=0", "count"), ("/events?interval_ms=5001", "interval_ms"), ("/orders/a%20b", "key")],
)  # fmt: skip
def test_a_parameter_out_of_bounds_gets_422_that_names_it(stack: Stack, path: str, field: str) -> None:
    with stack.client() as client:
        answer = client.get(path)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][-1] == field


@pytest.mark.parametrize(
    ("body", "headers", "field"),
    [(ORDER, {}, "idempotency-key"), (ORDER, {"Idempotency-Key": "a b"}, "idempotency-key"),
     (ORDER | {"lines": []}, {"Idempotency-Key": "k"}, "lines"), ({}, {"Idempotency-Key": "k"}, "customer")],
)  # fmt: skip
def test_a_bad_order_gets_422_that_names_the_fault(
    stack: Stack, body: dict[str, object], headers: dict[str, str], field: str
) -> None:
    with stack.client() as client:
        answer = client.post("/orders", json=body, headers=headers)
    assert answer.status_code == 422
    assert field in [fault["loc"][-1] for fault in answer.json()["detail"]]


def test_large_json_is_compressed_and_small_is_not(stack: Stack) -> None:
    with stack.client() as client:
        large, small = client.get("/items?n=200"), client.get("/items?n=1")
    assert large.headers.get("content-encoding") == "gzip"
    assert len(large.json()) == 200
    assert "content-encoding" not in small.headers
