"""Each error that nginx answers by itself is JSON with the request's id, in the log as on the wire."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from proofs.conftest import started
from proofs.stack import Stack, until
from proofs.test_proxy import assert_json_error, raw

# What else is provoked elsewhere: 400, 404, 405, 413, 414 and 505 in test_proxy.py and test_smuggling.py,
# 421 and 429 in test_limits.py.
pytestmark = pytest.mark.xdist_group("native")


@pytest.fixture(scope="module")
def failing() -> Iterator[Stack]:
    """An app that ends or blocks its worker when it is asked to, for longer than nginx waits."""
    rows: dict[str, Any] = {
        "APP_MODULE": "proofs.apps.echo:app",
        "REQUEST_DEADLINE_SECONDS": "1",
        "ANSWER_STALL_SECONDS": "2",
        "PROXY_READ_TIMEOUT_SECONDS": "3",
        "PROXY_NEXT_UPSTREAM_TIMEOUT_MS": "500",
    }
    yield from started(Stack("native", "failing", **rows))


def ask(stack: Stack, method: str, path: str, key: str) -> httpx.Response:
    with httpx.Client(base_url=stack.url, timeout=30) as client:
        return client.request(method, path, headers={"X-Request-ID": key})


def arrivals(stack: Stack, method: str, path: str) -> int:
    """How often the app has got this request: at least once."""

    def logged() -> int:
        return [line["message"] for line in stack.app_log() if line["logger"] == "app.echo"].count(f"{method} {path}")

    until("the request's line in the log", logged)
    return logged()


def served(stack: Stack) -> None:
    until("both workers are back", lambda: [w["state"] for w in stack.workers()] == ["ready", "ready"])


def test_a_worker_that_dies_with_a_post_is_a_502_and_the_post_is_not_sent_again(failing: Stack) -> None:
    answer = ask(failing, "POST", "/order-502?exit", "dies-0001")
    assert_json_error(answer, 502, "Bad Gateway")
    served(failing)
    got = arrivals(failing, "POST", "/order-502")
    assert got == 1, f"a POST that failed after it was sent reached the app {got} times"


def test_a_post_that_no_worker_answers_in_time_is_a_504_and_is_not_sent_again(failing: Stack) -> None:
    answer = ask(failing, "POST", "/order-504?block=6000", "blocks-0001")
    assert_json_error(answer, 504, "Gateway Timeout")
    got = arrivals(failing, "POST", "/order-504")
    assert got == 1, f"a POST that timed out reached the app {got} times"
    served(failing)


def test_a_body_that_nginx_cannot_store_is_a_500(failing: Stack) -> None:
    """As on a full disk: the folder for bodies is gone."""
    folder = failing.folder / "nginx/body"
    shutil.rmtree(folder)
    try:
        with failing.client() as client:
            answer = client.post("/", content=b"x" * 60_000)
    finally:
        folder.mkdir()
    assert_json_error(answer, 500, "Internal Server Error")


def test_a_coding_that_nginx_does_not_know_is_a_501(failing: Stack) -> None:
    request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\nConnection: close\r\n\r\n"
    head, _, body = raw(failing, request).partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 501 "), head
    assert body.startswith('{"status":501,'), f"the 501 is not JSON: {body[:60]}"


def test_the_page_of_errors_cannot_be_asked_for(failing: Stack) -> None:
    with failing.client() as client:
        answer = client.get("/stack-error")
    assert answer.status_code == 404, f"GET /stack-error: {answer.status_code} {answer.text}"


def test_an_error_has_the_id_that_the_client_has_given(failing: Stack) -> None:
    answer = raw(failing, "GET /readyz HTTP/1.1\r\nHost: a\r\nX-Request-ID: my-own-id\r\nConnection: close\r\n\r\n")
    assert answer.count("my-own-id") == 2, f"once as a header, once in the body: {answer}"
