"""The live service: what it counts is what was sent, it shows what goes on, and it harms nobody."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.server import space
from proofs.conftest import require_engine, started
from proofs.stack import DEADLINE, PATIENT_BUDGET, Stack, until
from proofs.test_proxy import raw

SAMPLE = re.compile(r'(\w+)="([^"]*)"')


Sample = tuple[str, dict[str, str], float]


def scrape(stack: Stack) -> list[Sample]:
    """Every sample of /metrics: its name, its labels, its value.

    Asked again for a while where the live service had no answer of nginx or of a replica, which it gives 0.8 s.
    """
    end = time.monotonic() + 10
    while not whole(found := scraped(stack)) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def whole(samples: list[Sample]) -> bool:
    up = [value for name, _, value in samples if name in ("nginx_up", "live_replica_up")]
    return len(up) > 1 and all(up)


def scraped(stack: Stack) -> list[Sample]:
    text = httpx.get(f"{stack.live_url}/metrics", timeout=DEADLINE).text
    found = []
    for line in text.splitlines():
        if not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            name, _, labels = series.partition("{")
            found.append((name, dict(SAMPLE.findall(labels)), float(value)))
    return found


def total(stack: Stack, name: str, **labels: str) -> float:
    """The sum of the samples of this name with these labels."""
    return sum(value for each, has, value in scrape(stack) if each == name and labels.items() <= has.items())


def counted(stack: Stack, cause: str, **labels: str) -> float:
    return total(stack, "nginx_http_responses_total", cause=cause, **labels)


def grows(stack: Stack, by: int, cause: str, send: Callable[[], Any], **labels: str) -> None:
    """Fails unless exactly `by` more are counted after `send`."""
    before = -1.0

    def settled() -> bool:
        """What earlier tests have sent is counted: nginx writes its lines four times a second, if it has a CPU."""
        nonlocal before
        last, before = before, counted(stack, cause, **labels)
        time.sleep(1.5)
        return before == last

    until("the counts stand still", settled)
    send()
    until(f"{by} more counted as {cause} {labels}", lambda: counted(stack, cause, **labels) - before >= by)
    assert counted(stack, cause, **labels) - before == by


def test_every_request_is_counted_with_its_status_and_cause(stack: Stack) -> None:
    with stack.client() as client:
        grows(stack, 25, "app", lambda: [client.get("/items") for _ in range(25)], status="200")
        grows(stack, 3, "app", lambda: [client.get("/no-such-path") for _ in range(3)], status="404")
        grows(stack, 2, "nginx", lambda: [client.get("/livez") for _ in range(2)], status="404")
        grows(stack, 1, "too_large", lambda: client.post("/upload", content=b"x" * 70_000), status="413")
        malformed = "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"
        grows(stack, 1, "bad_request", lambda: raw(stack, malformed), status="400")
    # Nothing else counts: neither health checks, nor the live service's own questions.
    before = counted(stack, "nginx")
    time.sleep(1)
    assert counted(stack, "nginx") == before, "requests that nobody sent are counted"


def test_the_durations_are_those_of_the_requests_without_streams(stack: Stack) -> None:
    name = "nginx_request_duration_seconds"

    def seen() -> tuple[float, float, float]:
        return (total(stack, f"{name}_count"), total(stack, f"{name}_sum"), total(stack, f"{name}_bucket", le="0.3"))

    count, seconds, fast = seen()
    with stack.client() as client:
        begun = time.monotonic()
        for _ in range(4):
            client.get("/work/io?ms=400")
        took = time.monotonic() - begun
        client.get("/events?count=2&interval_ms=600")
    until("four durations", lambda: seen()[0] - count >= 4)
    time.sleep(0.6)
    now = seen()
    assert now[0] - count == 4, "a stream is no duration"
    assert 1.59 <= now[1] - seconds <= took + 0.1  # nginx and the app's timer count whole milliseconds
    assert now[2] == fast, "a bucket at the objective SLO_P95_MS tells them apart"


@pytest.fixture
def patient() -> Iterator[Stack]:
    yield from started(Stack("native", "lost", **PATIENT_BUDGET))


def test_a_client_that_leaves_and_a_worker_that_dies_are_counted_as_such(patient: Stack) -> None:
    stack = patient

    def leave() -> None:
        with contextlib.suppress(httpx.TimeoutException):
            httpx.get(f"{stack.url}/work/io?ms=5000", timeout=0.3)

    grows(stack, 1, "client_left", leave, status="499")

    def lose_a_worker() -> None:
        answers: list[int] = []
        with stack.client() as client:
            asking = threading.Thread(target=lambda: answers.append(client.get("/work/io?ms=5000").status_code))
            asking.start()
            (busy,) = until("the request", lambda: in_flight_with(stack))
            stack.kill(next(worker["pid"] for worker in stack.workers() if worker["slot"] == busy))
            asking.join()
        assert answers == [200]

    # The worker that the client has left is still at it.
    until("nothing in flight", lambda: total(stack, "http_requests_in_flight") == 0)
    failed = total(stack, "nginx_upstream_tries_total", result="failed")
    # It was tried again: the client noticed nothing, the counts did.
    grows(stack, 1, "app", lose_a_worker, status="200")
    assert total(stack, "nginx_upstream_tries_total", result="failed") > failed


def in_flight_with(stack: Stack) -> list[int]:
    """The workers that have a request."""
    return [int(has["worker"]) for name, has, count in scrape(stack) if name == "http_requests_in_flight" and count]


def test_nginx_counts_its_connections(stack: Stack) -> None:
    accepted = total(stack, "nginx_connections_accepted")
    connections = [socket.create_connection(("127.0.0.1", stack.http_port)) for _ in range(5)]
    try:
        for connection in connections:  # one that says nothing is closed
            connection.sendall(b"GET /events?count=60&interval_ms=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until("five connections more", lambda: total(stack, "nginx_connections_accepted") - accepted >= 5)
        assert total(stack, "nginx_connections_active") >= 5
        assert total(stack, "nginx_up") == 1
    finally:
        for connection in connections:
            connection.close()


def test_nginxs_own_counters_are_not_for_clients(stack: Stack) -> None:
    with stack.client() as client:
        assert client.get("/status").status_code == 404
    if stack.way == "compose":
        ports = stack.inspect(stack.containers("nginx")[0])["NetworkSettings"]["Ports"]
        assert "8081/tcp" not in ports, f"nginx's counters are published: {ports}"


def asked(stack: Stack, path: str = "/", **headers: str) -> httpx.Response:
    return httpx.get(f"{stack.live_url}{path}", headers=headers, timeout=DEADLINE)


def live_answers(stack: Stack) -> bool:
    """Whether the live service is there, and has a place for one more question."""
    with contextlib.suppress(httpx.HTTPError):
        return asked(stack, "/metrics").status_code == 200
    return False


def test_only_pages_of_its_own_may_ask_it(native_stack: Stack) -> None:
    stack = native_stack
    rebound = asked(stack, Host="attacker.example:8090")
    assert rebound.status_code == 421, f"a name that a resolver led here gets {rebound.status_code}"
    assert "localhost" in rebound.text
    for path in ("/", "/metrics", "/events"):
        assert asked(stack, path, Host=f"localhost.evil.test:{stack.live_port}").status_code == 421
    foreign = asked(stack, "/events", **{"Sec-Fetch-Site": "cross-site"})
    assert foreign.status_code == 403, "a page of another site can hold places of watchers"
    page = asked(stack)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert httpx.post(f"{stack.live_url}/", timeout=DEADLINE).status_code == 501, "it is read-only"
    assert asked(stack, "/../.env").status_code == 404
    assert asked(stack, "/docs/../.env").status_code == 404


def test_each_part_says_its_rows_with_their_values_and_leads_to_its_page(native_stack: Stack) -> None:
    parts = asked(native_stack, "/parts").json()
    assert parts["in_flight"]["rows"]["APP_MAX_REQUESTS_IN_FLIGHT"] == native_stack.rows["APP_MAX_REQUESTS_IN_FLIGHT"]
    for part in parts.values():
        assert part["rows"], part
        assert asked(native_stack, f"/{part['page']}").text.startswith("# ")


@contextlib.contextmanager
def watching(stack: Stack) -> Iterator[Iterator[dict[str, Any]]]:
    """The snapshots, as they come."""
    with httpx.stream("GET", f"{stack.live_url}/events", timeout=DEADLINE) as answer:
        assert answer.status_code == 200, answer.read()
        lines = answer.iter_lines()
        yield (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith('data: {"now"'))


def test_a_thousand_watchers_and_one_that_never_reads_harm_nobody(native_stack: Stack) -> None:
    stack = native_stack
    idle = socket.socket()
    idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    idle.connect(("127.0.0.1", stack.live_port))
    crowd: list[socket.socket] = [idle]
    question = f"GET /events HTTP/1.1\r\nHost: localhost:{stack.live_port}\r\n\r\n".encode()
    try:
        with watching(stack) as snapshots:
            next(snapshots)
            for connection in (idle, *(socket.create_connection(("127.0.0.1", stack.live_port)) for _ in range(999))):
                with contextlib.suppress(OSError):
                    connection.sendall(question)
                crowd.append(connection)
            first = next(snapshots)["now"]
            times = [next(snapshots)["now"] for _ in range(8)]
            assert times[-1] - first < 8, "who watches already waits for the others"
            with stack.client() as client:
                assert client.get("/").status_code == 200
            until("a place for a question", lambda: live_answers(stack))
            assert total(stack, "live_watchers") <= 32
            refused = until("a clear refusal", lambda: next((x for x in map(said, crowd[100:]) if b"503" in x), b""))
            assert b"open already" in refused, refused
    finally:
        for connection in crowd:
            connection.close()
    until("all have left", lambda: total(stack, "live_watchers") == 0)
    with watching(stack) as snapshots:
        next(snapshots)


def said(connection: socket.socket) -> bytes:
    connection.settimeout(0.2)
    with contextlib.suppress(OSError):
        return connection.recv(4096)
    return b""


def test_at_most_four_updates_a_second(native_stack: Stack) -> None:
    with watching(native_stack) as snapshots:
        next(snapshots)
        times = [next(snapshots)["now"] for _ in range(9)]
    assert times[-1] - times[0] >= 7.5 / 4, f"eight updates in {times[-1] - times[0]:.2f} s"


def live_pid(stack: Stack) -> int:
    """The native live service's process."""
    command = f"{stack.root}/.venv/bin/python -m live"  # and nothing before it, as what starts it again has
    found = subprocess.run(["pgrep", "-fx", command], capture_output=True, text=True)
    mine = [pid for pid in found.stdout.split() if f"LIVE_PORT={stack.live_port}" in environment(pid)]
    return int(mine[-1]) if mine else 0


def environment(pid: str) -> list[str]:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ") as file:
        return file.read().split("\0")
    return []


def test_the_live_service_killed_and_frozen_loses_no_request_and_comes_back(native_stack: Stack) -> None:
    stack = native_stack
    first = until("the live service", lambda: live_pid(stack))
    with stack.client() as client:
        statuses = []
        stack.kill(first, "STOP")
        statuses += [client.get("/items").status_code for _ in range(200)]
        stack.kill(first, "KILL")
        statuses += [client.get("/items").status_code for _ in range(200)]
    assert statuses == [200] * 400
    until("another one", lambda: live_pid(stack) not in (0, first))

    until("its answer", lambda: live_answers(stack))
    # What nobody had read is still there for the next reader, and what was read is counted once.
    until("all 400 counted by the one that came after", lambda: counted(stack, "app", status="200") >= 400)
    assert counted(stack, "app", status="200") < 800


@pytest.fixture
def counting() -> Iterator[Stack]:
    """A stack whose nginx is started again."""
    require_engine()
    yield from started(Stack("compose", "counts"))


def test_a_full_space_for_counts_loses_lines_and_no_request(counting: Stack) -> None:
    stack = counting
    (nginx,), (live,) = stack.containers("nginx"), stack.containers("live")
    mount = subprocess.check_output(["docker", "exec", nginx, "sh", "-c", "grep /run/counts /proc/mounts"], text=True)
    assert "tmpfs" in mount, f"what is counted is written to a disk: {mount}"
    assert f"size={space.COUNTS // 1024}k" in mount, f"the space for counts is not bounded: {mount}"
    subprocess.run(["docker", "pause", live], check=True, capture_output=True)
    fill = "head -c 9m /dev/zero > /run/counts/filled; df -k /run/counts | tail -n 1"
    full = subprocess.run(["docker", "exec", nginx, "sh", "-c", fill], capture_output=True, text=True).stdout
    assert full.split()[3] == "0", f"not full: {full}"
    with stack.client() as client:
        assert [client.get("/items").status_code for _ in range(300)] == [200] * 300
        # And an nginx that starts meets no fault in it.
        subprocess.run(["docker", "restart", nginx], check=True, capture_output=True)
        until("an answer after the restart", lambda: answers(client))
        assert [client.get("/items").status_code for _ in range(300)] == [200] * 300
    subprocess.run(["docker", "exec", nginx, "rm", "/run/counts/filled"], check=True)
    subprocess.run(["docker", "unpause", live], check=True, capture_output=True)
    with stack.client() as client:
        until("lines are counted again", lambda: client.get("/items") and counted(stack, "app", status="200") >= 3)


def answers(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return client.get("/items").status_code == 200
    return False


def lose_lines(stack: Stack, requests: int) -> float:
    """How many lines are lost of those of so many requests: room is left for the first of them, and nobody reads."""
    (nginx,), (live,) = stack.containers("nginx"), stack.containers("live")
    before = total(stack, "nginx_log_lines_lost_total")
    subprocess.run(["docker", "pause", live], check=True, capture_output=True)
    try:
        fill = "head -c 9m /dev/zero > /run/counts/filled; truncate --size=-8K /run/counts/filled"
        subprocess.run(["docker", "exec", nginx, "sh", "-c", fill], capture_output=True)
        with stack.client() as client:
            assert [client.get("/items").status_code for _ in range(requests)] == [200] * requests
        time.sleep(0.5)
    finally:
        subprocess.run(["docker", "unpause", live], check=True, capture_output=True)
        lost: float = until("lines lost", lambda: total(stack, "nginx_log_lines_lost_total") - before)
        subprocess.run(["docker", "exec", nginx, "rm", "/run/counts/filled"], check=True)
        until("its health", lambda: stack.inspect(live)["State"]["Health"]["Status"] == "healthy")
    return lost


def test_lines_that_found_no_room_are_said(compose_stack: Stack) -> None:
    stack = compose_stack
    lost = lose_lines(stack, 900)
    assert lost <= 900, f"{lost} lines lost of 900"
    log = stack.compose("logs", "--no-log-prefix", "live")
    assert "the space for nginx's counts was full" in log


def test_what_was_read_takes_no_room(compose_stack: Stack) -> None:
    stack = compose_stack
    (live,) = stack.containers("live")
    script = "import os; s = os.stat('/run/counts/requests.log'); print(s.st_size, 512 * s.st_blocks)"

    def given_back() -> bool:
        output = subprocess.check_output(["docker", "exec", live, "python", "-c", script], text=True)
        size, kept = map(int, output.split())
        return size > 12_000 and kept <= 8192

    with stack.client() as client:
        for _ in range(300):
            client.get("/items")
    until("of more than 12 kB that nginx has written, at most 8 kB are kept once they were read", given_back)


def test_replicas_are_found_by_their_name_and_forgotten(compose_stack: Stack) -> None:
    stack = compose_stack
    mine = {replica_address(stack, container) for container in stack.containers("app")}
    until(
        "the replica", lambda: {has["replica"] for name, has, _ in scrape(stack) if name == "live_replica_up"} == mine
    )


def replica_address(stack: Stack, container: str) -> str:
    networks = stack.inspect(container)["NetworkSettings"]["Networks"]
    (address,) = [network["IPAddress"] for network in networks.values()]
    return str(address)


# What every process of Python takes for the time of day, from now on and in the next moment.
ANOTHER_TIME = """
import os, time

now, shift = time.time, os.environ["CLOCK_SHIFT"]

def shifted():
    with open(shift) as file:
        return now() + int(file.read() or 0)

time.time = shifted
time.time_ns = lambda: int(shifted() * 1e9)
"""
HOUR = 3600


@pytest.fixture
def clocked(tmp_path: Path) -> Iterator[tuple[Stack, Path]]:
    """A stack, and the file whose seconds all of its processes of Python add to the time of day."""
    (tmp_path / "sitecustomize.py").write_text(ANOTHER_TIME)
    (tmp_path / "shift").write_text("0")
    # -S: the observer would not read sitecustomize.py.
    stack = Stack("native", "clock", patches=[("app/server/account.py", '"-S", ', "")], ENABLE_LAB="1")
    stack.environ |= {"PYTHONPATH": str(tmp_path), "CLOCK_SHIFT": str(tmp_path / "shift")}
    for _ in started(stack):
        yield stack, tmp_path / "shift"


def test_a_clock_that_is_set_changes_no_age_no_silence_no_duration_and_no_count(clocked: tuple[Stack, Path]) -> None:
    """By an hour, forth and back, while somebody watches; for the workers, the observer and the live service."""
    stack, shift = clocked
    workers = stack.workers()
    rounds = (HOUR, -HOUR, 0)
    with stack.client() as client, watching(stack) as snapshots:
        before = next(each for each in snapshots if any("workers" in replica for replica in each["replicas"]))
        for seconds in rounds:
            shift.write_text(str(seconds))
            (told,) = re.findall(r"data: ([\d.]+)", client.get("/events?count=1&interval_ms=1").text)
            assert abs(float(told) - time.time() - seconds) < HOUR / 2, "the clock was not set: nothing is proved"
            assert [client.get("/work/io?ms=20").status_code for _ in range(20)] == [200] * 20
            for _ in range(8):
                snapshot = next(snapshots)
                assert 0 < snapshot["now"] - before["now"] < HOUR / 2, "updates are not in their order"
                (replica,) = snapshot["replicas"]
                assert 0 <= replica["age"] < HOUR / 2
                assert all(0 <= worker["silence_seconds"] < HOUR / 2 for worker in replica["workers"])
                before = snapshot
    sent = 21 * len(rounds)
    until("all are counted", lambda: counted(stack, "app") >= sent)
    assert counted(stack, "app") == sent
    assert total(stack, "http_request_duration_seconds_sum") < HOUR / 2
    lag = "app_worker_loop_lag_seconds"
    assert total(stack, f"{lag}_sum") < HOUR / 2
    assert total(stack, "app_worker_exits_total") == 0
    assert stack.workers() == workers
