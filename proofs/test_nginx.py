"""What nginx does by itself: its processes, its log, compression, limits and clients' connections."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from proofs.conftest import started
from proofs.stack import DEADLINE, Stack, until, whole_lines
from proofs.test_proxy import assert_json_error, raw
from proofs.test_upstream import nginx_processes, signal_all

pytestmark = pytest.mark.xdist_group("native")

IN_FLIGHT = 4
IDLE_SECONDS = 2
SHUTDOWN_SECONDS = 5
TIGHT: dict[str, Any] = {
    "APP_MODULE": "proofs.apps.space:app",
    "NGINX_WORKERS": "3",
    "CLIENT_HEADER_TIMEOUT_SECONDS": "20",
    "CLIENT_BODY_TIMEOUT_SECONDS": "20",
    "CLIENT_KEEPALIVE_SECONDS": str(IDLE_SECONDS),
    "CLIENT_MAX_HEADER_BYTES": "4096",
    "CLIENT_MAX_REQUESTS_IN_FLIGHT": str(IN_FLIGHT),
    "GZIP_MIN_BYTES": "600",
    "PROXY_NEXT_UPSTREAM_TIMEOUT_MS": "500",
    "REQUEST_DEADLINE_SECONDS": "1",
    "ANSWER_STALL_SECONDS": "2",
    "PROXY_READ_TIMEOUT_SECONDS": "3",
    "NGINX_SHUTDOWN_SECONDS": str(SHUTDOWN_SECONDS),
}


@pytest.fixture(scope="module")
def tight() -> Iterator[Stack]:
    """Limits low enough to meet them."""
    yield from started(Stack("native", "tight", **TIGHT))


# --- Its processes ----------------------------------------------------------------------------------------------


def serving(stack: Stack) -> list[int]:
    """nginx's workers but for those that are leaving."""
    found = []
    for pid in nginx_processes(stack)[1:]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has left meanwhile
            title = Path(f"/proc/{pid}/cmdline").read_text()  # "" of one that has ended
            if title and "shutting down" not in title:
                found.append(pid)
    return found


def test_nginx_has_as_many_workers_as_the_row_says(tight: Stack) -> None:
    workers = len(serving(tight))
    assert workers == 3, f"nginx has {workers} workers, the row says 3"


def test_a_websocket_ends_some_seconds_after_a_reload(tight: Stack) -> None:
    """Or the old worker would stay as long as the client does, with the old configuration."""
    with connect(f"ws://127.0.0.1:{tight.http_port}/ws/echo", open_timeout=DEADLINE) as websocket:
        before = serving(tight)
        signal_all(nginx_processes(tight)[:1], "HUP")
        until("new workers", lambda: not set(before) & set(serving(tight)))
        websocket.send("after the reload")
        assert websocket.recv(timeout=30) == "after the reload"
        ended = False
        with contextlib.suppress(TimeoutError):
            try:
                websocket.recv(timeout=6 * SHUTDOWN_SECONDS)
            except ConnectionClosed:
                ended = True
    assert ended, f"{6 * SHUTDOWN_SECONDS} s after a reload a WebSocket still holds its old worker"


def test_what_goes_to_disk_is_said_in_the_log(tight: Stack) -> None:
    with tight.client() as client:
        assert client.post("/upload", content=b"x" * 60_000).status_code == 200
    warning = "a client request body is buffered to a temporary file"
    until("nginx's warning in the log", lambda: warning in (tight.folder / "stack.log").read_text())


# --- Its log ----------------------------------------------------------------------------------------------------


def log_text(stack: Stack) -> str:
    log = stack.folder / "access.log"
    assert log.exists(), "there is no access log where the stack's is"
    return "\n".join(whole_lines(log))


def line_of(stack: Stack, answer: httpx.Response, seconds: float = 20) -> dict[str, Any]:
    """This request's in the access log."""
    key = answer.headers["x-request-id"]
    end = time.monotonic() + seconds
    while not (found := [line for line in log_text(stack).splitlines() if key in line]):
        assert time.monotonic() < end, f"after {seconds:g} s no line of the access log has the request's id"
        time.sleep(0.05)
    try:
        line: dict[str, Any] = json.loads(found[0])
    except ValueError:
        raise AssertionError(f"not JSON in the access log: ...{found[0][-80:]}") from None
    return line


def test_the_access_log_says_who_asked_for_what_and_how_it_went(tight: Stack) -> None:
    agent = 'a "quoted" one\\ of Zürich'
    headers = {"User-Agent": agent.encode(), "Accept-Encoding": "identity"}
    with tight.client() as client:
        answer = client.get("/items?n=3", headers=headers)  # type: ignore[arg-type]
    line = line_of(tight, answer)
    known = {
        "request_id": answer.headers["x-request-id"],
        "client": "127.0.0.1",
        "method": "GET",
        "uri": "/items?n=3",
        "protocol": "HTTP/1.1",
        "host": f"127.0.0.1:{tight.http_port}",
        "status": 200,
        "bytes": len(answer.content),
        "upstream_status": "200",
        "tries": "1",
        "user_agent": agent,
    }
    assert {key: line.get(key) for key in known} == known, f"the access log has {line}"
    assert datetime.fromisoformat(line["time"]).tzinfo
    assert line["upstream"].startswith("127.0.0.1:"), line
    assert line["request_time"] >= 0
    for field in ("upstream_connect_time", "upstream_header_time", "upstream_response_time"):
        assert float(line[field]) >= 0, line


def test_a_refused_request_is_logged_with_its_own_method_and_no_tries(tight: Stack) -> None:
    with tight.client() as client:
        answer = client.post("/upload", content=b"x" * (int(tight.rows["CLIENT_MAX_BODY_BYTES"]) + 1))
    line = line_of(tight, answer)
    assert line["method"] == "POST", f"a POST that was refused is in the access log as {line['method']}"
    assert line["tries"] == "0", f"a request that reached no app is in the access log with {line['tries']} tries"


def test_a_line_is_in_the_log_soon_though_few_requests_come(tight: Stack) -> None:
    """The buffer holds some eighty of them."""
    with tight.client() as client:
        assert line_of(tight, client.get("/", headers={"X-Request-ID": "the-only-one"}))["uri"] == "/"


def test_the_log_is_written_many_lines_at_a_time(tight: Stack) -> None:
    log, requests, sizes = tight.folder / "access.log", 200, set()
    with tight.client() as client:
        for _ in range(requests):
            client.get("/livez")
            sizes.add(log.stat().st_size)
    assert len(sizes) < requests / 2, f"{requests} requests were {len(sizes)} writes to the access log"


# --- Ids --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [("client-id.0001", True), ("x" * 64, True), ("x" * 65, False), ("short", False), ('a"b{c}d<e>f;g', False)],
    ids=["good", "longest", "too-long", "too-short", "quotes"],
)
def test_a_request_id_is_taken_from_the_client_if_it_looks_like_one(tight: Stack, given: str, kept: bool) -> None:
    with tight.client() as client:
        used = client.get("/", headers={"X-Request-ID": given}).headers["x-request-id"]
    assert (used == given) == kept, f"the client's X-Request-ID {given!r} became {used!r}"


# --- Errors -----------------------------------------------------------------------------------------------------


ERRORS = {
    400: ("Bad Request", "GET /\0 HTTP/1.1"),
    404: ("Not Found", "GET /readyz HTTP/1.1"),
    405: ("Method Not Allowed", "TRACE / HTTP/1.1"),
    414: ("URI Too Long", f"GET /{'x' * 5000} HTTP/1.1"),
    501: ("Not Implemented", "POST / HTTP/1.1\r\nTransfer-Encoding: gzip"),
    505: ("HTTP Version Not Supported", "GET / HTTP/9.9"),
}


@pytest.mark.parametrize("status", ERRORS)
def test_an_error_is_called_by_its_name(tight: Stack, status: int) -> None:
    error, line = ERRORS[status]
    body = raw(tight, f"{line}\r\nHost: localhost\r\nConnection: close\r\n\r\n").partition("\r\n\r\n")[2]
    found = json.loads(body)
    assert (found["status"], found["error"]) == (status, error), f"a {status} is called {found['error']!r}"


def test_a_header_line_over_the_row_is_refused(tight: Stack) -> None:
    with tight.client() as client:
        assert client.get("/", headers={"X-Long": "x" * 3000}).status_code == 200
        status = client.get("/", headers={"X-Long": "x" * 6000}).status_code
    assert status == 400, f"a header line of 6000 bytes, where 4096 are the limit, got {status}"


# --- Compression ------------------------------------------------------------------------------------------------


def coding(stack: Stack, path: str, **headers: str) -> str | None:
    """The answer's Content-Encoding for a client that takes gzip."""
    with stack.client() as client:
        answer = client.get(path, headers={"Accept-Encoding": "gzip"} | headers)
    assert answer.status_code == 200
    found: str | None = answer.headers.get("content-encoding")
    return found


def test_large_json_is_compressed(tight: Stack) -> None:
    found = coding(tight, "/items?n=50")
    assert found == "gzip", "an answer of 3 KB of JSON is not compressed"


@pytest.mark.parametrize(
    ("media_type", "wanted"),
    [("text/html", True), ("text/css", True), ("text/javascript", True), ("application/javascript", True),
     ("image/svg+xml", True), ("text/csv", True), ("text/plain", True), ("application/xml", True),
     ("application/problem+json", True), ("image/png", False), ("text/event-stream", False)],
)  # fmt: skip
def test_what_compresses_is_compressed(tight: Stack, media_type: str, wanted: bool) -> None:
    found = coding(tight, f"/text?media_type={media_type.replace('+', '%2B')}&size=5000")
    assert (found == "gzip") == wanted, f"5 KB of {media_type} are sent as {found}"


def test_an_answer_may_have_many_headers(tight: Stack) -> None:
    with tight.client() as client:
        status = client.get("/headers?size=20000").status_code
    assert status == 200, f"an answer with 20 KB of headers is a {status}"


def test_small_json_is_not_compressed(tight: Stack) -> None:
    found = coding(tight, "/items?n=3")
    assert found is None, "an answer of 150 bytes, where 600 are the least, is compressed"


def test_an_answer_that_goes_through_another_proxy_is_compressed(tight: Stack) -> None:
    found = coding(tight, "/items?n=50", Via="1.1 cdn.test")
    assert found == "gzip", "a large answer to a request with Via is not compressed"


def test_an_event_stream_is_not_compressed(tight: Stack) -> None:
    found = coding(tight, "/events?count=2&interval_ms=10")
    assert found is None, "an event stream is compressed: its events come at its end"


def test_a_cache_is_told_that_the_answer_depends_on_what_the_client_can_read(tight: Stack) -> None:
    with tight.client() as client:
        for accepted in ("gzip", "identity"):
            answer = client.get("/items?n=50", headers={"Accept-Encoding": accepted})
            vary = answer.headers.get("vary", "")
            assert vary == "Accept-Encoding", f"the answer for {accepted} has Vary: {vary!r}"


# --- Clients' connections ---------------------------------------------------------------------------------------


def test_an_idle_client_connection_is_closed_after_its_time(tight: Stack) -> None:
    with socket.create_connection(("127.0.0.1", tight.http_port)) as connection:
        begun = time.monotonic()  # before the answer from which on it is idle
        connection.sendall(b"GET /nginx-health HTTP/1.1\r\nHost: a\r\n\r\n")
        connection.settimeout(10 * IDLE_SECONDS)
        assert connection.recv(4096)
        try:
            rest = connection.recv(4096)
        except TimeoutError:
            message = f"an idle connection is open after {10 * IDLE_SECONDS} s, its time is {IDLE_SECONDS}"
            raise AssertionError(message) from None
    assert rest == b""
    assert time.monotonic() - begun > IDLE_SECONDS - 0.5


HALF = b"POST /upload HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nx"


def slow_body(stack: Stack, address: str, opened: ExitStack) -> socket.socket:
    """A request from this address, half of whose body is sent."""
    connection = socket.create_connection(("127.0.0.1", stack.http_port), 30, source_address=(address, 0))
    opened.enter_context(connection)
    connection.sendall(HALF)
    return connection


def settle(bodies: list[socket.socket]) -> None:
    """Until nginx has read the head of each, and refused what is over an address's places, if it does."""
    end = time.monotonic() + 15
    while len(select.select(bodies, [], [], 0)[0]) < len(bodies) - IN_FLIGHT and time.monotonic() < end:
        time.sleep(0.05)


def status_of(connection: socket.socket) -> int:
    """Send the other half."""
    with contextlib.suppress(OSError):  # it has been refused and closed
        connection.sendall(b"x")
    return int(connection.makefile("rb").readline().split()[1])


def test_slow_bodies_from_one_address_take_its_places_and_no_others(tight: Stack) -> None:
    with ExitStack() as opened, tight.client() as other:
        bodies = [slow_body(tight, "127.0.0.2", opened) for _ in range(3 * IN_FLIGHT)]
        settle(bodies)
        status = other.get("/").status_code
        assert status == 200, f"beside one address with many requests in flight, another address got {status}"
        statuses = Counter(status_of(body) for body in bodies)
    assert statuses == {200: IN_FLIGHT, 429: 2 * IN_FLIGHT}, f"of {3 * IN_FLIGHT} at once one address got {statuses}"


def test_a_refusal_for_too_many_at_once_says_whose_fault_it_is(tight: Stack) -> None:
    with ExitStack() as opened:
        settle([slow_body(tight, "127.0.0.1", opened) for _ in range(3 * IN_FLIGHT)])
        assert_json_error(httpx.get(tight.url, timeout=DEADLINE), 429, "Too Many Requests")


def test_many_addresses_are_counted_at_once(tight: Stack) -> None:
    count = 600
    with ExitStack() as opened:
        bodies = [slow_body(tight, f"127.0.{n // 200 + 1}.{n % 200 + 1}", opened) for n in range(count)]
        statuses = Counter(status_of(body) for body in bodies)
    # A worker without a CPU may be late for one; a refusal is 429 or 503.
    assert statuses[200] > 0.9 * count, f"of {count} addresses with one request each some were refused: {statuses}"
    assert statuses[200] + statuses[504] == count, f"of {count} addresses with one request each: {statuses}"
