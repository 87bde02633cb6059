"""What the observer says is what is, also while workers are blocked, killed and replaced."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from proofs.stack import alive, until
from proofs.test_faults import Server, serving
from proofs.test_worker import raw_get, send_get

pytestmark = pytest.mark.xdist_group("observer")


class Observed(Server):
    """A master, its workers and their observer."""

    def ask(self, path: str) -> str:
        return httpx.get(f"http://127.0.0.1:{self.port - 1}{path}", timeout=5).raise_for_status().text

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
            return [
                pid for pid in map(int, listed) if "app.server.observer" in Path(f"/proc/{pid}/cmdline").read_text()
            ]

        (pid,) = until("one observer", lambda: len(found := children()) == 1 and found)
        return int(pid)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    server = Observed(tmp_path_factory.mktemp("observed"), WORKER_TIMEOUT_SECONDS="20", LONGEST_BLOCK_SECONDS="9")
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
            send_get(opened.enter_context(observed.connect(slot)), "/block?4000")

        def silent() -> list[float]:
            found = [worker["silence_seconds"] for worker in observed.state()["workers"]]
            return found if min(found) > 1.5 else []

        until("two silent workers", silent)
        begun = time.monotonic()
        found = observed.series()
        assert time.monotonic() - begun < 1, "the observer waits for the workers"
        for slot in (0, 1):
            assert found[f'app_worker_loop_silence_seconds{{worker="{slot}"}}'] > 1.5
            assert found[f'http_requests_in_flight{{worker="{slot}"}}'] == 1
        until("workers that move", lambda: max(w["silence_seconds"] for w in observed.state()["workers"]) < 1)


def test_the_accept_queue_and_its_limit_are_those_of_the_kernel(observed: Observed) -> None:
    """A blocked worker accepts nobody: 7 wait, as `ss` says too."""
    observed.until_ready()
    with ExitStack() as opened:
        send_get(opened.enter_context(observed.connect(1)), "/block?3000")
        until("a blocked worker", lambda: observed.state()["workers"][1]["silence_seconds"] > 0.5)
        for _ in range(7):
            opened.enter_context(observed.connect(1))
        found = observed.series()
        listed = subprocess.check_output(["ss", "-Hltn", f"sport = :{observed.port + 1}"], text=True).split()
        assert listed[1] == "7", listed
        assert found['app_worker_accept_queue{worker="1"}'] == 7
        assert found['app_worker_accept_queue_max{worker="1"}'] == 7
        assert (
            found['app_worker_accept_queue_limit{worker="1"}'] == int(listed[2]) == int(observed.rows["LISTEN_BACKLOG"])
        )
        assert found['app_worker_accept_queue{worker="0"}'] == 0
    until("an empty queue", lambda: observed.sum("app_worker_accept_queue") == 0)
    assert observed.series()['app_worker_accept_queue_max{worker="1"}'] == 7


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
    until("the old ones' end", lambda: len(observed.state()["workers"]) == 2)
    assert observed.sum("http_requests_total") - before == sent
    assert observed.sum("http_requests_cut_total", '"killed"') - killed == 2
    assert observed.sum("http_requests_in_flight") == 0
    assert observed.sum("app_workers", '"ready"') == observed.sum("app_workers_wanted") == 2
    after = {reason: observed.sum("app_worker_exits_total", f'"{reason}"') for reason in exits}
    assert {reason: after[reason] - exits[reason] for reason in exits} == {"reload": 2, "signal": 1, "crashed": 1}
    assert {worker["requests"] for worker in observed.state()["workers"]} == {50}, (
        "they are of the processes before too"
    )


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
    finally:
        done.set()
        loader.join()
    assert sent > 10
    assert not failed
    assert observed.sum("http_requests_total") - before == sent, "counts went with the observer"
    assert observed.until_ready() == workers


def test_the_observer_holds_no_listener_and_ends_with_its_master(tmp_path: Path) -> None:
    server = Observed(tmp_path)
    with serving(server):
        until("an answer of the observer", lambda: answers(server))
        pid = server.observer()
        held = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.exists() or True}
        master = {os.readlink(link) for link in Path(f"/proc/{server.process.pid}/fd").iterdir()}
        shared = {name for name in held & master if name.startswith("socket:")}
        assert not shared, f"the observer keeps sockets of its master open: {shared}"
        os.kill(server.process.pid, signal.SIGKILL)
        until("the observer's end", lambda: not alive(pid), seconds=5)
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
