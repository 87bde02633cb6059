"""What Gunicorn, the worker class and the shell are set to do, seen at the workers' own ports and in /proc."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from proofs.conftest import started
from proofs.open_loop import OpenLoop
from proofs.stack import DEADLINE, PATIENT_BUDGET, Stack, until
from proofs.test_stop import draining, said, stop
from proofs.test_upstream import standing_still
from stack.settings import GIVEN, rows

pytestmark = pytest.mark.xdist_group("worker")
LEAKS = {"APP_MODULE": "proofs.apps.leak:app"}
MEMORY_MB = 180  # an idle worker holds 75 to 100


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose application has handlers that leak, hang and fill the thread pool."""
    stack = Stack(
        "native", "worker", **LEAKS, LOG_LEVEL="debug", SLOW_REQUEST_MS="300", WORKER_TIMEOUT_SECONDS="12",
        WORKER_MEMORY_MB=str(MEMORY_MB),
    )  # fmt: skip
    stack.environ["XDG_RUNTIME_DIR"] = str(tmp_path_factory.mktemp("runtime"))
    yield from started(stack)


def straight(stack: Stack, slot: int = 0) -> httpx.Client:
    """A client of one worker, past nginx."""
    return httpx.Client(base_url=f"http://127.0.0.1:{stack.app_port + slot}", timeout=DEADLINE)


def pid_of(stack: Stack, slot: int) -> int:
    """The worker that serves this slot; 0 while a replacement is on its way."""
    (*pids,) = [w["pid"] for w in stack.workers() if w["slot"] == slot and w["state"] == "ready"]
    return pids[0] if len(pids) == 1 else 0


def send_get(connection: socket.socket, path: str) -> None:
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())


def raw_get(connection: socket.socket, path: str) -> str:
    """Ask on this connection, and read the whole answer; "" when it is closed."""
    with suppress(ConnectionError):
        send_get(connection, path)
    return read_answer(connection)


def read_answer(connection: socket.socket) -> str:
    """The whole answer to what was asked on this connection; "" when it is closed."""
    answer = b""
    with suppress(ConnectionError):
        while data := connection.recv(65536):
            answer += data
            head, found, body = answer.lower().partition(b"\r\n\r\n")
            if found and len(body) >= int(head.partition(b"content-length:")[2].split()[0]):
                break
    return answer.decode()


def check_config(stack: Stack, **own: str) -> subprocess.CompletedProcess[str]:
    """What the app says of the stack's rows with these instead, without a start."""
    folders = {"RUN_DIR": str(stack.folder), "DATA_DIR": str(stack.folder)}
    return subprocess.run(
        [sys.executable, "-m", "app.server", "--check-config"],
        cwd=stack.root, env=stack.environ | GIVEN | rows() | stack.rows | folders | own,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def in_flight(stack: Stack) -> float:
    return stack.metric("http_requests_in_flight")


def idle_connection(stack: Stack, slot: int = 0) -> socket.socket:
    """A keep-alive connection to a worker that has served one request."""
    connection = socket.create_connection(("127.0.0.1", stack.app_port + slot), timeout=DEADLINE)
    assert raw_get(connection, "/livez").startswith("HTTP/1.1 200 ")
    return connection


@contextmanager
def loop_held(stack: Stack, folder: Path) -> Iterator[None]:
    """The first worker's loop stands still: what is sent meanwhile it finds at once when it comes out."""
    with idle_connection(stack) as blocker:
        send_get(blocker, f"/held?until={folder}/released")
        until("the loop stands still", (folder / "released.begun").exists)
        try:
            yield
        finally:
            (folder / "released").touch()
        assert read_answer(blocker)


# --- what runs ----------------------------------------------------------------------------------------------


def test_the_application_that_the_row_names_is_served(odd: Stack) -> None:
    with odd.client() as client:
        status = client.get("/nap?ms=0").status_code
    assert status == 200, f"an endpoint of {odd.rows['APP_MODULE']} got {status}"


def test_the_lab_is_closed_unless_it_is_asked_for(odd: Stack) -> None:
    with odd.client() as client:
        status = client.get("/work/block?ms=0").status_code
    assert status == 404, f"/work/block answers {status} without ENABLE_LAB=1"


@pytest.mark.parametrize("slot", [0, 1])
def test_each_worker_has_a_port_of_its_own(odd: Stack, slot: int) -> None:
    with socket.socket() as trial:
        refused = trial.connect_ex(("127.0.0.1", odd.app_port + slot))
    assert not refused, f"nobody listens at the port of worker {slot + 1} of {odd.rows['WORKERS']}"
    pids = set()
    for _ in range(5):
        with straight(odd, slot) as client:
            pids.add(client.get("/").json()["pid"])
    assert pids == {pid_of(odd, slot)}, f"the port of worker {slot + 1} is answered by {len(pids)} processes"


def test_the_master_has_imported_what_every_worker_needs(odd: Stack) -> None:
    """By the libraries in its memory; in each worker the imports are most of the CPU of its start."""
    maps = Path(f"/proc/{odd.master}/maps").read_text()
    missing = [name for name in ("uvloop/loop.", "httptools/parser/", "websockets/speedups.") if name not in maps]
    assert not missing, f"each worker imports {missing}"


def test_a_control_socket_is_not_opened(odd: Stack) -> None:
    found = sorted(path.name for path in Path(odd.environ["XDG_RUNTIME_DIR"]).rglob("*"))
    assert not found, f"the master takes commands at a socket: {found}"


def test_the_heartbeat_is_in_memory(odd: Stack) -> None:
    """On a disk, a write that stalls would be taken for a worker that hangs."""
    files = {}
    for file in Path(f"/proc/{pid_of(odd, 0)}/fd").iterdir():
        with suppress(FileNotFoundError):  # a connection that was closed meanwhile
            files[os.readlink(file)] = file
    beats = [name for name in files if "wgunicorn-" in name]
    assert beats
    for name in beats:
        assert files[name].stat().st_dev == os.stat("/dev/shm").st_dev, f"the heartbeat is on a disk: {name}"


def test_the_budget_holds_the_longest_block_against_the_worker_timeout(odd: Stack) -> None:
    done = check_config(odd, LONGEST_BLOCK_SECONDS="7")
    assert done.returncode != 0, "workers that are killed after 6 s start with code that may block for 7 s"
    assert "LONGEST_BLOCK_SECONDS=7" in done.stderr, done.stderr


# --- the log ------------------------------------------------------------------------------------------------


def app_lines(stack: Stack) -> list[str]:
    """All that the app has written, JSON or not."""
    lines = (stack.folder / "stack.log").read_text().splitlines()
    return [line.partition("| ")[2] for line in lines if " app " in line.partition("|")[0]]


def test_every_line_of_the_log_is_json(odd: Stack) -> None:
    lines = app_lines(odd)
    assert lines
    for line in lines:
        assert line.startswith("{"), f"a line of the app's log is not JSON: {line}"


def test_the_log_begins_at_the_level_that_the_row_names(odd: Stack) -> None:
    levels = {line["level"] for line in odd.app_log()}
    assert "debug" in levels, f"LOG_LEVEL=debug, and the log has only {', '.join(sorted(levels))}"


def test_a_request_that_is_neither_slow_nor_failed_leaves_no_line(odd: Stack) -> None:
    """nginx logs every request. Uvicorn's access log is off as long as Gunicorn has none."""
    with straight(odd) as client:
        assert client.get("/items?n=7").status_code == 200
        slow = client.get("/work/io?ms=400", headers={"X-Request-ID": "the-slow-one"})
        assert slow.status_code == 200
    until("the line of a slow one", lambda: any("the-slow-one" in line for line in app_lines(odd)))
    found = [line for line in app_lines(odd) if "/items" in line]
    assert not found, f"a quick request was logged by the app: {found[0]}"


def test_a_slow_request_is_logged_with_its_id(odd: Stack) -> None:
    def asked() -> bool:
        """Answered before the default of the row, which the machine may take it past."""
        begun = time.monotonic()
        status = client.get("/work/io?ms=500", headers={"X-Request-ID": "slow-and-named"}).status_code
        return status == 200 and time.monotonic() - begun < 0.95

    with straight(odd) as client:
        until("an answer after 500 ms", asked)
        client.get("/work/io?ms=60000")  # its line comes at the deadline, after the other's
    until("the line of a deadline", lambda: [x for x in odd.app_log() if x.get("reason") == "deadline"])
    slow = [line for line in odd.app_log() if line.get("reason") == "slow" and line["duration_ms"] < 950]
    assert slow, f"a request of 500 ms left no line, SLOW_REQUEST_MS={odd.rows['SLOW_REQUEST_MS']}"
    assert "slow-and-named" in [line.get("request_id") for line in slow], "the line of a slow request has no request id"


# --- requests and connections -------------------------------------------------------------------------------


def test_a_handler_that_takes_too_long_is_answered_for(odd: Stack) -> None:
    with straight(odd) as client:
        answer = client.get("/work/io?ms=6000", headers={"X-Request-ID": "too-long-for-us"})
    seconds = int(odd.rows["REQUEST_DEADLINE_SECONDS"])
    assert answer.status_code == 504, f"a handler of 6 s got {answer.status_code}, REQUEST_DEADLINE_SECONDS={seconds}"
    assert answer.json()["request_id"] == "too-long-for-us", f"the 504 does not say which request it was: {answer.text}"
    assert seconds - 0.2 <= answer.elapsed.total_seconds() < 6


@pytest.mark.parametrize("header", ["server", "date"])
def test_an_answer_has_no_header_that_nginx_writes_itself(odd: Stack, header: str) -> None:
    with straight(odd) as client:
        found = client.get("/").headers.get(header)
    assert found is None, f"the app sends {header}: {found}, which nginx drops and writes anew"


def test_an_idle_connection_is_kept_as_long_as_the_row_says(odd: Stack) -> None:
    keep = int(odd.rows["APP_KEEPALIVE_SECONDS"])
    begun = time.monotonic()  # before the answer from which on it is idle
    with idle_connection(odd) as connection:
        assert connection.recv(1) == b""
        seconds = time.monotonic() - begun
    assert seconds >= keep - 0.2, f"the app closed an idle connection after {seconds:.1f} s, not {keep} s"


def test_the_health_of_a_worker_is_its_own_answer(odd: Stack) -> None:
    with straight(odd) as client:
        found = {path: client.get(path).text for path in ("/livez", "/readyz")}
    assert found == {"/livez": "alive\n", "/readyz": "ready\n"}, f"asked for its health, a worker says {found}"


def test_a_full_thread_pool_holds_up_none_but_those_that_need_it(odd: Stack) -> None:
    """All 40 threads of a worker nap: an `async def` answers at once, one more `def` gets 504 at its deadline."""
    deadline = int(odd.rows["REQUEST_DEADLINE_SECONDS"])

    def nap(ms: int) -> tuple[int, float]:
        with straight(odd) as client:
            status = client.get(f"/nap?ms={ms}").status_code
        return status, time.monotonic()

    def threads() -> int:
        return len(list(Path(f"/proc/{pid_of(odd, 0)}/task").iterdir()))

    before = threads()
    with ThreadPoolExecutor(41) as callers:
        napping = [callers.submit(nap, 4000 * deadline) for _ in range(40)]
        busy = partial(odd.metric, "app_worker_threads_busy", 'worker="0"')
        until("40 threads that nap, also after their 504", lambda: busy() >= 40)
        begun = time.monotonic()
        queued = callers.submit(nap, 0)
        with straight(odd) as client:
            answers = [client.get("/").status_code for _ in range(5)]
        answered = time.monotonic()
        status, refused = queued.result()
        assert answers == [200] * 5, f"with a full thread pool, `async def` got {answers}"
        # The first thread is free after four deadlines; and whoever waits for one has 504.
        assert answered - begun < 3 * deadline, f"`async def` waited {answered - begun:.1f} s for the thread pool"
        assert status == 504, f"a `def` that found no thread got {status}"
        assert refused - begun >= deadline - 0.2
        assert {nap.result()[0] for nap in napping} == {504}
        # Those that got 504 have their threads still; none is started beyond them.
        for more in [callers.submit(nap, 0) for _ in range(20)]:
            more.result()
        assert threads() <= before + 40, f"{threads() - before} threads for a pool of 40"
    with straight(odd) as client:
        until("a thread is free again", lambda: client.get("/nap?ms=0").status_code == 200)


def test_a_new_connection_does_not_wait_for_rounds_of_requests_that_came_after_its_own(
    odd: Stack, tmp_path: Path
) -> None:
    """It takes three turns of the loop, and no turn may last as long as all requests that have come."""
    many = 100

    def begun(connection: socket.socket) -> float:
        return float(read_answer(connection).rpartition("\r\n\r\n")[2])

    def ask_again(connection: socket.socket) -> float:
        begun(connection)
        send_get(connection, "/begun?ms=5")  # as soon as it was answered
        return begun(connection)

    with ExitStack() as opened, ThreadPoolExecutor(many) as callers:
        others = [opened.enter_context(idle_connection(odd)) for _ in range(many)]
        with loop_held(odd, tmp_path):
            for connection in others:
                send_get(connection, "/begun?ms=5")
            second = [callers.submit(ask_again, connection) for connection in others]
            new = opened.enter_context(socket.create_connection(("127.0.0.1", odd.app_port), timeout=DEADLINE))
            send_get(new, "/begun?ms=0")
        first = begun(new)
        before = sum(each.result() < first for each in second)
    assert before < many / 2, f"{before} requests that were sent long after the new connection's were begun before it"


def test_turns_are_short_until_the_first_request_of_a_new_connection_begins(odd: Stack, tmp_path: Path) -> None:
    with ExitStack() as opened:
        with loop_held(odd, tmp_path):
            new = opened.enter_context(socket.create_connection(("127.0.0.1", odd.app_port), timeout=DEADLINE))
            send_get(new, "/short")
        first = int(read_answer(new).rpartition("\r\n\r\n")[2])
        later = int(raw_get(new, "/short").rpartition("\r\n\r\n")[2])
    assert first >= 1, "its first request began after a turn that others may have made long"
    assert later == 0, "turns go on being short"


def received(connection: socket.socket) -> int:
    """How many packets with data have come in on it: tcpi_data_segs_in of Linux's struct tcp_info."""
    (count,) = struct.unpack_from("I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160), 152)
    return int(count)


def test_the_head_and_the_body_of_an_answer_are_one_packet(odd: Stack) -> None:
    with idle_connection(odd) as connection:
        before = received(connection)
        for _ in range(10):
            assert raw_get(connection, "/items?n=3").startswith("HTTP/1.1 200 ")
        packets = received(connection) - before
    assert packets == 10, f"10 answers came in {packets} packets"


def test_the_head_of_a_stream_does_not_wait_for_its_first_part(odd: Stack, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    with idle_connection(odd) as connection:
        send_get(connection, f"/late?after={go_on}")
        first = connection.recv(65536)
        assert first.startswith(b"HTTP/1.1 200 "), "the head waited for the body"
        assert b"at last" not in first
        go_on.touch()
        rest = b""
        while b"0\r\n\r\n" not in rest and (part := connection.recv(65536)):
            rest += part
    assert b"at last" in rest


@pytest.mark.parametrize(("method", "path", "status"), [("HEAD", "/late", 405), ("GET", "/docs/no", 404)])
def test_an_answer_without_a_body_and_one_before_a_close_are_whole(
    odd: Stack, method: str, path: str, status: int
) -> None:
    for closing in ("close", "keep-alive"):
        with idle_connection(odd) as connection:
            request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {closing}\r\n\r\n"
            connection.sendall(request.encode())
            answer = connection.recv(65536)
            assert answer.startswith(f"HTTP/1.1 {status} ".encode()), f"{method} {path}, {closing}: {answer!r}"
            assert b"\r\n\r\n" in answer
            if closing == "close":
                assert connection.recv(1) == b""


def test_pipelined_requests_are_answered_whole_and_in_their_order(odd: Stack) -> None:
    wanted = [1, 4, 2, 3]
    batch = "".join(f"GET /items?n={n} HTTP/1.1\r\nHost: localhost\r\n\r\n" for n in wanted)
    answers = b""
    with idle_connection(odd) as connection:
        connection.sendall(batch.encode())
        while answers.count(b'"sku":') < sum(wanted) or not answers.endswith((b"]", b"}")):
            part = connection.recv(65536)
            assert part, f"closed after {answers!r}"
            answers += part
    bodies = [each.partition(b"\r\n\r\n")[2] for each in answers.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert [body.count(b'"sku":') for body in bodies] == wanted, answers


# --- a worker that goes -------------------------------------------------------------------------------------


SLOW = "import time\n\nfrom app.demo.main import app\n\ntime.sleep({seconds})\n"
IMPATIENT = {"APP_MODULE": "app.slow:app", "WORKER_TIMEOUT_SECONDS": "4"}


def test_a_worker_may_start_for_as_long_as_its_row_says() -> None:
    """Longer than its event loop may stand still later."""
    stack = Stack("native", "slow-start", files={"app/slow.py": SLOW.format(seconds=9)}, **IMPATIENT)
    try:
        stack.up()
        assert not [line for line in stack.app_log() if line["level"] in ("error", "critical")]
    finally:
        stack.down()


def test_a_worker_that_starts_for_longer_is_killed_and_the_row_is_named() -> None:
    files = {"app/slow.py": SLOW.format(seconds=600)}
    stack = Stack("native", "no-start", files=files, **IMPATIENT, APP_START_SECONDS="3")
    try:
        done = stack.make("up")
        assert done.returncode != 0
        assert "not ready within 3 s (APP_START_SECONDS)" in done.stdout + done.stderr
    finally:
        stack.down()


def test_a_worker_that_hangs_is_killed_and_replaced(odd: Stack) -> None:
    """Not one that blocks for as long as LONGEST_BLOCK_SECONDS allows; and the other worker answers."""
    before, other = pid_of(odd, 1), pid_of(odd, 0)
    with straight(odd, 1) as client:
        assert client.get("/hang?ms=1800").json() == before

    def hang() -> None:
        with straight(odd, 1) as client, pytest.raises(httpx.HTTPError):
            client.get("/hang?ms=50000")

    hanging = threading.Thread(target=hang)
    hanging.start()
    with straight(odd) as client:
        end = time.monotonic() + 40
        while pid_of(odd, 1) in (before, 0) and time.monotonic() < end:
            assert client.get("/").json()["pid"] == other
            time.sleep(0.1)
    hanging.join(DEADLINE)
    assert pid_of(odd, 1) not in (before, 0), "a worker hung for 40 s and was not replaced"


def test_workers_that_stood_still_with_their_master_are_not_taken_for_hung() -> None:
    """As with a container that is paused, or its machine: the master goes on before its workers do."""
    stack = Stack("native", "standstill", WORKER_TIMEOUT_SECONDS="4")
    try:
        stack.up()
        workers = [worker["pid"] for worker in stack.workers()]
        with standing_still(workers):
            with standing_still([stack.master]):
                time.sleep(6)
            time.sleep(0.1)  # in which the master looks
        time.sleep(2)  # and looks again
        assert not said(stack, "WORKER TIMEOUT")
        assert [worker["pid"] for worker in stack.workers()] == workers
    finally:
        stack.down()


@pytest.fixture
def leaking() -> Iterator[Stack]:
    yield from started(Stack("native", "leaking", **PATIENT_BUDGET | LEAKS, WORKER_MEMORY_MB=str(MEMORY_MB)))


def test_a_worker_that_holds_too_much_memory_is_replaced_and_nothing_is_lost(leaking: Stack) -> None:
    stack = leaking
    before, other = pid_of(stack, 1), pid_of(stack, 0)
    with OpenLoop(stack, rate=50) as load:
        with straight(stack, 1) as client:
            assert client.get(f"/leak?mb={MEMORY_MB}").json() == before
        until_replaced = time.monotonic() + 20
        while pid_of(stack, 1) in (before, 0) and time.monotonic() < until_replaced:
            load.run_for(0.1)
        replaced = pid_of(stack, 1) not in (before, 0)
        end = time.monotonic() + (DEADLINE if replaced else 0)
        while Path(f"/proc/{before}").exists() and time.monotonic() < end:  # the old one drains
            load.run_for(0.1)
    assert replaced, f"a worker that holds more than WORKER_MEMORY_MB={MEMORY_MB} was not replaced in 20 s"
    load.outcome.assert_nothing_lost_or_doubled()
    until("the end of the old one", lambda: not Path(f"/proc/{before}").exists())
    assert pid_of(stack, 0) == other, "the other worker was replaced as well"
    asks = f"WORKER_MEMORY_MB={MEMORY_MB}: asking for a replacement"
    until("the line", lambda: any(line["pid"] == before and asks in line["message"] for line in stack.app_log()))


@pytest.fixture(scope="module")
def small() -> Iterator[Stack]:
    """Four workers with a limit that even a new one exceeds; each goes after 100 to 1,100 requests."""
    rows = {
        "WORKERS": "4",
        "MAX_REQUESTS": "100",
        "MAX_REQUESTS_JITTER": "1000",
        "WORKER_MEMORY_MB": "20",
        "WORKER_TIMEOUT_SECONDS": "60",
    }
    yield from started(Stack("native", "recycling", **rows))


def test_a_memory_limit_below_a_new_worker_is_not_applied(small: Stack) -> None:
    """Or each replacement would be replaced in turn, for ever."""
    begins = "WORKER_MEMORY_MB=20 is less than a new worker holds"

    def lines() -> list[dict[str, Any]]:
        return [line for line in small.app_log() if line["message"].startswith(begins)]

    until("a line of each worker", lambda: len(lines()) >= 4)
    said = lines()
    assert len(said) == 4
    assert {line["level"] for line in said} == {"error"}
    assert not [line for line in small.app_log() if "asking for a replacement" in line["message"]]


@pytest.fixture(scope="module")
def recycled(small: Stack) -> dict[int, int]:
    """For each of the first workers, after how many requests it was seen to go; all get the same number. 0: never."""
    first = {worker["slot"]: worker["pid"] for worker in small.workers()}
    gone = dict.fromkeys(first.values(), 0)
    # So few at a time that four workers whose numbers differ are not seen to go in one step: 1 of 60,000 runs.
    step = 25
    batch = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" * step
    for sent in range(step, 1200 + step, step):
        for slot, pid in first.items():
            if not gone[pid]:
                with socket.create_connection(("127.0.0.1", small.app_port + slot), timeout=DEADLINE) as connection:
                    connection.sendall(batch)
                    answers = b""
                    while answers.count(b"alive\n") < step and (data := connection.recv(65536)):
                        answers += data
        time.sleep(0.3)  # a worker looks at its count ten times in a second
        serving = {worker["pid"] for worker in small.workers() if worker["state"] == "ready"}
        gone.update({pid: sent for pid, at in gone.items() if not at and pid not in serving})
    return gone


def test_a_worker_is_replaced_after_so_many_requests(recycled: dict[int, int]) -> None:
    stayed = [pid for pid, sent in recycled.items() if not sent]
    assert not stayed, f"{len(stayed)} of 4 workers served 1,200 requests and stay, MAX_REQUESTS=100 and 1,000 more"


def test_workers_do_not_go_all_at_once(recycled: dict[int, int]) -> None:
    counts = set(recycled.values())
    assert len(counts) > 1, f"all 4 workers were replaced after {counts.pop()} requests"


def test_no_worker_leaves_before_its_replacement_stands(small: Stack, recycled: dict[int, int]) -> None:
    left = {line["pid"] for line in small.app_log() if line["message"].startswith("draining:")}
    asked = {line["pid"] for line in small.app_log() if "asking for a replacement" in line["message"]}
    assert left
    assert left <= asked, f"{len(left - asked)} of {len(left)} workers left without asking for a replacement"


# --- a stop -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped() -> Iterator[tuple[Stack, dict[str, Any]]]:
    """A stop of a stack with idle connections, and with handlers that are not done: a thread, which cannot be
    cancelled, in one worker, and in the other one that takes no notice of it.
    """
    patient = {"DRAIN_SECONDS": "6", "UVICORN_GRACEFUL_SECONDS": "7", "GUNICORN_GRACEFUL_SECONDS": "15"}
    stack = Stack("native", "leaving", **LEAKS, **patient, STOP_GRACE_SECONDS="20", APP_KEEPALIVE_SECONDS="10")
    found: dict[str, Any] = {}
    try:
        stack.up()
        with straight(stack, 1) as client, idle_connection(stack) as deaf:
            send_get(deaf, "/deaf?ms=50000")
            found["endless"] = client.get("/nap?ms=50000").status_code
            found["metrics"] = list(Path("/dev/shm").glob(f"fastapi-stack-metrics-{stack.master}-*"))
            idle = {path: idle_connection(stack) for path in ("/livez", "/readyz", "/")}
            leaving = stop(stack)
            until("the drain", lambda: draining(stack))
            time.sleep(0.5)  # an idle connection would be closed within 0.1 s
            for path, connection in idle.items():
                found[path] = raw_get(connection, path)
                connection.close()
            leaving.join(2 * DEADLINE)
        yield stack, found
    finally:
        stack.down()


Stopped = tuple[Stack, dict[str, Any]]


def test_an_idle_connection_answers_on_for_the_drain(stopped: Stopped) -> None:
    answer = stopped[1]["/"]
    assert answer, "the app closed an idle connection as it began to stop: nginx may be sending on it"
    assert answer.startswith("HTTP/1.1 200 ")
    assert "connection: close" in answer


def test_a_worker_that_drains_is_alive_but_not_ready(stopped: Stopped) -> None:
    alive, ready = (stopped[1][path].partition("\r\n")[0] for path in ("/livez", "/readyz"))
    assert ready == "HTTP/1.1 503 Service Unavailable", f"while it drains, a worker says it is ready: {ready}"
    assert alive == "HTTP/1.1 200 OK", f"while it drains, a worker does not say that it lives: {alive}"


def test_a_request_that_does_not_end_is_cut_off_before_the_worker_is_killed(stopped: Stopped) -> None:
    assert stopped[1]["endless"] == 504
    with suppress(AssertionError):
        until("both lines", lambda: len(said(stopped[0], "Application shutdown complete")) == 2, seconds=20)
    ended = len(said(stopped[0], "Application shutdown complete"))
    assert ended == 2, f"in {2 - ended} of 2 workers the application's lifespan did not end: it was killed"
    assert said(stopped[0], "cancelling 1 requests after UVICORN_GRACEFUL_SECONDS")


def test_the_counters_of_a_stopped_app_are_not_left_in_memory(stopped: Stopped) -> None:
    folders = stopped[1]["metrics"]
    assert len(folders) == 1
    assert not folders[0].exists(), "/dev/shm keeps the counters of an app that has stopped"


def test_a_worker_that_cannot_stop_is_killed_in_time() -> None:
    """Its event loop stands still; Gunicorn waits as long as its row says, and not its default of 30 s."""
    short = {"UVICORN_GRACEFUL_SECONDS": "3", "GUNICORN_GRACEFUL_SECONDS": "4"}
    stack = Stack("native", "hung", **LEAKS, **short, WORKER_TIMEOUT_SECONDS="100")

    def hang() -> None:
        with straight(stack) as client, pytest.raises(httpx.HTTPError):
            client.get("/hang?ms=55000")

    try:
        stack.up()
        hanging = threading.Thread(target=hang)
        hanging.start()
        until("the handler has begun", lambda: in_flight(stack) == 1)
        begun = time.monotonic()
        stop(stack).join(DEADLINE)
        seconds = time.monotonic() - begun
        hanging.join(DEADLINE)
    finally:
        stack.down()
    assert seconds >= 3.8
    assert seconds < 20, f"a stop with a worker that hangs took {seconds:.0f} s, GUNICORN_GRACEFUL_SECONDS=4"
