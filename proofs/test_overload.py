"""More requests than the workers have places for: the rest is refused at once, and nothing else takes a place."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import httpx
import pytest

from proofs.conftest import started
from proofs.stack import PATIENT_BUDGET, Stack, until
from proofs.test_proxy import assert_json_error

pytestmark = pytest.mark.xdist_group("native")
PLACES = 3  # of each of the two workers
ALL = 2 * PLACES
ASKED = 20
SETTLED_WITHIN = 8  # seconds; the app's deadline, 10, would end what is held


@pytest.fixture(scope="module")
def busy() -> Iterator[Stack]:
    """An app whose requests last until the proof says so."""
    rows: dict[str, Any] = PATIENT_BUDGET | {
        "APP_MODULE": "proofs.apps.busy:app",
        "APP_MAX_REQUESTS_IN_FLIGHT": str(PLACES),
        "CLIENT_BODY_TIMEOUT_SECONDS": "10",
    }
    yield from started(Stack("native", "busy", **rows))


class Held:
    """`count` POSTs at once. The app answers none of those that it gets before the end of the block.

    The block begins when each has been refused or is with the app.
    """

    def __init__(self, stack: Stack, count: int = ALL) -> None:
        self.release = stack.folder / f"release-{uuid4().hex}"
        self.client = stack.client(headers={"Connection": "close"})  # threads close each other's idle ones
        self.threads = ThreadPoolExecutor(count)
        self.answers: list[Future[httpx.Response]] = []
        self.count = count

    def __enter__(self) -> Held:
        path = f"/hold?{self.release.name}"
        self.answers = [self.threads.submit(self.client.post, path, content=b"x") for _ in range(self.count)]
        until(
            "all requests are refused or with the app",
            lambda: len(self.refused()) + self.with_the_app() == self.count,
            SETTLED_WITHIN,
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self.release.touch()
        self.threads.shutdown()
        self.client.close()

    def refused(self) -> list[httpx.Response]:
        """What has an answer while the app holds what it got."""
        return [answer.result() for answer in self.answers if answer.done()]

    def with_the_app(self) -> int:
        return len(list(self.release.parent.glob(f"{self.release.name}.*")))

    def statuses(self) -> Counter[int]:
        """After the block: of all."""
        return Counter(answer.result().status_code for answer in self.answers)


def log_of(stack: Stack, answer: httpx.Response) -> dict[str, Any]:
    key = answer.headers["x-request-id"]
    (line,) = until("its line in the access log", lambda: [x for x in stack.access_log() if x["request_id"] == key])
    found: dict[str, Any] = line
    return found


def test_as_many_requests_as_there_are_places_are_served_and_the_others_get_503_at_once(busy: Stack) -> None:
    with Held(busy, ASKED) as held:
        assert held.with_the_app() == ALL, f"with {ALL} places the app got {held.with_the_app()} of {ASKED} requests"
        for answer in held.refused():
            assert_json_error(answer, 503, "Service Unavailable")
            after = answer.headers.get_list("retry-after")
            assert after == ["1"], f"a refusal has the Retry-After headers {after}"
    assert held.statuses() == {200: ALL, 503: ASKED - ALL}
    with Held(busy) as again:
        pass
    assert again.statuses() == {200: ALL}, f"the places were not free again: {again.statuses()}"


def test_each_worker_has_its_places(busy: Stack) -> None:
    with Held(busy) as held:
        pass
    served = Counter(answer.result().json()["pid"] for answer in held.answers)
    assert list(served.values()) == [PLACES, PLACES]


def test_nobody_is_asked_for_a_request_that_is_refused(busy: Stack) -> None:
    with Held(busy), busy.client() as client:
        line = log_of(busy, client.get("/"))
        assert (line["upstream"], line["tries"]) == ("app", "0"), f"a refusal went through {line['upstream']}"
        assert client.get("/nginx-health").status_code == 200


def test_idle_connections_and_unfinished_bodies_take_no_place(busy: Stack) -> None:
    with ExitStack() as stack:
        for _ in range(2 * ALL):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", busy.http_port)))
            slow.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nx")
        for _ in range(2 * ALL):
            idle = stack.enter_context(busy.client())
            assert idle.get("/").status_code == 200, "beside unfinished bodies"
        with Held(busy) as held:
            pass
    assert held.statuses() == {200: ALL}, f"beside idle and slow clients: {held.statuses()}"


def test_a_503_of_the_apps_own_goes_through_as_it_is(busy: Stack) -> None:
    with busy.client() as client:
        answer = client.get("/busy")
    assert answer.status_code == 503
    assert answer.json()["pid"]
    after = answer.headers.get_list("retry-after")
    assert after == ["7"], f"the app's Retry-After: 7 became {after}"


def test_a_post_that_may_have_been_done_is_no_503(busy: Stack) -> None:
    with busy.client() as client:
        answer = client.post("/die")
    assert_json_error(answer, 502, "Bad Gateway")
    assert "retry-after" not in answer.headers
    until("both workers are back", lambda: [w["state"] for w in busy.workers()] == ["ready", "ready"])
