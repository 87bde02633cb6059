"""What the observer says is what is, also while workers are blocked, killed and replaced."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from proofs.settings.symptoms import SYMPTOMS
from proofs.stack import PATIENT_BUDGET, Stack, alive, until
from proofs.test_faults import BROKEN, CHANGING, Server, no_descriptors, serving, write_module
from proofs.test_fork import command_of
from proofs.test_upstream import standing_still
from proofs.test_worker import raw_get, send_get

pytestmark = pytest.mark.xdist_group("observer")


class Observed(Server):
    """A master, its workers and their observer."""

    def ask(self, path: str) -> str:
        return self.get(path, slot=-1).raise_for_status().text

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("/state"))
        return found

    def series(self) -> dict[str, float]:
        lines = [line for line in self.ask("/metrics").splitlines() if line[0] != "#"]
        return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}

    def sum(self, name: str, *labels: str) -> float:
        """Of the series of this name that have all these labels, each as `status="200"`."""
        found = self.series().items()
        return sum(
            n for series, n in found if series.partition("{")[0] == name and all(one in series for one in labels)
        )

    def observer(self) -> int:
        """Its pid, once it answers."""

        def children() -> list[int]:
            listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            return [pid for pid in map(int, listed) if "app.server.observer" in command_of(pid)]

        (pid,) = until("one observer", lambda: len(found := children()) == 1 and found)
        return int(pid)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    rows = PATIENT_BUDGET | {"WORKER_TIMEOUT_SECONDS": "20", "LONGEST_BLOCK_SECONDS": "9"}
    server = Observed(tmp_path_factory.mktemp("observed"), **rows)
    with serving(server):
        until("an answer of the observer", lambda: answers(server))
        yield server


def answers(server: Observed) -> bool:
    try:
        return bool(server.ask("/metrics"))
    except httpx.HTTPError:
        return False


def test_while_every_worker_is_blocked_the_observer_names_the_silent_ones(observed: Observed) -> None:
    observed.until_ready()
    with ExitStack() as opened:
        for slot in (0, 1):
            send_get(opened.enter_context(observed.connect(slot)), "/block?8000")

        def silent() -> list[float]:
            found = [worker["silence_seconds"] for worker in observed.state()["workers"]]
            return found if min(found) > 1.5 else []

        until("two silent workers", silent)
        found = observed.series()  # of silent ones: it does not wait for the workers
        for slot in (0, 1):
            assert found[f'app_worker_loop_silence_seconds{{worker="{slot}"}}'] > 1.5
            assert found[f'http_requests_in_flight{{worker="{slot}"}}'] == 1
        until("workers that move", lambda: max(w["silence_seconds"] for w in observed.state()["workers"]) < 1)


def blocked_by_a_request(worker: dict[str, Any]) -> bool:
    """And not silent because the machine gives it no CPU."""
    return worker["silence_seconds"] > 0.5 and worker["in_flight"] == 1


def test_the_accept_queue_its_limit_and_its_overflow_are_those_of_the_kernel(tmp_path: Path) -> None:
    """A blocked worker accepts nobody: of 9 that come 6 wait in a queue for 5, and 3 are dropped, as `ss` says too."""
    rows = {"LISTEN_BACKLOG": "5", "WORKER_TIMEOUT_SECONDS": "30", "LONGEST_BLOCK_SECONDS": "9"}
    with serving(Observed(tmp_path, **rows)) as server, ExitStack() as opened:
        until("an answer of the observer", lambda: answers(server))
        send_get(opened.enter_context(server.connect(1)), "/block?8000")
        until("a blocked worker", lambda: blocked_by_a_request(server.state()["workers"][1]))
        for _ in range(9):
            client = opened.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", server.port + 1))
        listed = subprocess.check_output(["ss", "-Hltnm", f"sport = :{server.port + 1}"], text=True)
        _, waiting, limit, *_ = listed.split()
        (dropped,) = re.findall(r",d(\d+)\)", listed)
        found = server.series()
        assert found['app_worker_accept_queue{worker="1"}'] == int(waiting) == 6
        assert found['app_worker_accept_queue_max{worker="1"}'] == 6
        assert found['app_worker_accept_queue_limit{worker="1"}'] == int(limit) == 5
        assert found['app_listen_overflows_total{worker="1"}'] >= int(dropped) >= 3  # they ask again by themselves
        assert found['app_worker_accept_queue{worker="0"}'] == found['app_listen_overflows_total{worker="0"}'] == 0
        until("an empty queue", lambda: server.sum("app_worker_accept_queue") == 0)
        assert server.series()['app_worker_accept_queue_max{worker="1"}'] == 6
        assert server.state()["workers"][1]["queue_limit"] == 5


def test_counts_are_what_was_sent_through_reload_recycling_and_kill(observed: Observed) -> None:
    """A request that dies with its worker is counted as cut; nothing else is missing, and nothing stays in flight."""
    before, killed = observed.sum("http_requests_total"), observed.sum("http_requests_cut_total", '"killed"')
    exits = {
        reason: observed.sum("app_worker_exits_total", f'"{reason}"') for reason in ("reload", "signal", "crashed")
    }
    sent = 0

    def ask(times: int) -> None:
        nonlocal sent
        for slot in (0, 1):
            with observed.client(slot) as client:
                for _ in range(times):
                    assert client.get("/").status_code == 200
                    sent += 1

    ask(50)
    first, second = observed.until_ready()
    with observed.connect(0) as lost, observed.connect(0) as lost_too:
        for connection in (lost, lost_too):
            send_get(connection, "/wait?60000")
        until("two in flight", lambda: observed.series()['http_requests_in_flight{worker="0"}'] == 2)
        observed.kill(first)
        until("a new worker", lambda: first not in (pids := observed.until_ready()) and pids)
    ask(50)
    os.kill(second, signal.SIGTERM)  # to a worker it means: leave when another is ready
    until("a replacement", lambda: second not in (pids := observed.until_ready()) and pids)
    ask(50)
    generation = observed.generation()
    observed.process.send_signal(signal.SIGHUP)
    until("a reload", lambda: observed.state()["generation"] > generation and len(observed.until_ready()) == 2)
    ask(50)

    def ended() -> dict[str, float]:
        return {reason: observed.sum("app_worker_exits_total", f'"{reason}"') - exits[reason] for reason in exits}

    until("the old ones' end", lambda: len(observed.state()["workers"]) == 2 and sum(ended().values()) >= 4)
    assert observed.sum("http_requests_total") - before == sent
    assert observed.sum("http_requests_cut_total", '"killed"') - killed == 2
    assert observed.sum("http_requests_in_flight") == 0
    assert observed.sum("app_workers", '"ready"') == observed.sum("app_workers_wanted") == 2
    assert ended() == {"reload": 2, "signal": 1, "crashed": 1}
    assert {worker["requests"] for worker in observed.state()["workers"]} == {50}, (
        "they are of the processes before too"
    )


def test_counts_are_what_was_sent_while_workers_are_recycled(tmp_path: Path) -> None:
    with serving(Observed(tmp_path, MAX_REQUESTS="30", MAX_REQUESTS_JITTER="0")) as server:
        until("an answer of the observer", lambda: answers(server))
        for sent in range(10, 160, 10):
            for number in range(10):
                assert server.get("/", number % 2).status_code == 200
            assert server.sum("http_requests_total") == sent
        until("two workers recycled", lambda: server.sum("app_worker_exits_total", '"max_requests"') >= 2)
        exits = {name for name, count in server.series().items() if name.startswith("app_worker_exits") and count}
        assert exits == {'app_worker_exits_total{reason="max_requests"}'}
        assert server.sum("http_requests_total") == 150
        assert server.sum("http_requests_in_flight") == server.sum("http_requests_cut_total") == 0


def test_a_thousand_paths_and_methods_add_no_series(observed: Observed) -> None:
    with observed.client() as client:
        client.get("/")
    before = set(observed.series())
    methods = ["PROPFIND", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH", "PURGE", "TRACE"]
    counted = observed.sum("http_requests_total")
    with observed.client() as client:
        for number in range(1000):
            client.request("GET" if number % 2 else methods[number // 2 % 10], f"/path-{number}")
    assert observed.sum("http_requests_total") - counted == 1000
    added = set(observed.series()) - before
    assert added == {'http_requests_total{method="other",route="",status="200"}'}, added


@pytest.mark.parametrize("event", ["killed", "frozen"])
def test_an_observer_that_is_gone_comes_back_and_costs_no_request(observed: Observed, event: str) -> None:
    pid = observed.observer()
    before, workers = observed.sum("http_requests_total"), observed.until_ready()
    done, sent, failed = threading.Event(), 0, []

    def load() -> None:
        nonlocal sent
        with observed.client() as client:
            while not done.is_set():
                sent += 1
                if client.get("/").status_code != 200:
                    failed.append(sent)

    loader = threading.Thread(target=load)
    loader.start()
    try:
        os.kill(pid, signal.SIGKILL if event == "killed" else signal.SIGSTOP)
        until("another observer", lambda: not alive(pid) and observed.observer() != pid and answers(observed))
        until("some requests beside it", lambda: sent > 10)
    finally:
        done.set()
        loader.join()
    assert not failed
    assert observed.sum("http_requests_total") - before == sent, "counts went with the observer"
    assert observed.until_ready() == workers


def sockets(pid: int) -> set[str]:
    """Those that this process has open."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # a file that is closed meanwhile
            found.add(os.readlink(link))
    return {name for name in found if name.startswith("socket:")}


def test_the_observer_holds_no_listener_and_ends_with_its_master(tmp_path: Path) -> None:
    server = Observed(tmp_path)
    with serving(server):
        until("an answer of the observer", lambda: answers(server))
        pid = server.observer()
        shared = sockets(pid) & sockets(server.process.pid)
        assert not shared, f"the observer keeps sockets of its master open: {shared}"
        os.kill(server.process.pid, signal.SIGKILL)
        until("the observer's end", lambda: not alive(pid))
    assert not re.search("Traceback", server.text())


def test_bad_requests_and_silent_clients_are_harmless(observed: Observed) -> None:
    with ExitStack() as opened:
        for _ in range(20):  # they say nothing, or do not read
            silent = opened.enter_context(socket.create_connection(("127.0.0.1", observed.port - 1), timeout=10))
            silent.sendall(b"GET /metrics HTTP/1.1\r\n")
        for raw, status in (
            (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
            (b"GET /other HTTP/1.1\r\n\r\n", b"404"),
            (b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n", b""),
            (b"\x16\x03\x01\r\n\r\n", b""),
        ):
            with socket.create_connection(("127.0.0.1", observed.port - 1), timeout=10) as client:
                client.sendall(raw)
                assert client.recv(65536)[9:12] == status, raw[:20]
        with observed.connect(-1) as kept:
            assert raw_get(kept, "/state").startswith("HTTP/1.1 200 OK")
            assert raw_get(kept, "/state").startswith("HTTP/1.1 200 OK")


ROUTES_APP = """
async def app(scope, receive, send):
    path = scope["path"]
    scope["route"] = type("Route", (), {"path": f"/route-{int(path.rpartition('-')[2]) % 200}/{{key}}"})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
"""


def test_a_scrape_of_8_workers_with_200_routes_needs_no_event_loop(tmp_path: Path) -> None:
    """All workers are stopped as by a debugger: none could say a word."""
    (tmp_path / "routes.py").write_text(ROUTES_APP)
    rows = {"WORKERS": "8", "APP_MAX_REQUESTS_IN_FLIGHT": "10", "NGINX_MAX_REQUESTS_IN_FLIGHT": "1000"}
    rows |= {"CLIENT_MAX_REQUESTS_IN_FLIGHT": "999", "PROXY_CONNECT_TIMEOUT_MS": "100"}
    server = Observed(tmp_path, ports=10, APP_MODULE="routes:app", **rows)
    with serving(server):
        pids = server.until_ready()
        for slot in range(8):
            with server.client(slot) as client:
                for number in range(200):
                    client.get(f"/path-{number}")
        with standing_still(pids):
            found = server.series()
            until("8 silent workers", lambda: min(w["silence_seconds"] for w in server.state()["workers"]) > 1)
    for name in ("http_requests_total{method=", "http_request_duration_seconds_count{route="):
        assert [value for series, value in found.items() if series.startswith(name)] == [8] * 200


@pytest.mark.parametrize("objective", ["SLO_P50_MS", "SLO_P95_MS", "SLO_P99_MS"])
def test_each_objective_is_a_bucket(observed: Observed, objective: str) -> None:
    with observed.client() as client:
        client.get("/")
    seconds = int(observed.rows[objective]) / 1000
    assert f'http_request_duration_seconds_bucket{{route="",le="{seconds:g}"}}' in observed.series()


def test_after_a_deploy_each_new_replica_counts_what_it_answered(compose_stack: Stack) -> None:
    """The old ones' counts end with them, as their containers do; none of the new ones begins with another's."""
    done = compose_stack.make("deploy")
    assert done.returncode == 0, done.stderr
    with compose_stack.client() as client:
        statuses = [client.get("/").status_code for _ in range(40)]
    assert statuses == [200] * 40
    counted = {}
    for container in compose_stack.containers("app"):
        counted[container] = compose_stack.metric("http_requests_total", 'route="/"', container=container)
        assert compose_stack.metric("http_requests_in_flight", container=container) == 0
        assert compose_stack.metric("app_workers", '"ready"', container=container) == 2
    assert sum(counted.values()) == 40, counted


# --- symptoms -------------------------------------------------------------------------------------------------

SYMPTOMS_APP = """
import asyncio, time
from starlette.concurrency import run_in_threadpool

held = []

async def left(receive):
    while (await receive())["type"] != "http.disconnect":
        pass

async def app(scope, receive, send):
    path, number = scope["path"], int(scope["query_string"] or 0)
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    if path == "/wait":
        await asyncio.sleep(number)
    elif path == "/stay":
        await left(receive)
    elif path == "/block":
        time.sleep(number)
    elif path == "/compute":
        end = time.process_time() + number / 1000
        while time.process_time() < end:
            pass
    elif path == "/thread":
        await run_in_threadpool(time.sleep, number)
    elif path == "/raise":
        raise OSError("sorry, too many clients already")
    elif path == "/leak":
        held.append(b"x" * (number << 20))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if path == "/stall":
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        await asyncio.sleep(number)
    elif path == "/slow":
        leaving = asyncio.ensure_future(left(receive))
        while not leaving.done():
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
            await asyncio.sleep(0.2)
    await send({"type": "http.response.body", "body": b"end"})
"""
BACKLOG = 64
# What says why something happened. None of these changes without a symptom.
CAUSES = (
    "http_requests_cut_total",
    "app_worker_exits_total",
    "app_drain_cut_requests_total",
    "app_listen_overflows_total",
    "app_reloads_total",
)


@pytest.fixture(scope="module")
def ailing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("ailing")
    (folder / "ailing.py").write_text(SYMPTOMS_APP)
    rows = {"REPLACED_WORKER_SECONDS": "4", "UVICORN_GRACEFUL_SECONDS": "4", "WORKER_TIMEOUT_SECONDS": "9"}
    rows |= {"REQUEST_DEADLINE_SECONDS": "3", "LISTEN_BACKLOG": str(BACKLOG)}
    server = Observed(folder, APP_MODULE="ailing:app", LONGEST_BLOCK_SECONDS="1", **rows)
    with serving(server):
        until("an answer of the observer", lambda: answers(server))
        yield server


def ask(server: Observed, path: str) -> None:
    """A request whose answer may never come, or not to its end."""
    with suppress(httpx.HTTPError), server.client() as client:
        client.get(path)


def killed_for_silence(server: Observed) -> None:
    first = server.until_ready()[0]
    ask(server, "/block?60")
    until("a new worker", lambda: first not in (pids := server.until_ready()) and pids)


def over_its_memory(server: Observed) -> None:
    for path in ("/leak?200", ""):
        first = server.until_ready()[0]
        if path:
            ask(server, path)
        else:
            server.kill(first)
        until("a new worker", lambda first=first: first not in (pids := server.until_ready()) and pids)
    until("the old ones' end", lambda: len(server.state()["workers"]) == 2)


def cut_by_a_drain(server: Observed) -> None:
    with server.connect() as client:
        send_get(client, "/slow")
        until("the answer's beginning", lambda: client.recv(100))
        os.kill(server.until_ready()[0], signal.SIGTERM)
        until("it is cut", lambda: not client.recv(65536), seconds=30)
    until("the old one's end", lambda: len(server.state()["workers"]) == 2 and len(server.until_ready()) == 2)


def replaced_and_reloaded(server: Observed) -> None:
    """One worker is told to go, then all of them are."""
    before, generation = server.series(), server.state()["generation"]
    first = server.until_ready()[0]
    with server.connect() as client:
        send_get(client, "/slow")  # which no deadline ends
        until("it has a request", lambda: server.sum("http_requests_in_flight") == 1)
        os.kill(first, signal.SIGTERM)
        leaving = ("draining", "finishing")
        until("it leaves", lambda: sum(server.sum("app_workers", f'"{state}"') for state in leaving) == 1)
    until("a new worker", lambda: first not in (pids := server.until_ready()) and pids)
    server.process.send_signal(signal.SIGHUP)
    until("the old ones' end", lambda: server.sum("app_drain_seconds_count") - before["app_drain_seconds_count"] == 3)
    assert server.series()["app_generation"] == generation + 1
    assert server.sum("app_workers") == server.sum("app_workers", '"ready"') == 2


def blocked(server: Observed) -> None:
    """For longer than a second, while somebody waits to be accepted."""

    def late() -> float:
        found = server.series()
        return found["app_worker_loop_lag_seconds_count"] - found['app_worker_loop_lag_seconds_bucket{le="1"}']

    before = late()
    with server.connect() as blocker, ExitStack() as opened:
        send_get(blocker, "/block?4")
        until("it is silent", lambda: blocked_by_a_request(server.state()["workers"][0]))
        opened.enter_context(server.connect())
        assert server.series()['app_worker_accept_queue{worker="0"}'] == 1
    until("its end", lambda: late() > before)
    assert server.series()['app_worker_accept_queue{worker="0"}'] == 0
    assert server.series()['app_worker_accept_queue_max{worker="0"}'] >= 1


def websocket_cut(server: Observed) -> None:
    """In its middle, as nginx does it to one that is silent."""
    with server.connect() as client:
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        client.sendall(f"GET / HTTP/1.1\r\nHost: localhost\r\n{upgrade}{key}\r\n".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 101 ")
        until("a WebSocket", lambda: server.sum("websocket_connections") == 1)
    until("none", lambda: server.sum("websocket_connections") == 0)


def slow_before_fast(server: Observed) -> None:
    """Four connections to one worker: one has it for 1.5 s of CPU, three wait, and the other worker does nothing."""
    before = server.series()
    with ExitStack() as opened:
        slow, *fast = [opened.enter_context(server.connect()) for _ in range(4)]
        for connection in (slow, *fast):
            assert raw_get(connection, "/livez").startswith("HTTP/1.1 200 ")
        # A moment may pass until the worker says how many it has, and none of its own may be among them.
        until("four connections", lambda: server.series()['app_worker_connections{worker="0"}'] == 4)
        send_get(slow, "/compute?1500")
        until("one in flight", lambda: server.series()['http_requests_in_flight{worker="0"}'] == 1)
        for connection in fast:
            send_get(connection, "/wait?0")
        for connection in fast:
            assert connection.recv(65536)
    after = server.series()
    grown = {name: after[name] - before[name] for name in after if name in before}
    accepted, cpu = "app_worker_connections_accepted_total", "app_worker_cpu_seconds_total"
    assert [grown[f'{accepted}{{worker="{slot}"}}'] for slot in (0, 1)] == [4, 0]
    assert after['app_worker_connections{worker="1"}'] == after['http_requests_in_flight{worker="1"}'] == 0
    assert grown[f'{cpu}{{worker="0"}}'] >= 1.5
    assert grown[f'{cpu}{{worker="0"}}'] > grown[f'{cpu}{{worker="1"}}'] + 0.1


def without_descriptors(server: Observed) -> None:
    """And more clients than its queue holds."""
    pid = server.until_ready()[0]
    with ExitStack() as opened, no_descriptors(pid):
        for _ in range(BACKLOG + 10):
            client = opened.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", server.port))

        def full() -> bool:
            found = {name: value for name, value in server.series().items() if name.endswith('{worker="0"}')}
            waiting, limit = (found[f'app_worker_accept_queue{end}{{worker="0"}}'] for end in ("", "_limit"))
            most = found['app_worker_descriptors_limit{worker="0"}']
            return waiting > limit == BACKLOG and found['app_worker_descriptors{worker="0"}'] > most == 3

        until("a full queue, and no descriptor", full)
        until("an overflow", lambda: server.sum("app_listen_overflows_total") > 0)
    until("an empty queue", lambda: server.sum("app_worker_accept_queue") == 0)
    assert server.until_ready()[0] == pid


HAPPEN: list[tuple[str, Callable[[Observed], None], tuple[str, ...]]] = [
    ("504 with the app's own line", lambda server: ask(server, "/wait?60"), ()),
    ("an answer ends in its middle", lambda server: ask(server, "/stall?60"), ()),
    ("the database says", lambda server: ask(server, "/raise"), ()),
    ("502, and the app's log has WORKER TIMEOUT", killed_for_silence, ()),
    ("exit status 137 in the middle", over_its_memory, ()),
    # That the worker was told to go is no part of the symptom.
    ("a long download", cut_by_a_drain, ('app_worker_exits_total{reason="signal"}',)),
    ("502 when workers are recycled", replaced_and_reloaded, ()),
    ("504, and no line of the app's", blocked, ()),
    ("a silent WebSocket", websocket_cut, ()),
    ("fast requests wait", slow_before_fast, ()),
    ("a worker accepts nobody", without_descriptors, ()),
]


@pytest.mark.parametrize(("seen", "happen", "besides"), HAPPEN, ids=[seen for seen, _, _ in HAPPEN])
def test_what_happens_changes_those_series_that_its_symptom_names(
    ailing: Observed, seen: str, happen: Callable[[Observed], None], besides: tuple[str, ...]
) -> None:
    (symptom,) = [symptom for symptom in SYMPTOMS if symptom.seen.startswith(seen)]
    ailing.until_ready()
    before = ailing.series()
    happen(ailing)
    named = {name for name in symptom.metrics if name.startswith(CAUSES)} | set(besides)

    def changed() -> set[str]:
        """A row that names a metric without its labels means any of its series."""
        after = ailing.series()
        found = {series for series in after if series.startswith(CAUSES) and after[series] != before.get(series, 0)}
        return {series if series in named else series.partition("{")[0] for series in found}

    until(f"a change of {named}", lambda: named <= changed())  # the master counts an exit once it has seen it
    assert changed() == named


def test_a_full_thread_pool_is_seen(tmp_path: Path) -> None:
    (tmp_path / "ailing.py").write_text(SYMPTOMS_APP)
    with serving(Observed(tmp_path, APP_MODULE="ailing:app", **PATIENT_BUDGET)) as server, ExitStack() as opened:
        until("an answer of the observer", lambda: answers(server))
        before = server.series()
        for _ in range(43):
            send_get(opened.enter_context(server.connect()), "/thread?3")
        until(
            "40 busy threads and 3 calls that wait",
            lambda: (
                server.state()["workers"][0]["threads"] == {"busy": 40, "limit": 40, "waiting": 3}
                and server.series()['app_worker_threads_waiting{worker="0"}'] == 3
            ),
        )
        until("none in flight", lambda: server.sum("http_requests_in_flight") == 0)
        after = server.series()
    assert not {series for series in after if series.startswith(CAUSES) and after[series] != before[series]}


def test_exits_and_reloads_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    """A reload of code that cannot be loaded; and one that another comes after before it is done."""
    write_module(tmp_path, 'b"old"')
    with serving(Observed(tmp_path, **CHANGING, WORKERS="1", WORKER_START="import")) as server:
        until("an answer of the observer", lambda: answers(server))

        def reloads() -> list[float]:
            return [server.sum("app_reloads_total", f'"{result}"') for result in ("ok", "failed", "superseded")]

        def exits() -> dict[str, float]:
            found = {name: value for name, value in server.series().items() if name.startswith("app_worker_exits")}
            return {name.split('"')[1]: value for name, value in found.items() if value}

        assert (reloads(), exits()) == ([0, 0, 0], {})
        write_module(tmp_path, BROKEN)
        server.process.send_signal(signal.SIGHUP)
        until("a failure", lambda: reloads() == [0, 1, 0] and exits() == {"boot": 1})

        write_module(tmp_path, 'b"new"')
        (tmp_path / "hold").touch()
        for attempt in (3, 4):
            begun = (tmp_path / "imports").read_text().count("begun")
            server.process.send_signal(signal.SIGHUP)
            until("its import", lambda begun=begun: (tmp_path / "imports").read_text().count("begun") > begun)
            until("its number", lambda attempt=attempt: server.generation() == attempt)
        until("the first one is given up", lambda: reloads() == [0, 1, 1])
        (tmp_path / "hold").unlink()
        until("the second one", lambda: reloads() == [1, 1, 1] and server.get("/").text == "new")
        until("the end of its elders", lambda: exits() == {"boot": 1, "reload": 2})


STAYING_APP = """
import asyncio

async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await asyncio.sleep(3600)
"""


def test_a_worker_that_does_not_leave_is_killed_and_counted_as_late(tmp_path: Path) -> None:
    """Its application never ends its lifespan."""
    (tmp_path / "staying.py").write_text(STAYING_APP)
    rows = {"REPLACED_WORKER_SECONDS": "4", "UVICORN_GRACEFUL_SECONDS": "4", "WORKER_TIMEOUT_SECONDS": "30"}
    with serving(Observed(tmp_path, APP_MODULE="staying:app", WORKERS="1", **rows)) as server:
        until("an answer of the observer", lambda: answers(server))
        (pid,) = server.until_ready()
        os.kill(pid, signal.SIGTERM)
        until("its end", lambda: not alive(pid))
        until("a count", lambda: server.sum("app_worker_exits_total", '"late"') == 1)
        assert server.sum("app_worker_exits_total") == 1
        assert server.until_ready() != [pid]
