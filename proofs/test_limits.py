"""What nginx refuses by itself: too many at once from one address, and names it does not know."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPResponse
from typing import Any

import pytest

from proofs.conftest import started
from proofs.stack import Stack, until
from proofs.test_live import total
from proofs.test_proxy import assert_json_error, raw
from proofs.test_upstream import nginx_processes, signal_all
from stack.settings import rows

pytestmark = pytest.mark.xdist_group("native")


@pytest.fixture(scope="module")
def strict() -> Iterator[Stack]:
    """Two requests in flight for each address, one of them an upload; six for all, of them two uploads; one name."""
    strict: dict[str, Any] = {
        "CLIENT_MAX_REQUESTS_IN_FLIGHT": "2",
        "CLIENT_MAX_UPLOADS_IN_FLIGHT": "1",
        "NGINX_MAX_REQUESTS_IN_FLIGHT": "6",
        "NGINX_MAX_UPLOADS_IN_FLIGHT": "2",
        "CLIENT_BODY_TIMEOUT_SECONDS": "20",
        "SERVER_NAMES": "example.com *.example.net",
    }
    files = {"app/files/file": "a file that nginx serves"}
    yield from started(Stack("native", "strict", files=files, STATIC_ROOT="app/files", **strict))


def test_one_address_gets_so_many_requests_in_flight_and_429_for_the_next(strict: Stack) -> None:
    with ExitStack() as opened, strict.client() as client:
        held = [begun(strict, "127.0.0.1", opened, SMALL) for _ in range(2)]
        assert all(map(let_in, held))
        for _ in range(4):
            assert_json_error(client.get("/"), 429, "Too Many Requests")
        for connection in held:
            connection.sendall(9999 * b"x")
            assert b" 200 OK" in connection.recv(100)
        until("the place is free again", lambda: client.get("/").status_code == 200)


ASKS = "Expect: 100-continue"
LENGTH, CHUNKED = "Content-Length: 20000", "Transfer-Encoding: chunked"
SMALL = "Content-Length: 9999"


def begun(stack: Stack, address: str, opened: ExitStack, body: str) -> socket.socket:
    """A POST from this address that asks whether its body may come."""
    connection = socket.create_connection(("127.0.0.1", stack.http_port), 30, source_address=(address, 0))
    opened.enter_context(connection)
    head = f"POST /upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{ASKS}\r\n{body}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def refusal(connection: socket.socket) -> tuple[int, dict[str, Any], str]:
    """The status, the body, and Retry-After, of an answer that comes before the request's end."""
    connection.settimeout(5)
    answer = HTTPResponse(connection)
    try:
        answer.begin()
    except OSError:
        return 0, {"error": "none: it was let in"}, ""
    return answer.status, json.loads(answer.read()), answer.headers.get("Retry-After", "")


def let_in(connection: socket.socket) -> bool:
    """Whether nginx wants the body of what has asked: it says so once it has counted the request."""
    return connection.recv(100).startswith(b"HTTP/1.1 100 ")


def until_nothing_is_in_flight(stack: Stack) -> None:
    """A client that has left holds its place until nginx has seen it."""
    until("nothing in flight but this question", lambda: total(stack, "nginx_connections_writing") <= 1)


@pytest.mark.parametrize("body", [LENGTH, CHUNKED])
def test_uploads_of_one_address_and_of_all_are_bounded_and_small_bodies_are_not(strict: Stack, body: str) -> None:
    """Who has too many gets 429, who comes when all have too many 503: at once, and both may ask again."""
    with ExitStack() as opened:
        assert let_in(begun(strict, "127.0.0.2", opened, body))
        status, said, after = refusal(begun(strict, "127.0.0.2", opened, body))
        assert (status, said["error"], after) == (429, "Too Many Requests", "1"), (
            f"the second upload of an address got {status} ({said['error']})"
        )
        assert let_in(begun(strict, "127.0.0.3", opened, body))
        status, said, after = refusal(begun(strict, "127.0.0.4", opened, body))
        assert (status, said["error"], after) == (503, "Service Unavailable", "1"), (
            f"the third upload of all got {status} ({said['error']})"
        )
        small = begun(strict, "127.0.0.4", opened, SMALL)
        assert let_in(small), "beside uploads that take all space a small body is refused"
        small.sendall(9999 * b"x")
        assert b" 200 OK" in small.recv(100)
    until_nothing_is_in_flight(strict)
    with strict.client() as client:
        assert client.post("/upload", content=20_000 * b"x").status_code == 200, "the space is not free again"


def test_requests_of_all_addresses_together_are_bounded(strict: Stack) -> None:
    with ExitStack() as opened, strict.client() as client:
        for address in (2, 3, 4):
            for _ in range(2):
                assert let_in(begun(strict, f"127.0.0.{address}", opened, SMALL))
        answer = client.get("/")
        assert_json_error(answer, 503, "Service Unavailable")
        assert answer.headers["retry-after"] == "1"
        assert_json_error(client.get("/files/file"), 503, "Service Unavailable")
        assert client.get("/nginx-health").status_code == 200, "nginx is not healthy because it is full"
        assert total(strict, "nginx_up") == 1, "a full nginx counts as one that is down"
    until_nothing_is_in_flight(strict)
    with strict.client() as client:
        assert client.get("/").status_code == 200, "the space is not free again"


@pytest.mark.parametrize(
    ("host", "status"), [("example.com", 200), ("a.example.net:8080", 200), ("evil.test", 421),
                         ("example.com.evil.test", 421)]
)  # fmt: skip
def test_only_the_named_hosts_reach_the_app(strict: Stack, host: str, status: int) -> None:
    with strict.client() as client:
        answer = client.get("/", headers={"Host": host})
        health = client.get("/nginx-health", headers={"Host": host})
    assert answer.status_code == status, f"Host: {host} got {answer.status_code}"
    assert health.status_code == 200, f"/nginx-health on {host}: {health.status_code}"
    if status == 421:
        assert_json_error(answer, 421, "Misdirected Request")
    else:
        assert answer.text.startswith("{"), f"Host: {host} got {answer.text[:60]!r} and not the app's answer"
        assert answer.json()["host"] == host


def test_a_host_header_beside_another_name_in_the_request_line_does_not_reach_the_app(strict: Stack) -> None:
    answer = raw(strict, "GET http://example.com/ HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n")
    assert "evil.test" not in answer


def test_a_burst_of_connections_waits_for_a_busy_nginx(strict: Stack) -> None:
    let_in, wanted = burst(nginx_processes(strict), strict.http_port)
    assert let_in == wanted, f"a busy nginx let {let_in} of {wanted} connections in"
    with strict.client() as client:
        assert client.get("/").status_code == 200


def test_a_burst_of_connections_waits_for_a_busy_worker(strict: Stack) -> None:
    (worker,) = [each["pid"] for each in strict.workers() if each["slot"] == 0]
    let_in, wanted = burst([worker], strict.app_port)
    assert let_in == wanted, f"a busy worker let {let_in} of {wanted} connections in"


def burst(processes: list[int], port: int) -> tuple[int, int]:
    """Of so many connections at once, how many get in while the processes are frozen: the kernel holds them ready.

    Without a place a client's kernel asks again after a second.
    """
    wanted = 700
    assert int(rows()["LISTEN_BACKLOG"]) > wanted
    connections = [socket.socket() for _ in range(wanted)]
    try:
        signal_all(processes, "STOP")
        for connection in connections:
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", port))
        end = time.monotonic() + 3
        while (let_in := established(connections)) < wanted and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        signal_all(processes, "CONT")
        for connection in connections:
            connection.close()
    return let_in, wanted


def established(connections: list[socket.socket]) -> int:
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLOUT)
    return sum(event == select.POLLOUT for _, event in poll.poll(0))
