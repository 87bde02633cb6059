"""What becomes of that which is under way when the app is told to stop: each as docs/zero-loss.md says."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from proofs import events
from proofs.conftest import require_engine, started
from proofs.open_loop import BODY
from proofs.stack import DEADLINE, PATIENT_BUDGET, Stack, until
from proofs.test_live import total
from proofs.test_upstream import nginx_processes, standing_still

pytestmark = pytest.mark.xdist_group("stop")


@pytest.fixture(params=["native", "compose"])
def stoppable(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A stack for one stop. In the app's place something else takes over only in Compose with two replicas."""
    if request.param == "compose":
        require_engine()
    rows = {"WORKER_START": "import"} if request.param == "native" else {}  # forked workers stop in Compose
    yield from started(Stack(request.param, "stop", **PATIENT_BUDGET | rows))


def stop(stack: Stack, sign: str = "TERM") -> threading.Thread:
    """Tell the app to stop; the thread ends when it has left."""

    def run() -> None:
        if stack.way == "compose":
            events.docker("stop", "--signal", f"SIG{sign}", stack.containers("app")[0])
        else:
            pid = stack.master
            stack.kill(pid, sign)
            until("the end of the app", lambda: not Path(f"/proc/{pid}").exists())

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def said(stack: Stack, words: str) -> list[str]:
    """The app's messages with these words. The last ones reach the log after their process has ended."""
    return [line["message"] for line in stack.app_log() if words in line["message"]]


def draining(stack: Stack) -> bool:
    """Whether both workers have begun to."""
    return len(said(stack, "draining")) == 2


@pytest.mark.parametrize("sign", ["TERM", "INT", "QUIT"])
def test_what_is_under_way_ends_in_an_orderly_way(stoppable: Stack, sign: str) -> None:
    """A long request is answered, a stream gets a last event, a WebSocket 1012; then the lifespan ends."""
    found: dict[str, Any] = {}

    def long_request() -> None:
        with stoppable.client() as client:
            found["long"] = client.get("/work/io?ms=6000").status_code

    def stream() -> None:
        with stoppable.client() as client, client.stream("GET", "/events?count=1000&interval_ms=100") as answer:
            found["stream"] = list(answer.iter_lines())

    def websocket() -> None:
        with connect(f"ws://127.0.0.1:{stoppable.http_port}/ws/echo", open_timeout=DEADLINE) as connection:
            connection.send("hello")
            assert connection.recv(timeout=DEADLINE) == "hello"
            found["hello"] = True
            try:
                connection.recv(timeout=DEADLINE)
            except ConnectionClosed as closed:
                found["websocket"] = closed.rcvd.code if closed.rcvd else None

    threads = [threading.Thread(target=what) for what in (stream, websocket, long_request)]
    for thread in threads[:2]:
        thread.start()
    until("the WebSocket", lambda: "hello" in found)
    until("the stream", lambda: total(stoppable, "http_requests_in_flight") == 1)
    threads[2].start()
    until("the long request", lambda: total(stoppable, "http_requests_in_flight") == 2)
    leaving = stop(stoppable, sign)
    for thread in [*threads, leaving]:
        thread.join(DEADLINE)
    assert found["long"] == 200
    assert "event: bye" in found["stream"], found["stream"][-5:]
    assert found["websocket"] == 1012
    until("the end of both lifespans", lambda: len(said(stoppable, "Application shutdown complete")) == 2)
    assert not said(stoppable, "SIGKILL")


def test_an_idle_app_leaves_at_once(stoppable: Stack) -> None:
    """Not after the drain: nobody has a connection to it. (Those that nginx keeps are given up after a second.)"""
    idle = int(stoppable.rows["UPSTREAM_KEEPALIVE_SECONDS"])
    time.sleep(idle + 1)
    leaving = stop(stoppable)
    leaving.join(DEADLINE)
    until("the lines of both", lambda: len(said(stoppable, "drained in")) == 2)
    drained = said(stoppable, "drained in")
    for message in drained:
        assert float(message.split()[2]) < int(stoppable.rows["DRAIN_SECONDS"]), drained


def test_an_app_told_to_stop_serves_on_for_its_delay() -> None:
    """New connections too, and whoever says it again: an engine of a swarm does."""
    delay = 10
    stack = Stack("native", "delayed", STOP_DELAY_SECONDS=f"{delay}", STOP_GRACE_SECONDS="20")

    def asked() -> int:
        return httpx.get(f"http://127.0.0.1:{stack.app_port}/", timeout=DEADLINE, verify=False).status_code

    try:
        stack.up()
        told = time.monotonic()
        leaving = [stop(stack)]
        until("the signal", lambda: "Handling signal: term" in (line["message"] for line in stack.app_log()))
        leaving.append(stop(stack))
        answered = [asked() for _ in range(10)]
        until("the drain", lambda: draining(stack))
        waited = time.monotonic() - told
        for one in leaving:
            one.join(DEADLINE)
    finally:
        stack.down()
    assert waited >= delay
    assert answered == [200] * 10


def test_an_order_that_finds_its_connection_after_a_standstill_is_placed() -> None:
    """A machine stands still and goes on, its app before its nginx: what nginx keeps is not closed under a POST."""
    drain = 6
    rows = {"UPSTREAM_KEEPALIVE_SECONDS": "5", "DRAIN_SECONDS": f"{drain}", "APP_KEEPALIVE_SECONDS": "60"}
    rows |= {"UVICORN_GRACEFUL_SECONDS": "15", "NGINX_WORKERS": "1"}
    stack = Stack("native", "standstill", **PATIENT_BUDGET | rows)
    clients = [HTTPConnection("127.0.0.1", stack.http_port, timeout=DEADLINE) for _ in range(2)]

    def order(when: str) -> None:
        for number, client in enumerate(clients):
            headers = {"Content-Type": "application/json", "Idempotency-Key": f"{when}-{number}"}
            client.request("POST", "/orders", BODY, headers)

    def statuses() -> list[int]:
        answers = [client.getresponse() for client in clients]
        return [answer.status for answer in answers if answer.read()]

    with ExitStack() as ending:
        for client in clients:
            ending.callback(client.close)
        ending.callback(stack.down)
        stack.up()
        workers = [worker["pid"] for worker in stack.workers()]
        with full_log(stack):
            order("before")
            assert statuses() == [201, 201]  # one connection to each worker is kept
            until("nginx waits for its log", lambda: not answers_within(stack, 0.5))
            order("after")
            stack.kill(stack.master, "HUP")
            until("the drain", lambda: draining(stack))
            with standing_still(workers):
                time.sleep(drain + 1)
            time.sleep(1)  # some turns of their loops
        assert statuses() == [201, 201]


@contextmanager
def full_log(stack: Stack) -> Iterator[None]:
    """nginx's access log is a pipe, which takes nothing until the end of the block: nginx stands still as it writes.

    SIGSTOP would not do: it interrupts epoll_wait(), after which nginx sees to its timers before it serves.
    """
    path = stack.folder / "access.log"
    path.unlink()
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        nginx, worker = nginx_processes(stack)
        os.kill(nginx, signal.SIGUSR1)
        until("the new log", lambda: path in [link.resolve() for link in Path(f"/proc/{worker}/fd").iterdir()])
        with suppress(BlockingIOError):
            while True:
                os.write(pipe, b"x" * 4096)
        yield
        os.read(pipe, 1 << 20)
    finally:
        path.unlink()
        os.close(pipe)


def answers_within(stack: Stack, seconds: float) -> bool:
    try:
        return httpx.get(f"{stack.url}/nginx-health", timeout=seconds).status_code == 200
    except httpx.TimeoutException:
        return False


def test_an_upload_half_sent_is_finished_by_the_worker_that_began_it() -> None:
    """Straight to a worker: nginx collects the whole body before it sends any of it on."""
    stack = Stack("native", "upload", **PATIENT_BUDGET)
    data = b"x" * 60_000
    try:
        stack.up()
        with socket.create_connection(("127.0.0.1", stack.app_port), timeout=DEADLINE) as connection:
            head = f"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
            connection.sendall(head.encode() + data[:30_000])
            until("the upload has begun", lambda: total(stack, "http_requests_in_flight") == 1)
            leaving = stop(stack)
            until("the drain", lambda: draining(stack))
            connection.sendall(data[30_000:])
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        leaving.join(DEADLINE)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert hashlib.sha256(data).hexdigest().encode() in answer
        assert b"connection: close" in answer.lower()
    finally:
        stack.down()


def test_an_upload_half_sent_to_nginx_goes_to_another_replica() -> None:
    require_engine()
    # nginx waits for the rest of the body for as long as the engine may need for its stop.
    stack = Stack("compose", "upload", APP_REPLICAS="2", CLIENT_BODY_TIMEOUT_SECONDS=f"{DEADLINE}")
    sent = threading.Event()

    def body() -> Iterator[bytes]:
        yield b"x" * 20_000
        assert sent.wait(DEADLINE)
        yield b"x" * 20_000

    found: list[httpx.Response] = []

    def upload() -> None:
        with stack.client() as client:
            found.append(client.post("/upload", content=body()))

    try:
        stack.up()
        thread = threading.Thread(target=upload)
        thread.start()
        subprocess.run(["docker", "stop", stack.containers("app")[0]], check=True, capture_output=True)
        sent.set()
        thread.join(DEADLINE)
        assert (found[0].status_code, found[0].json()["bytes"]) == (200, 40_000)
    finally:
        sent.set()
        stack.down()
