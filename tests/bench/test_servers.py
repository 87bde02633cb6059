import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest

from bench.experiments.servers import NONE_TO_SET, survived, workers_of
from bench.losses import Client, Fate, during, idle_seconds, volleys
from bench.servers import SERVERS, Server, fill_in
from proofs.stack import until


class Handler(BaseHTTPRequestHandler):
    """Keeps connections; what asks for /lost gets 502, and /closes is the last answer on its connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(502 if self.path == "/lost" else 200)
        self.send_header("content-length", "0")
        self.end_headers()
        self.close_connection = self.path == "/closes"  # without a word in the answer

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def none_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that a busy machine gives late is not to be counted as one."""
    monkeypatch.setattr("bench.losses.LONG_SECONDS", 60)


@pytest.mark.usefixtures("none_is_long")
def test_each_request_is_counted_once_and_a_502_is_lost(port: int) -> None:
    assert volleys({port: [0.001, 0.001]}, size=5, path="/") == {port: Fate(15)}
    assert volleys({port: [0.001]}, size=5, path="/lost") == {port: Fate(10, Counter({"502": 10}))}


def test_a_silence_of_zero_is_many_requests_one_after_the_other(port: int) -> None:
    assert volleys({port: [0.0]}, size=2, path="/")[port].sent == 2 + 2 * 10


def test_a_server_that_closes_after_its_answer_is_seen_to(port: int) -> None:
    assert idle_seconds([port], "/closes", longest=20)[port] is not None
    assert idle_seconds([port], "/", longest=0.5)[port] is None


@pytest.mark.usefixtures("none_is_long")
def test_the_load_lasts_as_long_as_the_event_whose_own_requests_count_too(port: int) -> None:
    over = threading.Event()

    async def event(client: Client) -> None:
        await client.send("GET", "/lost")
        await asyncio.sleep(0.2)
        over.set()

    fate = during({port: event}, rate=200, path="/")[port]
    assert over.is_set()
    assert fate.why == {"502": 1}
    assert fate.sent > 1
    assert during({port: event_of_its_own}, rate=0, path="/")[port] == Fate(1)


async def event_of_its_own(client: Client) -> None:
    await client.send("GET", "/")


def test_what_lost_a_request_or_replaced_nothing_has_not_survived() -> None:
    assert survived(str(Fate(100)))
    assert survived(NONE_TO_SET)
    assert not survived(str(Fate(100, Counter({"502": 1}))))
    assert not survived(f"{Fate(100)}, not all replaced in 12 s")


def test_a_command_is_filled_in_and_keeps_what_is_not_its_own() -> None:
    assert fill_in("{bin}/x --port {port} --fd {fd}", {"bin": "/bin", "port": "1"}) == "/bin/x --port 1 --fd {fd}"


def test_a_server_that_is_not_installed_is_named_with_the_reason() -> None:
    assert "the package no-such-package is not installed" in (Server("X", "no-such-package", "x").why_not() or "")
    assert [server.why_not() for server in SERVERS] == [None] * len(SERVERS), "the group lab is part of dev"
    assert version("gunicorn")


def test_several_processes_share_a_socket_and_end_together() -> None:
    answer = (
        "import os, signal, socket; listener = socket.socket(fileno={fd}); listener.setblocking(True); "
        "listener.accept()[0].send(b'%d' % os.getpid()); signal.pause()"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    several = subprocess.Popen([sys.executable, "-m", "bench.several", "2", str(port), sys.executable, "-c", answer])
    try:
        pids = {_ask(port), _ask(port)}  # each answers once, and stays
        assert pids <= set(workers_of(several.pid))
        assert len(pids) == 2
    finally:
        several.terminate()
        assert several.wait(timeout=10) == 0


def _ask(port: int) -> int:
    deadline = time.monotonic() + 10
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                return int(connection.recv(32))
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "nobody listens"
            time.sleep(0.02)


def test_the_helper_of_multiprocessing_is_no_worker() -> None:
    sleeping = "import time; time.sleep(60)"
    children = [subprocess.Popen([sys.executable, "-c", f"{sleeping} # {name}"]) for name in ("resource_tracker", "x")]
    try:
        until("the worker", lambda: children[1].pid in workers_of(os.getpid()))
        until("the helper", lambda: b"resource_tracker" in Path(f"/proc/{children[0].pid}/cmdline").read_bytes())
        assert children[0].pid not in workers_of(os.getpid())
    finally:
        for child in children:
            child.kill()
            child.wait()
