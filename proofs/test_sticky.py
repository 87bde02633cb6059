"""STICKY_SESSIONS: which worker a client's requests go to, for an app that keeps sessions in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from proofs.conftest import made_once
from proofs.stack import DEADLINE, PATIENT_BUDGET, Stack, until

WAYS = ("native", "compose")
REQUESTS = 30
PLACES = 4

BOTH = pytest.mark.parametrize("way", [pytest.param(way, marks=pytest.mark.xdist_group(way)) for way in WAYS])


@pytest.fixture(scope="module")
def stacks() -> Iterator[Callable[[str, str], Stack]]:
    """Stacks of three workers, in Compose of two replicas with three each, by way of running and value of the row."""

    def make(way: str, row: str) -> Stack:
        rows = {"STICKY_SESSIONS": row, "WORKERS": "3", "APP_REPLICAS": "2" if way == "compose" else "1"}
        return Stack(way, f"sticky-{row}", **PATIENT_BUDGET | rows, APP_MAX_REQUESTS_IN_FLIGHT=str(PLACES))

    with made_once(make) as stacks:
        yield stacks


def served_by(client: httpx.Client) -> str:
    answer = client.get("/")
    assert answer.status_code == 200, answer.text
    return f"{answer.json()['replica']} {answer.json()['pid']}"


@BOTH
@pytest.mark.parametrize("row", ["address", "cookie"])
def test_a_client_stays_with_one_worker(stacks: Callable[[str, str], Stack], way: str, row: str) -> None:
    with stacks(way, row).client() as client:
        seen = {served_by(client) for _ in range(REQUESTS)}
    assert len(seen) == 1, f"{REQUESTS} requests of one client were served by {len(seen)} workers"


@BOTH
def test_clients_of_one_address_are_shared_out_by_their_cookie(stacks: Callable[[str, str], Stack], way: str) -> None:
    stack, seen = stacks(way, "cookie"), set()
    for _ in range(REQUESTS):
        with stack.client() as client:
            seen.add(served_by(client))
    assert len(seen) > 1, f"{REQUESTS} clients were all served by {seen}"


@pytest.mark.xdist_group("native")
def test_clients_of_many_addresses_are_shared_out(stacks: Callable[[str, str], Stack]) -> None:
    stack, seen = stacks("native", "address"), set()
    for number in range(REQUESTS):
        transport = httpx.HTTPTransport(local_address=f"127.0.0.{number + 2}")
        with httpx.Client(base_url=stack.url, transport=transport, timeout=DEADLINE) as client:
            seen.add(served_by(client))
    assert len(seen) > 1, f"{REQUESTS} addresses were all served by {seen}"


@pytest.mark.xdist_group("native")
@pytest.mark.parametrize("row", ["address", "cookie"])
def test_when_its_worker_dies_a_client_is_answered_and_stays_with_one_again(
    stacks: Callable[[str, str], Stack], row: str
) -> None:
    stack = stacks("native", row)
    with stack.client() as client:
        before = served_by(client)
        stack.kill(int(before.split()[1]))
        until("another worker serves it", lambda: client.get("/").json().get("pid", 0) != int(before.split()[1]))
        until("the replacement is ready", lambda: [w["state"] for w in stack.workers()] == ["ready"] * 3)
        seen = {served_by(client) for _ in range(REQUESTS)}
    assert len(seen) == 1, f"{REQUESTS} requests of one client were served by {len(seen)} workers"


@pytest.mark.xdist_group("native")
def test_what_a_full_worker_cannot_take_goes_to_another(stacks: Callable[[str, str], Stack]) -> None:
    stack = stacks("native", "address")

    def ask(_: int) -> httpx.Response:
        with stack.client() as client:
            return client.get("/work/io?ms=5000")

    with ThreadPoolExecutor(2 * PLACES) as threads:
        answers = list(threads.map(ask, range(2 * PLACES)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["pid"] for answer in answers}) == 2
