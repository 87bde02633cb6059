"""How long an answer may take, and what may still happen after it: docs/timeouts.md, seen through nginx."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from proofs.conftest import started
from proofs.stack import DEADLINE, Stack, until
from proofs.test_stop import draining, said, stop
from proofs.test_worker import check_config, in_flight, raw_get, send_get

pytestmark = pytest.mark.xdist_group("answers")
# Each several times as long as a machine stands still; ANSWER_STALL_SECONDS is far from its default nevertheless.
APP = {
    "APP_MODULE": "proofs.apps.answers:app",
    "CLIENT_SEND_TIMEOUT_SECONDS": "5",
    "ANSWER_STALL_SECONDS": "6",
    "PROXY_READ_TIMEOUT_SECONDS": "7",
    "SLOW_REQUEST_MS": "3500",
}


@pytest.fixture(scope="module")
def answering() -> Iterator[Stack]:
    yield from started(Stack("native", "answers", **APP))


def marks(stack: Stack) -> list[str]:
    file = stack.folder / "data/marks"
    return file.read_text().splitlines() if file.exists() else []


def reasons(stack: Stack, path: str) -> list[str]:
    """Why the app logged requests for this path."""
    return [line["reason"] for line in stack.app_log() if "reason" in line and line["message"].endswith(f" {path}")]


# --- an answer that has begun ---------------------------------------------------------------------------------


def test_an_answer_that_has_begun_lasts_as_long_as_it_moves(answering: Stack) -> None:
    """Each twice as long as the deadline, whatever its media type and method."""
    types = ["application/x-ndjson", "text/csv", "text/plain", "application/json", "text/event-stream"]
    seconds = 2 * int(answering.rows["REQUEST_DEADLINE_SECONDS"])
    wanted = "".join(f"{number}\n" for number in range(2 * seconds))

    def ask(method: str, media_type: str) -> str:
        query = {"count": str(2 * seconds), "interval_ms": "500", "media_type": media_type}
        with answering.client() as client:
            return client.request(method, "/parts", params=query).text

    asked = [(method, media_type) for method in ("GET", "POST") for media_type in types]
    with ThreadPoolExecutor(len(asked)) as callers:
        answers = list(callers.map(lambda each: ask(*each), asked))
    cut = [(*each, answer[-20:]) for each, answer in zip(asked, answers, strict=True) if answer != wanted]
    assert not cut, f"cut in their middle: {cut}"
    assert not reasons(answering, "/parts")


def test_a_file_is_sent_in_ranges(answering: Stack) -> None:
    with answering.client() as client:
        answer = client.get("/file", headers={"Range": "bytes=3-10"})
    assert (answer.status_code, answer.text) == (206, "Answers ")


def test_an_event_stream_that_only_pings_is_not_cut(answering: Stack) -> None:
    """It sends something as often as EVENT_STREAM_PING_SECONDS says, for longer than nginx waits for silence."""
    ping = int(answering.rows["EVENT_STREAM_PING_SECONDS"])
    count = 2 * int(answering.rows["PROXY_READ_TIMEOUT_SECONDS"]) // ping
    query = {"count": str(count), "interval_ms": str(1000 * ping), "media_type": "text/event-stream"}
    with answering.client() as client:
        lines = client.get("/parts", params=query).text.splitlines()
    assert len(lines) == count, f"an event stream with a ping every {ping} s was cut after {len(lines)}"


def test_the_budget_holds_the_pings_against_the_bound_on_standing_still(answering: Stack) -> None:
    done = check_config(answering, EVENT_STREAM_PING_SECONDS="4")
    assert done.returncode != 0, "event streams that may be silent for 4 s start where one is cut after 6 s"
    assert "EVENT_STREAM_PING_SECONDS=4" in done.stderr, done.stderr


def test_an_answer_that_stands_still_is_cut_and_its_handler_cancelled(answering: Stack) -> None:
    """Straight to the worker: nginx would cut it as well, and let the handler work on for nobody."""
    stall = int(answering.rows["ANSWER_STALL_SECONDS"])
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", answering.app_port), timeout=4 * stall) as connection:
        send_get(connection, "/stall?name=stalled")
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except TimeoutError:
            pytest.fail(f"an answer has stood still for {time.monotonic() - begun:.0f} s, ANSWER_STALL_SECONDS={stall}")
    assert b"the first" in answer
    assert not answer.endswith(b"0\r\n\r\n"), "the client cannot see that the answer was cut"
    assert time.monotonic() - begun >= stall - 0.2
    until("the handler is cancelled", lambda: "stalled" in marks(answering))
    until("the app logs why", lambda: reasons(answering, "/stall") == ["stall"])


def test_a_client_that_stands_still_is_cut_and_the_handler_with_it(answering: Stack) -> None:
    """nginx is the judge of its client: CLIENT_SEND_TIMEOUT_SECONDS."""
    with socket.create_connection(("127.0.0.1", answering.http_port), timeout=DEADLINE) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        send_get(connection, "/large?mb=200")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")

        def cut() -> bool:
            return any(line["uri"] == "/large?mb=200" for line in answering.access_log())

        until("nginx gives the client up", cut)
    until("nothing is in flight", lambda: in_flight(answering) == 0)


def test_a_client_that_reads_slowly_is_not_cut(answering: Stack) -> None:
    """It takes longer than all the bounds on standing still, in the app and in nginx."""
    seconds = 3 + int(answering.rows["PROXY_READ_TIMEOUT_SECONDS"])
    got, last = 0, b""
    with socket.create_connection(("127.0.0.1", answering.http_port), timeout=DEADLINE) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        send_get(connection, "/large?mb=50")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            part = connection.recv(65536)
            assert part, f"cut after {got} bytes"
            got += len(part)
            time.sleep(0.05)
        while part := connection.recv(1 << 20):  # the rest at full speed
            got += len(part)
            last = (last + part)[-5:]
            if got > 50 << 20 and last == b"0\r\n\r\n":
                break
    assert got > 50 << 20, f"only {got} bytes came"


# --- after the answer -----------------------------------------------------------------------------------------


def test_a_background_task_runs_to_its_end_and_is_no_part_of_its_request(answering: Stack) -> None:
    seconds = 2 * int(answering.rows["REQUEST_DEADLINE_SECONDS"])
    with answering.client() as client:
        assert client.post(f"/later?name=long-after&ms={1000 * seconds}").status_code == 200
    until("the background task is done", lambda: "long-after" in marks(answering))
    assert not reasons(answering, "/later"), "a background task made its request slow"
    until("nothing is in flight", lambda: in_flight(answering) == 0)


# --- a worker that is replaced, and one that is stopped --------------------------------------------------------


@pytest.fixture(scope="module")
def replaced() -> Iterator[Stack]:
    """A worker that is replaced has far longer than one that is stopped."""
    yield from started(Stack("native", "replaced", **APP, REPLACED_WORKER_SECONDS="120"))


def test_a_worker_that_is_replaced_finishes_what_it_has_begun(replaced: Stack) -> None:
    """An answer and a background task, for longer than a stop would let them."""
    with ThreadPoolExecutor(1) as callers, replaced.client() as client:
        long = callers.submit(lambda: httpx.get(f"{replaced.url}/until?name=enough", timeout=2 * DEADLINE).text)
        client.post("/later?name=through-a-reload&wait_for=enough")
        until("the answer has begun", lambda: "begun-enough" in marks(replaced))
        done = replaced.make("reload")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "old workers finish what they have begun" in done.stdout
        assert {worker["state"] for worker in replaced.workers()} == {"ready", "finishing"}
        time.sleep(int(replaced.rows["UVICORN_GRACEFUL_SECONDS"]))  # the time that it would have at a stop
        client.post("/note?name=enough")
        text = long.result()
    assert text.endswith("the end\n"), f"an answer was cut by a reload: {text[-40:]!r}"
    until("the background task is done", lambda: "through-a-reload" in marks(replaced))
    until("the old workers are gone", lambda: {worker["state"] for worker in replaced.workers()} == {"ready"})


def test_a_worker_that_is_replaced_does_not_live_for_good(answering: Stack) -> None:
    with httpx.stream("GET", f"{answering.url}/until?name=never", timeout=2 * DEADLINE) as endless:
        lines = endless.iter_lines()
        next(lines)
        assert answering.make("reload").returncode == 0
        end = time.monotonic() + DEADLINE
        with suppress(httpx.HTTPError):
            while time.monotonic() < end:
                next(lines)
            limit = answering.rows["REPLACED_WORKER_SECONDS"]
            pytest.fail(f"a replaced worker lives after {DEADLINE} s, REPLACED_WORKER_SECONDS={limit}")

    until("a line that says what cut it", lambda: said(answering, "after REPLACED_WORKER_SECONDS"))


@pytest.fixture(scope="module")
def stopped() -> Iterator[tuple[Stack, dict[str, str]]]:
    """A stop while a long answer, two background tasks and an answer that began before it are under way."""
    budget = {
        "UVICORN_GRACEFUL_SECONDS": "20", "GUNICORN_GRACEFUL_SECONDS": "25", "REPLACED_WORKER_SECONDS": "20",
        "STOP_GRACE_SECONDS": "35", "ANSWER_STALL_SECONDS": "20", "PROXY_READ_TIMEOUT_SECONDS": "25",
        "DRAIN_SECONDS": "5",
    }  # fmt: skip
    stack = Stack("native", "stopped", **APP | budget)
    found: dict[str, str] = {}
    try:
        stack.up()
        drain = int(stack.rows["DRAIN_SECONDS"])

        def long() -> None:
            query = {"count": str(4 * drain), "interval_ms": "500", "media_type": "text/csv"}
            found["long"] = httpx.get(f"{stack.url}/parts", params=query, timeout=DEADLINE).text

        with stack.client() as client:
            client.post(f"/later?name=in-time&ms={2000 * drain}")
            client.post("/later?name=never&ms=3600000")
        thread = threading.Thread(target=long)
        thread.start()
        until("the long answer has begun", lambda: in_flight(stack) == 1)
        with socket.create_connection(("127.0.0.1", stack.app_port), timeout=DEADLINE) as connection:
            send_get(connection, "/late?name=now")
            assert b"200 OK" in connection.recv(65536)
            leaving = stop(stack)
            until("the drain", lambda: draining(stack))
            time.sleep(drain + 0.5)
            with (stack.folder / "data/marks").open("a") as file:
                file.write("now\n")
            assert connection.recv(65536) == b"at last"  # in the drain, past DRAIN_SECONDS
            time.sleep(0.5)  # nginx may use it again for UPSTREAM_KEEPALIVE_SECONDS
            found["reused"] = raw_get(connection, "/file")
        thread.join(DEADLINE)
        leaving.join(DEADLINE)
        found["marks"] = (stack.folder / "data/marks").read_text()
        yield stack, found
    finally:
        stack.down()


Stopped = tuple[Stack, dict[str, str]]


def test_at_a_stop_a_long_answer_has_its_time(stopped: Stopped) -> None:
    lines = stopped[1]["long"].splitlines()
    assert len(lines) == 4 * int(stopped[0].rows["DRAIN_SECONDS"])


def test_at_a_stop_background_tasks_have_their_time_and_no_more(stopped: Stopped) -> None:
    assert "in-time" in stopped[1]["marks"].split()
    assert "never" not in stopped[1]["marks"].split()
    until("the line", lambda: said(stopped[0], "cancelling 1 requests after UVICORN_GRACEFUL_SECONDS"))
    assert not said(stopped[0], "SIGKILL")


def test_a_connection_that_turns_idle_late_in_a_drain_can_still_be_used(stopped: Stopped) -> None:
    answer = stopped[1]["reused"]
    assert answer.startswith("HTTP/1.1 200 "), "a connection that nginx may use again was closed as its answer ended"
    assert "connection: close" in answer


# --- one row ----------------------------------------------------------------------------------------------------


def test_one_row_changes_the_longest_wait_and_the_rows_that_follow_are_offered() -> None:
    stack = Stack("native", "longer", **APP)
    try:
        refused = stack.make("up", REQUEST_DEADLINE_SECONDS="60")
        assert refused.returncode == 2, refused.stdout + refused.stderr
        offer = refused.stderr.strip().splitlines()[-1]
        assert offer.startswith("these rows hold: "), refused.stderr
        longer = dict(row.split("=") for row in offer.removeprefix("these rows hold: ").split())
        stack.rows |= longer | {"REQUEST_DEADLINE_SECONDS": "60"}
        stack.environ |= stack.rows
        stack.up()
        with stack.client() as client:
            assert client.get("/late?ms=1000").text == "at last"
    finally:
        stack.down()
    assert not Path(stack.folder).exists()
