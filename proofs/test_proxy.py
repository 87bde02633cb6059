"""What nginx adds, refuses and hides."""

from __future__ import annotations

import json
import re
import socket
import time
import uuid
from contextlib import suppress

import httpx
import pytest
from websockets.sync.client import connect

from proofs.stack import DEADLINE, Stack, until


@pytest.mark.parametrize(
    "path", ["/metrics", "/readyz", "/livez", "//metrics", "/x/../metrics", "/%6detrics", "/metrics/"]
)
def test_internal_endpoints_are_not_reachable_from_outside(stack: Stack, path: str) -> None:
    answer = raw(stack, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert answer.startswith("HTTP/1.1 404 "), f"GET {path} from outside: {answer[:300]}"
    head, _, body = answer.partition("\r\n\r\n")
    assert "application/json" in head, f"the 404 is not JSON: {body[:60]}"


@pytest.mark.parametrize("path", ["/metrics/daily", "/livez/x", "/metricsx", "/nginx-health/x"])
def test_what_lies_below_an_internal_path_is_the_apps(stack: Stack, path: str) -> None:
    with stack.client() as client:
        answer = client.get(path)
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"}), f"{path} has not reached the app"


def test_the_health_location_is_this_stacks_own(stack: Stack) -> None:
    with stack.client() as client:
        answer = client.get("/nginx-health")
    assert answer.text == '{"nginx":"ok"}', f"/nginx-health says {answer.status_code} {answer.text!r}"
    kind = answer.headers.get("content-type")
    assert kind == "application/json", f"/nginx-health is {kind}"


def test_health_checks_are_not_logged(stack: Stack) -> None:
    with stack.client() as client:
        client.get("/nginx-health", headers={"X-Request-ID": "health-check-0001"})
        after = client.get("/").headers["x-request-id"]
    ids = until(
        "the line after it", lambda: after in (found := [line["request_id"] for line in stack.access_log()]) and found
    )
    assert "health-check-0001" not in ids, "a health check is in the access log"


@pytest.mark.parametrize(
    "header", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port"]
)
def test_a_client_cannot_spoof_its_address_or_scheme(stack: Stack, header: str) -> None:
    forged = {"Forwarded": "for=203.0.113.7;proto=https", "X-Forwarded-Proto": "https"}.get(header, "203.0.113.7")
    with stack.client() as client:
        honest, spoofed = client.get("/").json(), client.get("/", headers={header: forged}).json()
    for field in ("client", "scheme", "host"):
        assert spoofed[field] == honest[field], f"{header}: {forged} changed {field}"


def test_the_client_address_is_the_clients(stack: Stack) -> None:
    with stack.client() as client:
        seen = client.get("/").json()["client"]
    if stack.way == "native":
        assert seen == "127.0.0.1"
    else:  # the engine's gateway stands for the host; never nginx's own address
        (nginx,) = stack.containers("nginx")
        networks = stack.inspect(nginx)["NetworkSettings"]["Networks"].values()
        assert seen not in [n["IPAddress"] for n in networks], f"the client is {seen}, which is nginx"
        assert seen in [n["Gateway"] for n in networks], f"the client is {seen}, which is not the host"


def test_a_request_id_is_made_passed_on_returned_and_logged(stack: Stack) -> None:
    with stack.client() as client:
        answer = client.get("/")
    made = answer.headers.get("x-request-id", "")
    assert re.fullmatch(r"[0-9a-f]{32}", made), f"the answer's X-Request-ID is {made!r}"
    got = answer.json()["request_id"]
    assert got == made, f"the app got X-Request-ID {got!r}, the client {made!r}"
    (line,) = until("its line in the access log", lambda: [x for x in stack.access_log() if x["request_id"] == made])
    assert line["status"] == 200
    assert line["tries"] == "1"
    for field in ("upstream", "upstream_connect_time", "upstream_header_time", "upstream_response_time"):
        assert line[field], f"{field} is empty in {line}"


def test_a_good_request_id_of_the_clients_is_kept_and_a_bad_one_replaced(stack: Stack) -> None:
    with stack.client() as client:
        for given, kept in (("client-id.0001", True), ("short", False), ('a"b{c}d<e>f;g', False), ("x" * 65, False)):
            answer = client.get("/", headers={"X-Request-ID": given})
            assert answer.headers.get_list("x-request-id") == [answer.json()["request_id"]]
            assert (answer.headers["x-request-id"] == given) == kept, given


def test_a_slow_request_is_logged_by_the_app_with_its_id(stack: Stack) -> None:
    with stack.client() as client:
        # In time: the deadline is near, for a machine that stands still.
        answer = until("an answer", lambda: (one := client.get("/work/io?ms=1100")).status_code == 200 and one)
        sent = answer.headers["x-request-id"]
    (line,) = until("its line in the app's log", lambda: [x for x in stack.app_log() if x.get("request_id") == sent])
    assert (line["reason"], line["status"]) == ("slow", 200)
    # Not 1100: the event loop counts in whole milliseconds, and may end a wait up to one too early.
    assert line["duration_ms"] >= int(stack.rows["SLOW_REQUEST_MS"])


def test_a_body_over_the_limit_gets_413_as_json(stack: Stack) -> None:
    limit = int(stack.rows["CLIENT_MAX_BODY_BYTES"])
    with stack.client() as client:
        assert client.post("/upload", content=b"x" * limit).status_code == 200
        answer = client.post("/upload", content=b"x" * (limit + 1))
    assert_json_error(answer, 413, "Content Too Large")


def test_a_header_over_the_limit_is_refused_as_json(stack: Stack) -> None:
    with stack.client() as client:
        assert client.get("/", headers={"X-Long": "x" * 7000}).status_code == 200
        assert_json_error(client.get("/", headers={"X-Long": "x" * 9000}), 400, "Bad Request")
        assert_json_error(client.get("/?" + "x" * 9000), 414, "URI Too Long")


def test_a_request_that_is_no_http_gets_400_as_json(stack: Stack) -> None:
    head, _, body = raw(stack, "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 400 ")
    assert json.loads(body)["status"] == 400


def test_an_event_arrives_when_it_is_sent_and_not_at_the_end(stack: Stack) -> None:
    """A second apart: with buffering, the first would come with the last."""
    with stack.client() as client, client.stream("GET", "/events?count=6&interval_ms=1000") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        arrived = list(arrivals(answer))
    assert len(arrived) == 6
    (_, received), (last_sent, _) = arrived[0], arrived[-1]
    assert received < last_sent, f"the first event came {received - last_sent:.2f} s after the last was sent"


def arrivals(answer: httpx.Response) -> list[tuple[float, float]]:
    found = []
    for line in answer.iter_lines():
        if line.startswith("data: "):
            found.append((float(line.removeprefix("data: ")), time.time()))
    return found


def test_an_event_stream_outlives_the_request_deadline(stack: Stack) -> None:
    assert float(stack.rows["REQUEST_DEADLINE_SECONDS"]) < 3
    with stack.client() as client, client.stream("GET", "/events?count=4&interval_ms=1000") as answer:
        assert len(list(arrivals(answer))) == 4


def test_a_silent_websocket_is_kept_open_by_pings(stack: Stack) -> None:
    """Silent for longer than the proxy's read timeout."""
    with connect(f"ws://127.0.0.1:{stack.http_port}/ws/echo", open_timeout=DEADLINE) as websocket:
        time.sleep(int(stack.rows["PROXY_READ_TIMEOUT_SECONDS"]) + 2)  # the silence is what is tested
        websocket.send("still there?")
        assert websocket.recv(timeout=30) == "still there?"


def test_the_deadline_answers_504_and_cancels_the_handler(stack: Stack) -> None:
    with stack.client() as client:
        answer = client.get("/work/io?ms=60000")
    assert_json_error(answer, 504, "Gateway Timeout")
    seconds = answer.elapsed.total_seconds()
    deadline, read_timeout = (int(stack.rows[f"{name}_SECONDS"]) for name in ("REQUEST_DEADLINE", "PROXY_READ_TIMEOUT"))
    early = 0.1  # seconds; the event loop counts from the beginning of the turn in which the timer was set
    assert deadline - early <= seconds
    (line,) = until(
        "the app's line", lambda: [x for x in stack.app_log() if x.get("request_id") == answer.headers["x-request-id"]]
    )
    assert line["reason"] == "deadline", "nginx answered, not the app"
    # The line is written when the handler has ended: had it not been cancelled, 60 s later.
    assert (deadline - early) * 1000 <= line["duration_ms"] < 60_000
    assert read_timeout > deadline


def test_a_handler_in_a_thread_gets_504_at_the_deadline_too(stack: Stack) -> None:
    with stack.client() as client:
        answer = client.get("/work/cpu?ms=5000")
    assert_json_error(answer, 504, "Gateway Timeout")


def test_a_client_that_leaves_before_its_answer_is_a_499(stack: Stack) -> None:

    def left() -> str:
        """Its id; where it was not asleep until the answer was there."""
        key = f"left-too-early-{uuid.uuid4().hex}"
        with stack.client() as client, suppress(httpx.ReadTimeout):
            client.get("/work/io?ms=1500", headers={"X-Request-ID": key}, timeout=0.3)
            return ""
        return key

    key = until("a client that leaves", left)
    (line,) = until("its line", lambda: [x for x in stack.access_log() if x["request_id"] == key])
    assert line["status"] == 499


def test_nothing_says_which_nginx_this_is(stack: Stack) -> None:
    with stack.client() as client:
        for path in ("/", "/metrics"):
            server = client.get(path).headers["server"]
            assert server == "nginx", f"everybody is told that this is {server}"


def assert_json_error(answer: httpx.Response, status: int, error: str) -> None:
    assert answer.status_code == status, f"{answer.status_code} and not {status}: {answer.text[:100]}"
    kind = answer.headers.get("content-type")
    assert kind == "application/json", f"the {status} is {kind}: {answer.text[:60]}"
    sent = answer.headers.get("x-request-id")
    assert sent, f"the {status} has no X-Request-ID"
    assert answer.text.startswith("{"), f"the {status} says {answer.text[:60]!r}"
    assert answer.json() == {"status": status, "error": error, "request_id": sent}


def raw(stack: Stack, request: str) -> str:
    """Send these bytes, and read until nginx closes."""
    with socket.create_connection(("127.0.0.1", stack.http_port), timeout=30) as connection:
        connection.sendall(request.encode())
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received.decode()
