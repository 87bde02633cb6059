"""How does a server accept connections? Ten exercises, in the order in which one needs them.

Each asks, runs real servers on loopback, shows what happened, and says why. Its claim is what the run has to show;
proofs/test_learn.py holds it to that.
"""

from __future__ import annotations

import http.client
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from websockets.sync.client import connect

from bench.processes import free_ports
from learn.servers import UVICORN, everything, get, listening, seconds_for, server, shortest
from stack import debian
from stack.console import accepts


@dataclass(frozen=True)
class Seen:
    """`lines` are what happened, for a reader; `holds` is whether it was what the claim says."""

    lines: list[str]
    holds: bool


@dataclass(frozen=True)
class Exercise:
    """`settings` are rows of .env; `page` has more."""

    title: str
    question: str
    run: Callable[[], Seen]
    claim: str
    why: str
    settings: tuple[str, ...]
    page: str


def nobody_accepts() -> Seen:
    backlog = 3
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as listener, ExitStack() as clients:
        port = listener.getsockname()[1]
        connected = 0
        for _ in range(backlog + 3):
            client = clients.enter_context(socket.socket())
            client.settimeout(0.5)
            with suppress(TimeoutError):
                client.connect(("127.0.0.1", port))
                client.sendall(b"hello")
                connected += 1
        waiting, limit = _accept_queue(listener)
    lines = [
        f"The program has called listen({backlog}), and never accept().",
        f"{connected} of {backlog + 3} clients are connected, and have sent 5 bytes each.",
        f"The kernel's table (ss -ltn): {waiting} connections wait in the accept queue. Its limit is {limit}.",
        "The rest have no answer to their first packet: they ask again after 1, 3, 7 s.",
    ]
    return Seen(lines, connected == waiting == backlog + 1)


def _accept_queue(listener: socket.socket) -> tuple[int, int]:
    """How many wait, and how many may: of a socket that listens, tcpi_unacked and tcpi_sacked in linux/tcp.h."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    waiting, limit = struct.unpack_from("2I", info, 24)
    return waiting, limit


MAIN = "from fastapi import FastAPI\n\napp = FastAPI()\n\n\n@app.get('/')\ndef hello():\n    return 'hello'\n"


def an_app_does_not_listen() -> Seen:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "main.py").write_text(MAIN)
        status = subprocess.run([sys.executable, "main.py"], cwd=folder, timeout=30).returncode
        with server("uvicorn", "main:app", "--app-dir", folder, "--log-level", "critical") as port:
            answer = get(port, "/")
    lines = [
        f"python main.py has ended by itself, with status {status}: nothing listens.",
        f"python -m uvicorn main:app runs on, and answers {answer} on its port.",
    ]
    return Seen(lines, status == 0 and answer == '"hello"')


def whose_address() -> Seen:
    found = {}
    for host in ("127.0.0.1", "0.0.0.0"):
        with server(*UVICORN, host=host) as port:
            found[host] = accepts(port), accepts(port, "127.0.0.2")
    words = {True: "accepts", False: "refuses"}
    lines = [
        f"Bound to {host}: asked at 127.0.0.1 it {words[same]}, asked at 127.0.0.2, another address of this machine, "
        f"it {words[other]}."
        for host, (same, other) in found.items()
    ]
    return Seen(lines, found == {"127.0.0.1": (True, False), "0.0.0.0": (True, True)})


def many_on_one_loop() -> Seen:
    count = 16
    gunicorn = ("gunicorn", "learn.app:wsgi", "--log-level", "critical")
    servers = {
        "Uvicorn, one event loop": (UVICORN, "--port"),
        "Gunicorn, 4 threads": ((*gunicorn, "--worker-class", "gthread", "--threads", "4"), "--bind"),
        "Gunicorn, one sync worker": (gunicorn, "--bind"),
    }
    waiting, computing = [], []
    for command, option in servers.values():
        with server(*command, port_option=option) as port:
            get(port, "/wait?ms=1")
            times = 3 if command is UVICORN else 1  # the others take longer than a machine stands still
            waiting.append(shortest(partial(seconds_for, port, ["/wait?ms=500"] * count), times))
            computing.append(seconds_for(port, ["/compute?ms=20"] * count))
    lines = [f"{count} requests at once, each waits 500 ms; then {count}, each computes for 20 ms:"]
    for name, waited, computed in zip(servers, waiting, computing, strict=True):
        lines.append(f"{name:26} {waited:5.2f} s waiting, {computed:5.2f} s computing")
    # The work is the same: nobody can be faster than one CPU does it.
    holds = waiting == sorted(waiting) and waiting[0] < waiting[2] / 4 and min(computing) >= count * 0.02
    return Seen(lines, holds)


def one_that_blocks() -> Seen:
    with server(*UVICORN) as port:
        # Both are with the worker before, and the one that blocks was served last: so the worker reads it first.
        small, blocking = (http.client.HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(2))
        _seconds_of_a_small_request(small)
        alone = shortest(partial(_seconds_of_a_small_request, blocking))
        begun = time.monotonic()
        blocking.request("GET", "/block?ms=1500")
        _seconds_of_a_small_request(small)
        beside = time.monotonic() - begun
        blocking.close()
        small.close()
    lines = [
        f"A small request alone: {alone * 1000:.0f} ms.",
        f"The same while another handler calls time.sleep(1.5): {beside * 1000:.0f} ms.",
    ]
    return Seen(lines, beside > 1 and beside > alone)


def _seconds_of_a_small_request(client: http.client.HTTPConnection) -> float:
    begun = time.monotonic()
    client.request("GET", "/pid")
    client.getresponse().read()
    return time.monotonic() - begun


def in_the_thread_pool() -> Seen:
    with server(*UVICORN) as port:
        get(port, "/thread?ms=1")
        forty = shortest(partial(seconds_for, port, ["/thread?ms=1000"] * 40))
        eighty = seconds_for(port, ["/thread?ms=1000"] * 80)
        with socket.create_connection(("127.0.0.1", port)) as sleeping:
            sleeping.sendall(b"GET /thread?ms=4000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            beside = shortest(partial(seconds_for, port, ["/pid"]))
    lines = [
        f"40 requests at once to a def handler that sleeps 1 s: {forty:.1f} s. 80 of them: {eighty:.1f} s.",
        f"A small request beside one that sleeps 4 s: {beside * 1000:.0f} ms.",
    ]
    return Seen(lines, forty < eighty and eighty >= 2 and beside < 3)


def who_closes() -> Seen:
    idle: dict[int, float] = {}
    answered: dict[int, int] = {}
    lost = []
    for seconds in (0, 5):
        with server(*UVICORN, "--timeout-keep-alive", str(seconds)) as port:
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            client.auto_open = 0  # no new connection in the place of one that was closed
            client.connect()
            answered[seconds] = 0
            for _ in range(2 if seconds else 1):
                begun = time.monotonic()
                client.request("POST", "/post")
                answered[seconds] += client.getresponse().read() == b'"posted"'
            connection = client.sock
            assert connection
            connection.recv(1)  # until the server closes
            idle[seconds] = time.monotonic() - begun
            try:
                client.request("POST", "/post")
                client.getresponse()
            except OSError:
                lost.append(seconds)
            client.close()
    lines = [
        f"--timeout-keep-alive 0: the server closes {idle[0]:.2f} s after its answer.",
        f"--timeout-keep-alive 5: {answered[5]} requests on the connection are answered; the server closes it after "
        f"{idle[5]:.1f} s of silence.",
        "A POST that is sent on the connection after that has no answer, and nobody knows whether it was done.",
    ]
    return Seen(lines, answered == {0: 1, 5: 2} and idle[0] < 4 < idle[5] and lost == [0, 5])


NGINX = """
daemon off; pid nginx.pid; error_log stderr crit; worker_processes 1; worker_rlimit_nofile 256;
events { worker_connections 64; }
http {
    access_log off; client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    client_header_timeout 1s;
    server { listen 127.0.0.1:PORT; location / { proxy_pass http://127.0.0.1:APP; } }
}
"""


def silent_clients() -> Seen:
    descriptors = 64
    with server(*UVICORN, before=f"ulimit -n {descriptors};") as port:
        alone, beside, later = _beside_the_silent(port)
        lines = [
            f"Uvicorn with {descriptors} open files at most; {SILENT} clients send half a header and stop.",
            f"A well-behaved client: {alone} before, {beside} beside them, {later} after 3 more seconds.",
        ]
        holds = (alone, beside, later) == ("an answer", "no answer", "no answer")
    nginx = debian.found("nginx")
    if not nginx:
        return Seen([*lines, "With nginx in front: not shown, for nginx is not installed here."], holds)
    with server(*UVICORN) as app, tempfile.TemporaryDirectory() as folder:
        (port,) = free_ports(1)
        Path(folder, "nginx.conf").write_text(NGINX.replace("PORT", str(port)).replace("APP", str(app)))
        with listening([nginx, "-e", "stderr", "-p", folder, "-c", "nginx.conf"], port):
            alone, beside, later = _beside_the_silent(port, patience=30)
    lines.append(
        f"nginx in front, with client_header_timeout 1s and 64 connections: {alone} before, {beside} beside them, "
        f"{later} after 3 more seconds, though none of them has gone by itself."
    )
    return Seen(lines, holds and (alone, later) == ("an answer", "an answer"))


SILENT = 80


def _beside_the_silent(port: int, patience: float = 0) -> tuple[str, str, str]:
    """What a well-behaved client gets before they come, beside them, and 3 s later; then it asks on for `patience`."""

    def asked(timeout: float = 3) -> str:
        with suppress(OSError):
            if get(port, "/pid", timeout):
                return "an answer"
        return "no answer"

    with ExitStack() as clients:
        before = asked(timeout=30)
        for _ in range(SILENT):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            with suppress(OSError):  # closed at once, where the table is full
                client.sendall(b"GET / HTTP/1.1\r\n")  # and nothing more
        beside = asked()
        time.sleep(3)
        later, end = asked(), time.monotonic() + patience
        while later == "no answer" and time.monotonic() < end:  # a busy machine closes them late
            time.sleep(0.1)
            later = asked()
        return before, beside, later


def several_workers() -> Seen:
    with server(*UVICORN, "--workers", "2") as port:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        on_one: Counter[str] = Counter()
        for _ in range(50):
            client.request("GET", "/pid")
            on_one[client.getresponse().read().decode()] += 1
        client.close()
        each_its_own: Counter[str] = Counter()
        end = time.monotonic() + 10
        while len(each_its_own) < 2 and time.monotonic() < end:
            each_its_own.update(get(port, "/pid") for _ in range(50))
    lines = [
        f"50 requests on one connection went to {len(on_one)} of the workers.",
        f"{each_its_own.total()} requests, each on a connection of its own, went to {len(each_its_own)}: "
        f"{' and '.join(str(count) for count in sorted(each_its_own.values()))}.",
    ]
    return Seen(lines, len(on_one) == 1 and len(each_its_own) == 2)


def another_server() -> Seen:
    answers = {}
    commands = {
        "uvicorn": UVICORN,
        "hypercorn": ("hypercorn", "learn.app:app", "--log-level", "critical"),
        "granian": ("granian", "--interface", "asgi", "learn.app:app", "--no-log"),
    }
    for name, command in commands.items():
        with server(*command, port_option="--bind" if name == "hypercorn" else "--port") as port:
            answers[name] = get(port, "/wait?ms=1")
    with server(*UVICORN) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"\x00\x01 this is no HTTP\r\n\r\n")
            raw = everything(client)
        with connect(f"ws://127.0.0.1:{port}/echo", open_timeout=30) as websocket:
            websocket.send("by WebSocket")
            echoed = websocket.recv(timeout=10)
    lines = [f"{name} answers {answer}" for name, answer in answers.items()]
    lines += [f"Bytes that are no HTTP get {raw.splitlines()[0]!r}.", f"A WebSocket gets its message back: {echoed!r}."]
    return Seen(lines, set(answers.values()) == {'"waited"'} and " 400 " in raw and echoed == "by WebSocket")


EXERCISES = (
    Exercise(
        "What is a connection?",
        "A program listens, and never calls accept(). Can a client connect to it, and send?",
        nobody_accepts,
        "Yes: the kernel makes the connection, and keeps it in the accept queue until a process takes it.",
        "listen() tells the kernel to complete handshakes for this port. accept() only takes one that is complete. "
        "A client cannot see whether anybody has taken it. When the queue is full, the kernel drops what comes, and "
        "the client sends it again after a second: that is why a busy server looks slow and not broken.",
        ("LISTEN_BACKLOG",),
        "connections.md",
    ),
    Exercise(
        "Who listens?",
        "main.py makes a FastAPI app. What does `python main.py` do?",
        an_app_does_not_listen,
        "It ends at once: an ASGI app is a function that a server calls. The server listens.",
        "FastAPI has no sockets. Uvicorn binds the port, accepts, reads HTTP, and calls the app with what it has read. "
        "Here Gunicorn's master binds, so that the port stays open while workers come and go.",
        ("APP_MODULE",),
        "architecture.md",
    ),
    Exercise(
        "127.0.0.1 or 0.0.0.0?",
        "A server is bound to 127.0.0.1. Who can reach it?",
        whose_address,
        "Only who asks at that very address. 0.0.0.0 is all addresses of this machine, or of this container.",
        "An address belongs to a network interface, and a packet for another one finds no listener. In a container "
        "127.0.0.1 is the container's own: bound to it, an app is not reached from outside, whatever is published.",
        ("HTTP_PORT",),
        "native.md",
    ),
    Exercise(
        "Many connections, one thread",
        "16 requests come at once; each waits 500 ms for a database. How long does one event loop take for all, 4 "
        "threads, one sync worker? And where each computes for 20 ms instead?",
        many_on_one_loop,
        "Waiting: the loop takes as long as one request, 4 threads as 4, the sync worker as 16. Computing: all alike.",
        "An event loop waits for all of them at the same time, for a wait costs it nothing. A thread or a process "
        "waits for one. Nothing of this makes a CPU faster: what computes needs processes, one for each CPU.",
        ("WORKERS", "APP_MAX_REQUESTS_IN_FLIGHT"),
        "measurements.md#sync",
    ),
    Exercise(
        "One that blocks",
        "An async handler calls time.sleep(1.5). What happens to the others on this worker?",
        one_that_blocks,
        "They wait until it is over: the loop runs one thing at a time.",
        "`async def` promises to await, and time.sleep does not. Neither does a database driver without async. The "
        "kernel goes on accepting, so connections pile up behind it. This stack has one socket for each worker, and "
        "nginx gives the blocked one no more.",
        ("WORKER_LISTENERS", "LONGEST_BLOCK_SECONDS"),
        "overload.md",
    ),
    Exercise(
        "def, and the thread pool",
        "40 requests come at once to a def handler that sleeps for 1 s. How long do they take? And 80?",
        in_the_thread_pool,
        "40 take about 1 s, and 80 about 2: FastAPI calls def handlers in a pool of 40 threads. The loop stays free.",
        "A thread may block without harm to the loop. The pool has an end: the 41st waits. What is let in should "
        "not be more than what can run.",
        ("APP_MAX_REQUESTS_IN_FLIGHT", "APP_PIDS"),
        "limits.md",
    ),
    Exercise(
        "Keep-alive, and who closes",
        "Many pages say that `--timeout-keep-alive 0` means never. What does it do?",
        who_closes,
        "It closes after each answer. Whatever the number, the server closes in the end, and a POST that is sent in "
        "that moment is lost.",
        "A connection is kept open for the next request, and somebody has to end it. If the server does, the client "
        "may be sending just then: it gets no answer, and cannot know whether the request was done. So the side that "
        "sends closes first: nginx keeps its connections for a shorter time than the app.",
        ("APP_KEEPALIVE_SECONDS", "UPSTREAM_KEEPALIVE_SECONDS"),
        "timeouts.md",
    ),
    Exercise(
        "Clients that say nothing",
        "80 clients send half a header and stop. The server may have 64 open files. Who still gets an answer? And with "
        "an nginx in front that gives up a header after 1 s?",
        silent_clients,
        "Nobody, until they go: Uvicorn has no timeout for a header that does not end. Behind nginx everybody, as soon "
        "as the timeout has freed the table.",
        "Each connection takes a descriptor until it is closed. 80 clients of an attacker cost him nothing. nginx in "
        "front waits for the header, closes who is too slow, and gives the app whole requests only.",
        ("CLIENT_HEADER_TIMEOUT_SECONDS", "CLIENT_BODY_TIMEOUT_SECONDS"),
        "timeouts.md",
    ),
    Exercise(
        "Several workers, and a proxy",
        "Two workers share a port. 50 requests come on one connection: how many workers answer?",
        several_workers,
        "One: a worker takes a connection, and all that comes on it. Which worker takes it is chance.",
        "With one socket for all, the kernel wakes a worker that waits; nobody counts what each has to do. A proxy "
        "reads each request, and gives it to the worker with the fewest under way, over connections that it keeps.",
        ("WORKERS", "WORKER_LISTENERS", "UPSTREAM_KEEPALIVE_CONNECTIONS"),
        "connections.md",
    ),
    Exercise(
        "Another server, and what it is not for",
        "The same app under Uvicorn, Hypercorn and Granian: what has to change? Can it serve raw TCP, or WebSockets?",
        another_server,
        "Nothing has to change, for all speak ASGI. WebSockets work. Raw TCP does not: what is no HTTP gets 400.",
        "ASGI is the border: a server speaks HTTP to the world and calls a function with what it has read. This stack "
        "swaps its worker class for measurements in the same way. For another protocol take asyncio's own servers.",
        ("APP_MODULE",),
        "measurements.md#servers",
    ),
)
