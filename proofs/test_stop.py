"""What becomes of that which is under way when the app is told to stop: each as docs/zero-loss.md says."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from proofs import events
from proofs.conftest import require_engine, started
from proofs.stack import DEADLINE, PATIENT_BUDGET, Stack, until
from proofs.test_live import total

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
            master = json.loads((stack.folder / f"app-{stack.app_port}.status.json").read_text())["master"]
            stack.kill(master, sign)
            until("the end of the app", lambda: not Path(f"/proc/{master}").exists())

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
