"""What nginx refuses by itself: too many at once from one address, and names it does not know."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from proofs.conftest import started
from proofs.stack import Stack
from proofs.test_proxy import assert_json_error, raw
from proofs.test_upstream import nginx_processes, signal_all
from stack.settings import rows

pytestmark = pytest.mark.xdist_group("native")


@pytest.fixture(scope="module")
def strict() -> Iterator[Stack]:
    """Two requests in flight for each address, and one name."""
    strict: dict[str, Any] = {"CLIENT_MAX_REQUESTS_IN_FLIGHT": "2", "SERVER_NAMES": "example.com *.example.net"}
    yield from started(Stack("native", "strict", **strict))


def test_one_address_gets_so_many_requests_in_flight_and_429_for_the_next(strict: Stack) -> None:
    with strict.client() as client, ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: client.get("/work/io?ms=1500"), range(6)))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(answers) - len(refused) == 2
        for answer in refused:
            assert_json_error(answer, 429, "Too Many Requests")
        assert client.get("/").status_code == 200, "the place is free again"


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
