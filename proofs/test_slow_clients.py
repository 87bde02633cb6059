"""Clients that begin and do not go on: slow headers, slow bodies, slow readers. The others are served meanwhile."""

from __future__ import annotations

import resource
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from proofs.conftest import started
from proofs.sockets import tcp_sockets
from proofs.stack import Stack

pytestmark = pytest.mark.xdist_group("native")

ATTACKERS = 2000
PATIENCE = 8  # seconds that nginx waits for a client
PLACES = 4  # requests that the app's one worker gets at a time
ROWS: dict[str, Any] = {
    "APP_MODULE": "proofs.apps.bulk:app",
    "WORKERS": "1",
    "NGINX_WORKERS": "1",  # one process of nginx against all attackers
    "APP_MAX_REQUESTS_IN_FLIGHT": str(PLACES),
    "CLIENT_HEADER_TIMEOUT_SECONDS": str(PATIENCE),
    "CLIENT_BODY_TIMEOUT_SECONDS": str(PATIENCE),
    "CLIENT_SEND_TIMEOUT_SECONDS": str(PATIENCE),
}


@pytest.fixture(scope="module")
def besieged() -> Iterator[Stack]:
    """Started from a shell that grants few descriptors; this process takes as many as it needs."""
    few, (soft, hard) = 512, resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    stack = started(Stack("native", "besieged", **ROWS))
    try:
        up = next(stack)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2 * ATTACKERS), hard), hard))
        yield up
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        next(stack, None)


class Clients:
    """`count` connections that have sent these bytes, and then nothing."""

    def __init__(self, stack: Stack, count: int, request: str, receive_buffer: int = 0) -> None:
        self.stack = stack
        self.connections: list[socket.socket] = []
        self.poll = select.poll()
        self.add(count, request, receive_buffer)

    def add(self, count: int, request: str, receive_buffer: int = 0) -> None:
        for _ in range(count):
            connection = socket.socket()
            self.connections.append(connection)
            if receive_buffer:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            connection.settimeout(30)
            connection.connect(("127.0.0.1", self.stack.http_port))
            connection.sendall(request.format(len(self.connections)).encode())
            self.poll.register(connection, select.POLLRDHUP)

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *exc: object) -> None:
        for connection in self.connections:
            connection.close()

    def standing(self) -> int:
        """How many nginx has not cut off."""
        return len(self.connections) - len(self.poll.poll(0))

    def send_one_more_byte(self) -> None:
        for connection in self.connections:
            try:
                connection.send(b"x", socket.MSG_DONTWAIT)
            except OSError:
                continue  # it has been cut off


def ask(stack: Stack) -> int | str:
    """What a well-behaved client gets that has no connection yet."""
    try:
        return httpx.get(f"{stack.url}/well-behaved", timeout=PATIENCE - 2).status_code
    except httpx.HTTPError as error:
        return type(error).__name__


def beside(clients: Clients, times: int = 10) -> list[int | str]:
    """What it gets while all of these stand, or at least once."""
    answers: list[int | str] = []
    while len(answers) < times and (not answers or clients.standing() == len(clients.connections)):
        answers.append(ask(clients.stack))
    return answers


def app_lines(stack: Stack, text: str) -> int:
    return sum(line["logger"] == "app.bulk" and line["message"].startswith(text) for line in stack.app_log())


def assert_all_cut_off(clients: Clients, what: str, *, trickle: bool = False) -> None:
    end = time.monotonic() + 6 * PATIENCE
    while (left := clients.standing()) and time.monotonic() < end:
        if trickle:
            clients.send_one_more_byte()
        time.sleep(0.2)
    assert not left, f"{left} of {len(clients.connections)} {what} still stand after six times their time"


def test_2000_half_open_headers_keep_nobody_out_and_are_cut_off(besieged: Stack) -> None:
    """A byte now and then does not help them: the header has its time as a whole."""
    begun = time.monotonic()
    with Clients(besieged, ATTACKERS, "GET /attack HTTP/1.1\r\nHost: a\r\nX-Slow: ") as attackers:
        answers = beside(attackers)
        assert set(answers) == {200}, f"beside {ATTACKERS} half-open headers a well-behaved client got {answers}"
        assert_all_cut_off(attackers, "half-open headers", trickle=True)
        lived = time.monotonic() - begun
    assert lived >= PATIENCE - 0.5, f"a header has {lived:.1f} s and not {PATIENCE}"
    assert ask(besieged) == 200
    assert not app_lines(besieged, "begins /attack"), "the app has seen a request without an end of its header"


def test_2000_half_sent_bodies_keep_nobody_out_and_are_cut_off(besieged: Stack) -> None:
    """Each is a request in flight for nginx (one address gets only so many) and none for the app."""
    request = "POST /attack HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx"
    begun = time.monotonic()
    with Clients(besieged, ATTACKERS, request) as attackers:
        answers = beside(attackers)
        assert set(answers) == {200}, f"beside {ATTACKERS} half-sent bodies a well-behaved client got {answers}"
        assert_all_cut_off(attackers, "half-sent bodies")
        lived = time.monotonic() - begun
    assert lived >= PATIENCE - 0.5, f"a body has {lived:.1f} s and not {PATIENCE}"
    assert not app_lines(besieged, "begins /attack"), "the app has seen a request without the end of its body"


def test_clients_that_send_slowly_take_no_place_of_the_app(besieged: Stack) -> None:
    """Many times its places, from one worker's app; and each is served when its body is there."""
    request = "POST /slow-writer HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 60000\r\n\r\n"
    with Clients(besieged, 10 * PLACES, request + 40_000 * "x") as writers:
        answers = beside(writers)
        assert set(answers) == {200}, f"beside {10 * PLACES} slow bodies a well-behaved client got {answers}"
        early = app_lines(besieged, "begins /slow-writer")
        assert not early, f"the app has {early} requests whose body is not there yet"
        for number, connection in enumerate(writers.connections):
            connection.sendall(20_000 * b"x")
            got = connection.makefile().readline().strip()
            assert got.endswith(" 200 OK"), f"slow body number {number} got {got!r}"


def test_clients_that_read_nothing_hold_their_places_until_they_are_cut_off(besieged: Stack) -> None:
    """An answer that nobody reads waits in the app: as many as leave a place for others."""
    count, request = PLACES - 1, "GET /bulk/64 HTTP/1.1\r\nHost: a\r\nX-Request-ID: slow-reader-{}\r\n\r\n"
    with Clients(besieged, count, request, receive_buffer=4096) as readers:
        answers = beside(readers)
        assert set(answers) == {200}, f"beside {count} slow readers a well-behaved client got {answers}"
        end = time.monotonic() + 6 * PATIENCE
        while (ended := readers_logged(besieged)) < count and time.monotonic() < end:
            time.sleep(0.2)
        assert ended == count, f"nginx still serves {count - ended} of {count} clients that read nothing"
        held = unsent(besieged)
        assert not held, f"nginx has given up clients that read nothing, the kernel still holds {held} bytes for them"
        assert not readers.standing()
    assert ask(besieged) == 200


def readers_logged(stack: Stack) -> int:
    return sum(line["request_id"].startswith("slow-reader-") for line in stack.access_log())


def unsent(stack: Stack) -> int:
    """Bytes in the kernel on nginx's ends of connections to clients."""
    return sum(one.unsent for one in tcp_sockets() if one.port == stack.http_port)
