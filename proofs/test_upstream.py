"""nginx and the app: what is sent to it, to which worker, over which connections, and for how long."""

from __future__ import annotations

import itertools
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.server.settings import read
from proofs.conftest import started
from proofs.sockets import ESTABLISHED, TIME_WAIT, tcp_sockets
from proofs.stack import DEADLINE, SMALL_BUDGET, Stack, until
from stack import native
from stack.render import render
from stack.settings import GIVEN, StackSettings, rows

pytestmark = pytest.mark.xdist_group("native")

ECHO: dict[str, Any] = {
    "APP_MODULE": "proofs.apps.echo:app",
    "REQUEST_DEADLINE_SECONDS": "1",
    "PROXY_CONNECT_TIMEOUT_MS": "200",
    "PROXY_NEXT_UPSTREAM_TIMEOUT_MS": "500",
    "PROXY_SEND_TIMEOUT_SECONDS": "1",
    "ANSWER_STALL_SECONDS": "2",
    "PROXY_READ_TIMEOUT_SECONDS": "3",
    "APP_KEEPALIVE_SECONDS": "75",
    "WORKER_TIMEOUT_SECONDS": "60",
    "CLIENT_BODY_TIMEOUT_SECONDS": "20",
    "CLIENT_MAX_BODY_BYTES": str(64 << 20),
    "CLIENT_MAX_UPLOADS_IN_FLIGHT": "1",
    "NGINX_MAX_UPLOADS_IN_FLIGHT": "2",
}
PATIENCE = 15  # seconds; several times what is configured, a quarter of nginx's defaults
# Addresses beside the workers' own: nobody listens there, or somebody who never accepts.
GAPS = 6
EXTRA_SERVERS = "".join(f"    server 127.0.0.1:$((APP_PORT + 10)) max_fails=0; # {n}\n" for n in range(GAPS))
KEEPALIVE = "    keepalive ${UPSTREAM_KEEPALIVE_CONNECTIONS};\n"


@pytest.fixture(scope="module")
def echo() -> Iterator[Stack]:
    """An app that tells what it got."""
    yield from started(Stack("native", "echo", **ECHO))


def signal_all(pids: Sequence[int], name: str) -> None:
    """After STOP all have stopped. The kernel gives a new connection to one waiting worker only: a worker that
    was to stop, and had not yet, would keep it from the others."""
    subprocess.run(["kill", f"-{name}", *map(str, pids)], check=True)
    if name == "STOP":
        until("they have stopped", lambda: all(state(pid) == "T" for pid in pids))


@contextmanager
def standing_still(pids: Sequence[int]) -> Iterator[None]:
    signal_all(pids, "STOP")
    try:
        yield
    finally:
        signal_all(pids, "CONT")


def state(pid: int) -> str:
    """proc(5)'s letter: T for stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def nginx_processes(stack: Stack) -> list[int]:
    """The pids of this stack's nginx, its master first."""
    master = (stack.folder / "nginx/nginx.pid").read_text().strip()
    workers = subprocess.run(["pgrep", "--parent", master], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid in (master, *workers.split())]


def seen(stack: Stack, headers: dict[str, str] | None = None, path: str = "/") -> dict[str, Any]:
    """What the app has got of this request: its headers by name, in lower case."""
    with stack.client() as client:
        answer = client.get(path, headers=headers or {})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found | {"headers": dict(found["headers"])}


def connections(stack: Stack, states: Sequence[int] = (ESTABLISHED, TIME_WAIT)) -> set[int]:
    """nginx's ports in the connections to the app, as the kernel knows them: open, or lately closed by either side."""
    ports = set(range(stack.app_port, stack.app_port + int(stack.rows["WORKERS"])))
    ends = [{one.port, one.peer_port} for one in tcp_sockets() if one.state in states]
    return {(pair - ports).pop() for pair in ends if pair & ports}


# --- What the app gets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "sent", "got"),
    [
        ("Host", "known.test:8080", "known.test:8080"),
        ("X-Forwarded-For", "203.0.113.7", "127.0.0.1"),
        ("X-Forwarded-Proto", "https", "http"),
        ("X-Forwarded-Host", "evil.test", None),  # None: as without it
        ("X-Forwarded-Port", "444", ""),
        ("X-Forwarded-Prefix", "/evil", ""),
        ("X-Real-IP", "203.0.113.7", ""),
        ("Forwarded", "for=203.0.113.7", ""),
        ("Proxy", "http://evil.test", ""),
        ("X-Request-ID", "an-id-of-the-clients", "an-id-of-the-clients"),
        ("Upgrade", "h2c", ""),
    ],
)
def test_a_header_of_the_clients_reaches_the_app_as_it_should(
    echo: Stack, header: str, sent: str, got: str | None
) -> None:
    expected = f"127.0.0.1:{echo.http_port}" if got is None else got
    found = seen(echo, {header: sent})["headers"].get(header.lower(), "")
    assert found == expected, f"{header}: {sent} reaches the app as {found!r} instead of {expected!r}"


def test_the_app_sees_the_host_with_the_port_that_the_client_wrote(echo: Stack) -> None:
    headers = seen(echo)["headers"]
    for name in ("host", "x-forwarded-host"):
        found = headers.get(name, "")
        assert found == f"127.0.0.1:{echo.http_port}", f"{name} is {found!r}"


def test_the_client_gets_one_request_id_and_not_the_apps_own_too(echo: Stack) -> None:
    with echo.client() as client:
        ids = client.get("/", headers={"X-Request-ID": "the-clients-id"}).headers.get_list("x-request-id")
    assert ids == ["the-clients-id"], f"the answer has X-Request-ID {ids}"


def test_a_websocket_is_let_through(native_stack: Stack) -> None:
    answer = raw_head(
        native_stack,
        "GET /ws/echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    assert " 101 " in answer, f"a WebSocket's handshake got {answer}"


def raw_head(stack: Stack, request: str) -> str:
    """The first line of the answer."""
    with socket.create_connection(("127.0.0.1", stack.http_port), timeout=PATIENCE) as connection:
        connection.sendall(request.encode())
        return connection.makefile().readline().strip()


# --- Connections ------------------------------------------------------------------------------------------------


def test_requests_share_connections_to_the_app(echo: Stack) -> None:
    before = connections(echo)
    with echo.client() as client:
        for _ in range(20):
            answer = client.get("/")
            assert answer.text.startswith("{"), f"/ got {answer.text[:60]!r} and not the app's answer"
            assert answer.json()["http_version"] == "1.1", "nginx asks the app with HTTP/1.0"
        opened = connections(echo) - before
    assert len(opened) <= 4, f"20 requests took {len(opened)} connections to the app"


def test_nginx_closes_idle_connections_long_before_the_app_would(echo: Stack) -> None:
    seen(echo)
    end = time.monotonic() + 10 * int(echo.rows["UPSTREAM_KEEPALIVE_SECONDS"])
    while (still := len(connections(echo, [ESTABLISHED]))) and time.monotonic() < end:
        time.sleep(0.1)
    assert not still, f"{still} idle connections to the app are still open after ten times their time"


# --- Which worker -----------------------------------------------------------------------------------------------


def test_a_worker_that_is_busy_gets_no_more_while_another_is_free(echo: Stack) -> None:
    """Though the busy one was asked through another of nginx's own workers: they share what they know."""
    first, *others = nginx_processes(echo)[1:]
    tries = itertools.count()

    def asked() -> tuple[int, set[int]] | None:
        """Who got the slow request, and who the fast ones; None where it was over before those."""
        path = f"/slow-{next(tries)}"
        with ThreadPoolExecutor(1) as thread, echo.client() as client:
            try:
                if others:
                    signal_all([first], "STOP")  # so that another takes the slow request
                busy = thread.submit(seen, echo, None, f"{path}?block=1800")
                until("the slow request is with the app", lambda: arrived(echo, path))
                if others:
                    signal_all([first], "CONT")
                    signal_all(others, "STOP")  # and the first the fast ones; what the others know stands still
                if echo.metric("http_requests_in_flight") < 1:
                    return None
                fast = {client.get("/").json()["pid"] for _ in range(10)}
            finally:
                signal_all([first, *others], "CONT")
            return busy.result()["pid"], fast

    slow, fast = until("a slow request and fast ones beside it", asked)
    assert slow not in fast, "a fast request was given to the worker that is busy"


def arrived(stack: Stack, path: str) -> bool:
    return any(x["logger"] == "app.echo" and x["message"].endswith(path) for x in stack.app_log())


def test_all_workers_are_used(echo: Stack) -> None:
    with echo.client() as client:
        pids = {client.get("/").json()["pid"] for _ in range(10)}
    assert pids == {worker["pid"] for worker in echo.workers()}, f"only {len(pids)} of the workers get requests"


def test_workers_that_were_too_slow_once_are_asked_again_at_once(echo: Stack) -> None:
    """Both answer too late; then both are idle."""
    with ThreadPoolExecutor(2) as threads, echo.client() as client:
        slow = list(threads.map(lambda _: client.get("/?block=6000"), range(2)))
        assert [answer.status_code for answer in slow] == [504, 504], f"6 s got {[a.status_code for a in slow]}"
        for slot in range(int(echo.rows["WORKERS"])):  # each has come to its end
            httpx.get(f"http://127.0.0.1:{echo.app_port + slot}/", timeout=DEADLINE)
        after = [client.get("/").status_code for _ in range(10)]
    assert after == [200] * 10, f"after two slow requests, quick ones got {after}"


# --- For how long -----------------------------------------------------------------------------------------------


def test_an_app_that_reads_no_body_costs_the_send_timeout(echo: Stack) -> None:
    """Its workers are frozen: the body fills the sockets' buffers, and then nothing moves."""
    workers = [worker["pid"] for worker in echo.workers()]
    with standing_still(workers):
        answer = in_time(echo, "POST", content=b"x" * (48 << 20))
    assert answer == 504, f"a body that the app does not read got {answer}"


def in_time(stack: Stack, method: str, **more: Any) -> int | str:
    try:
        with httpx.Client(base_url=stack.url, timeout=PATIENCE) as client:
            return client.request(method, "/", **more).status_code
    except httpx.ReadTimeout:
        return f"no answer within {PATIENCE} s"


@pytest.fixture(scope="module")
def gaps() -> Iterator[Stack]:
    """Two workers, and six addresses where there is none: as of replicas that are gone, or frozen."""
    rows = ECHO | {"PROXY_NEXT_UPSTREAM_TIMEOUT_MS": "450", "PROXY_NEXT_UPSTREAM_TRIES": "4"}
    patch = ("nginx/40-upstream.sh", KEEPALIVE, EXTRA_SERVERS + KEEPALIVE)
    yield from started(Stack("native", "gaps", patches=[patch], **rows))


@pytest.fixture
def frozen(gaps: Stack) -> Iterator[None]:
    """At the six addresses somebody listens whose queue is full: packets that ask to connect are dropped."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", gaps.app_port + 10))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(listener.getsockname())
        yield
        for connection in waiting:
            connection.close()


def tried(stack: Stack, prefix: str, count: int) -> list[list[list[str]]]:
    """Of each of these requests: the addresses it was tried on, at the first chance and at the second."""
    lines = until(
        "their lines in the access log",
        lambda: len(found := [x for x in stack.access_log() if x["request_id"].startswith(prefix)]) == count and found,
    )
    return [[chance.split(", ") for chance in line["upstream"].split(" : ")] for line in lines]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_refused_connection_is_tried_elsewhere_so_many_times(gaps: Stack, method: str) -> None:
    """Nothing has been sent, so a POST is tried again too; and once more from the start."""
    count = 40
    with gaps.client() as client:
        answers = [
            client.request(method, "/", headers={"X-Request-ID": f"refused-{method}-{n}"}).status_code
            for n in range(count)
        ]
    # Where all tries of both chances met nobody: 503.
    assert set(answers) <= {200, 503}, f"with addresses that refuse, {method}s got {set(answers)}"
    requests = tried(gaps, f"refused-{method}-", count)
    most = max(len(chance) for chances in requests for chance in chances)
    assert most == int(gaps.rows["PROXY_NEXT_UPSTREAM_TRIES"]), f"a request was tried on {most} addresses in a row"
    again = [chances for chances in requests if len(chances) == 2]
    assert again, "no request got a second chance"
    assert answers.count(200) > len(requests) - len(again), f"none of {len(again)} second chances was any good"


def test_a_replica_that_accepts_nothing_costs_the_connect_timeout(gaps: Stack, frozen: None) -> None:
    answers = [in_time(gaps, "GET", headers={"X-Request-ID": f"frozen-one-{n}"}) for n in range(3)]
    assert set(answers) <= {200, 503}, f"beside replicas that accept nothing, requests got {answers}"


def test_tries_of_frozen_replicas_end_with_their_time(gaps: Stack, frozen: None) -> None:
    for n in range(5):
        in_time(gaps, "GET", headers={"X-Request-ID": f"frozen-all-{n}"})
    most = max(len(chance) for chances in tried(gaps, "frozen-all-", 5) for chance in chances)
    # 200 ms for each, and after 450 ms no further one
    assert most <= 3, f"a request was tried on {most} frozen addresses in a row"


def test_the_list_of_servers_has_room_for_as_many_as_the_rows_allow() -> None:
    """256 workers in each of 10 replicas, as Docker's DNS would say them. A zone that is full takes no new replica."""
    table = rows() | SMALL_BUDGET | {"WORKERS": "256", "APP_REPLICAS": "9"}
    settings = read(StackSettings, GIVEN | table)
    with tempfile.TemporaryDirectory() as folder:
        values = native.environment(settings, table) | {"NGINX_RUN": folder, "NGINX_ACCESS_LOG": f"{folder}/log"}
        values |= {name: f"unix:{folder}/{name}" for name in ("NGINX_LISTEN", "NGINX_LISTEN_IPV6")}
        values["NGINX_COUNTS"] = f"{folder}/counts"
        render(values, Path(folder), native.nginx_version(native.nginx()))
        conf = Path(folder, "upstream.conf")
        lines = conf.read_text().splitlines()
        servers = [line for line in lines if line.strip().startswith("server ")]
        assert len(servers) == 256
        assert "    random two least_conn;" in lines, "each request searches a list of thousands"
        more = [line.replace("127.0.0.1", f"127.0.0.{n}") for line in servers for n in range(2, 11)]
        at = lines.index(servers[-1]) + 1
        conf.write_text("\n".join([*lines[:at], *more, *lines[at:]]))
        command = [native.nginx(), "-t", "-q", "-e", "stderr", "-c", f"{folder}/nginx.conf"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"2560 servers: {done.stderr}"
