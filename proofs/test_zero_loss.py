"""Nothing is lost and nothing is done twice, whatever happens to a worker, a replica or the proxy."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from app.server.settings import read
from proofs import events, open_loop, zero_loss
from proofs.conftest import require_engine, started
from proofs.events import RATE
from proofs.open_loop import BODY, OpenLoop, volleys
from proofs.sockets import SYN_SENT, tcp_sockets
from proofs.stack import DEADLINE, PATIENT_BUDGET, SMALL_BUDGET, Stack, alive, until
from stack.settings import GIVEN, StackSettings, faults, rows

# A client without a CPU for a while uses a connection that has been idle for as long.
PATIENT = PATIENT_BUDGET | {"CLIENT_KEEPALIVE_MIN_SECONDS": "5"}
RECYCLING = PATIENT | {"MAX_REQUESTS": "300", "MAX_REQUESTS_JITTER": "100"}
LASTING = PATIENT | {"MAX_REQUESTS": "0"}  # a worker leaves only when it is told to
# In Compose workers are forked, natively each imports: what is proved of both ways is proved of both rows.
NATIVE = {"WORKER_START": "import"}
# One load at a time: two would be each other's noise.
pytestmark = pytest.mark.xdist_group("load")


@pytest.fixture(scope="module")
def compose_events() -> Iterator[Stack]:
    """One replica, whose workers are replaced after a few hundred requests."""
    require_engine()
    yield from started(Stack("compose", "events", **RECYCLING))


@pytest.fixture(scope="module")
def native_events() -> Iterator[Stack]:
    yield from started(Stack("native", "events", **RECYCLING | NATIVE))


@pytest.fixture
def event_stack(way: str, request: pytest.FixtureRequest) -> Stack:
    found: Stack = request.getfixturevalue(f"{way}_events")
    return found


@pytest.fixture(scope="module")
def two_replicas() -> Iterator[Stack]:
    require_engine()
    yield from started(Stack("compose", "replicas", **LASTING, APP_REPLICAS="2", ENABLE_LAB="1"))


@pytest.fixture
def two(two_replicas: Stack) -> Iterator[Stack]:
    """Two replicas, whatever the test before has done to them."""
    yield two_replicas
    stopped = two_replicas.compose("ps", "--all", "--quiet", "--status", "exited", "app").split()
    if stopped:
        events.docker("rm", "--force", *stopped)
    two_replicas.scale(2)


@pytest.fixture(scope="module")
def native_lasting() -> Iterator[Stack]:
    yield from started(Stack("native", "lasting", **LASTING | NATIVE))


@pytest.fixture
def lasting_stack(way: str, request: pytest.FixtureRequest) -> Stack:
    found: Stack = request.getfixturevalue("two" if way == "compose" else "native_lasting")
    return found


def test_nothing_is_lost_when_an_idle_connection_is_reused_as_its_timeout_ends(event_stack: Stack) -> None:
    idle, app = (float(event_stack.rows[f"{side}_SECONDS"]) for side in ("UPSTREAM_KEEPALIVE", "APP_KEEPALIVE"))
    gaps = [idle + step / 50 for step in range(-10, 11)] + [app + step / 20 for step in (-2, -1, 0, 1, 2)]
    volleys(event_stack, 30, gaps).assert_nothing_lost_or_doubled()


def test_nothing_is_lost_while_a_worker_goes_every_second(event_stack: Stack) -> None:
    with OpenLoop(event_stack, RATE) as load:
        events.recycle(event_stack, load)
    load.outcome.assert_nothing_lost_or_doubled()


def test_nothing_is_lost_in_ten_reloads(event_stack: Stack) -> None:
    with OpenLoop(event_stack, RATE) as load:
        events.reload(event_stack, load)
    load.outcome.assert_nothing_lost_or_doubled()


def test_the_number_of_ready_workers_never_drops(event_stack: Stack) -> None:
    """While a reload and recycling go on, at each look."""
    looks: list[list[str]] = []
    container = event_stack.containers("app")[0] if event_stack.way == "compose" else ""

    def reload() -> None:
        events.reload(event_stack, load, 2)
        while len(looks) <= 10:  # each takes as long as the engine does
            events.reload(event_stack, load, 1)

    with OpenLoop(event_stack, RATE) as load:
        reloading = threading.Thread(target=reload)
        reloading.start()
        while reloading.is_alive():
            looks.append([worker["state"] for worker in event_stack.workers(container)])
            load.run_for(0.02)
        reloading.join()
    serving = [sum(state in ("ready", "retiring") for state in look) for look in looks]
    assert min(serving) >= 2, f"{min(serving)} in {looks[serving.index(min(serving))]}"
    load.outcome.assert_nothing_lost_or_doubled()


def test_nothing_is_lost_in_ten_reloads_of_nginx(compose_events: Stack) -> None:
    with OpenLoop(compose_events, RATE) as load:
        events.nginx_reload(compose_events, load)
    load.outcome.assert_nothing_lost_or_doubled()


@pytest.mark.alone
def test_nothing_is_lost_in_three_deploys_of_one_replica(compose_events: Stack) -> None:
    with OpenLoop(compose_events, RATE) as load:
        events.deploy(compose_events, load)
    load.outcome.assert_nothing_lost_or_doubled()


@pytest.mark.alone
def test_nothing_is_lost_in_three_deploys_of_two_replicas(two: Stack) -> None:
    with OpenLoop(two, RATE) as load:
        events.deploy(two, load)
    load.outcome.assert_nothing_lost_or_doubled()


def test_a_replica_that_was_stopped_before_a_deploy_does_not_come_back(two: Stack) -> None:
    stopped = two.containers("app")[-1]
    events.docker("stop", stopped)
    with OpenLoop(two, RATE) as load:
        events.deploy(two, load, 1)
    assert stopped not in two.compose("ps", "--all", "--quiet", "app").split()
    assert len(two.containers("app")) == 1
    load.outcome.assert_nothing_lost_or_doubled()


def test_nothing_is_lost_when_replicas_come_and_go(compose_events: Stack) -> None:
    with OpenLoop(compose_events, RATE) as load:
        events.scale(compose_events, load)
    load.outcome.assert_nothing_lost_or_doubled()


TIMES = """      GZIP_MIN_BYTES:
      PROXY_CONNECT_TIMEOUT_MS:
      PROXY_NEXT_UPSTREAM_TIMEOUT_MS:
"""


def test_nothing_is_lost_when_the_list_of_replicas_changes_more_than_once_under_a_request() -> None:
    """A try that fails after a change of the list is the last of its chance, though another replica is well.

    The list has one replica at a time: two that accept nothing, one after the other, and then the app.
    """
    require_engine()
    compose = "docker-compose.yml"
    patches = [
        (compose, "      UPSTREAM_HOST: app\n", "      UPSTREAM_HOST: listed\n"),
        # nginx's alone: a try lasts until it is refused below.
        (compose, TIMES, TIMES.replace("MS:", "MS: 60000", 1).replace("MS:\n", "MS: 120000\n", 1)),
    ]
    stack = Stack("compose", "listed", patches=patches, MAX_REQUESTS="0")
    with contextmanager(started)(stack), events.mute_replicas(stack, 2) as mute, ThreadPoolExecutor(1) as thread:
        nginx, app = stack.containers("nginx")[0], stack.containers("app")[0]

        def tried() -> set[str]:
            """The addresses that nginx is connecting to."""
            found = tcp_sockets(events.docker("exec", nginx, "cat", "/proc/net/tcp"))
            return {one.peer for one in found if one.state == SYN_SENT}

        def listed(container: str) -> bool:
            """Whether nginx has it for a new request."""
            with socket.create_connection(("127.0.0.1", stack.http_port), timeout=1) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                with suppress(TimeoutError):
                    return client.recv(64).startswith(b"HTTP/1.1 200 ") and container == app
                return addresses[container] in tried()

        def enters(container: str) -> None:
            events.enter(stack, container, "listed")
            addresses[container] = stack.inspect(container)["NetworkSettings"]["Networks"][f"{stack.project}_app"][
                "IPAddress"
            ]

        def refuses(container: str) -> None:
            """What waits for it is refused when it asks again."""
            rule = ["--append", "OUTPUT", "--destination", addresses[container], "--protocol", "tcp"]
            inside = ["nsenter", "--net", f"--target={stack.inspect(nginx)['State']['Pid']}", "iptables"]
            subprocess.run([*inside, *rule, "--jump", "REJECT", "--reject-with", "tcp-reset"], check=True)

        addresses: dict[str, str] = {}
        first, second = mute
        enters(first)
        until("nginx knows the first", lambda: listed(first))
        headers = {"Content-Type": "application/json", "Idempotency-Key": "listed"}
        post = thread.submit(httpx.post, f"{stack.url}/orders", content=BODY, headers=headers, timeout=2 * DEADLINE)
        for before, after in pairwise([first, second, app]):
            until("only the order waits", lambda: tried() == {addresses[before]})  # noqa: B023
            enters(after)
            events.leave(stack, before)
            until("nginx knows the next", lambda: listed(after))  # noqa: B023
            refuses(before)
        answer = post.result()
        line = until("its line in the log", lambda: [x for x in stack.access_log() if x["method"] == "POST"])[0]
        assert answer.status_code == 201, json.dumps(line)
        assert line["upstream"].count(", app : ") == 2, line


def test_nothing_is_lost_when_a_replica_is_stopped(two: Stack) -> None:
    with OpenLoop(two, RATE) as load:
        events.stop_a_replica(two, load)
    load.outcome.assert_nothing_lost_or_doubled()


def assert_only_in_flight_lost(load: OpenLoop, killed: float) -> None:
    assert not load.outcome.doubled
    assert load.outcome.lost_since(killed) == [], f"lost after the kill at {killed:.2f} s: {load.outcome}"
    assert len(load.outcome.lost) <= open_loop.MOST_UNDER_WAY, f"more than were in flight: {load.outcome}"
    assert load.outcome.applied >= load.outcome.answered["POST"]


def test_a_killed_replica_loses_only_what_it_had_in_flight(two: Stack) -> None:
    with OpenLoop(two, RATE) as load:
        load.run_for(1)
        killed = events.kill_a_replica(two, load)
    assert_only_in_flight_lost(load, killed)


def test_a_killed_worker_loses_only_what_it_had_in_flight(lasting_stack: Stack) -> None:
    with OpenLoop(lasting_stack, RATE) as load:
        load.run_for(1)
        killed = events.kill_a_worker(lasting_stack, load)
    assert_only_in_flight_lost(load, killed)


def test_a_frozen_replica_holds_few_requests_and_is_used_again(two: Stack) -> None:
    """What was sent to it waits for the read timeout; least_conn gives it no more while that waits."""
    read_timeout = int(two.rows["PROXY_READ_TIMEOUT_SECONDS"])
    with OpenLoop(two, RATE) as load:
        load.run_for(1)
        begun, ended = events.pause_a_replica(two, load)
        load.run_for(read_timeout + 1)
    lost = load.outcome.lost
    sent_meanwhile = (ended - begun) * RATE
    assert len(lost) < 0.1 * sent_meanwhile, load.outcome
    assert max(load.outcome.latencies) < read_timeout + 5, "somebody waited for longer than the budget"
    # Those first sent to it may have been due sooner, where the load had no CPU.
    assert not [entry for entry in lost if not begun - 5 <= entry[0] <= ended], load.outcome
    assert not load.outcome.doubled
    names = {container[:12] for container in two.containers("app")}
    with two.client() as client:
        until("both replicas serve", lambda: {client.get("/").json()["replica"] for _ in range(20)} == names)


def test_one_slow_request_holds_up_nobody_else(two: Stack) -> None:
    with OpenLoop(two, RATE) as load:
        load.run_for(1)
        (slow,) = events.slow_requests(two, load)
    # What already waited in that very worker is late with it. Nobody else is.
    lost = {key for _, _, key, _ in load.outcome.lost}
    ids = lost | {slow}
    lines = until("their lines", lambda: found if len(found := served_by(two, ids)) == len(ids) else None)
    assert {lines[key] for key in lost} <= {lines[slow]}, lines
    assert len(lost) < 0.02 * load.outcome.total, load.outcome
    assert not load.outcome.doubled


def served_by(stack: Stack, ids: set[str]) -> dict[str, str]:
    """The workers' addresses by request id."""
    return {line["request_id"]: line["upstream"] for line in stack.access_log() if line["request_id"] in ids}


def test_a_generation_that_does_not_start_leaves_the_old_one_serving(native_events: Stack) -> None:
    """A file that the app imports is broken, then mended."""
    stack = Stack("native", "broken", **PATIENT_BUDGET, patches=[("app/demo/main.py", "LAB = ", "LAB = ")])
    try:
        stack.up()
        main = stack.root / "app/demo/main.py"
        good = main.read_text()
        with OpenLoop(stack, RATE) as load:
            main.write_text(good.replace("LAB = ", "import nowhere_to_be_found\nLAB = ", 1))
            failed = stack.make("reload")
            main.write_text(good)
            mended = stack.make("reload")
        assert failed.returncode != 0
        assert "nowhere_to_be_found" in failed.stderr
        assert mended.returncode == 0, mended.stderr
        load.outcome.assert_nothing_lost_or_doubled()
    finally:
        stack.down()


def test_a_version_that_does_not_start_is_rolled_back(two: Stack) -> None:
    before = set(two.containers("app"))
    with OpenLoop(two, RATE) as load:
        done = two.make("deploy", APP_MODULE="app.nowhere:app")
    assert done.returncode != 0
    assert "APP_MODULE=app.nowhere:app cannot be loaded" in done.stdout
    assert "rolled back" in done.stdout
    assert set(two.containers("app")) == before
    load.outcome.assert_nothing_lost_or_doubled()


def test_a_second_deploy_at_the_same_time_is_refused(two: Stack) -> None:
    with OpenLoop(two, RATE) as load:
        first = threading.Thread(target=events.deploy, args=(two, load, 1))
        first.start()
        lock = Path(f"/tmp/{two.project}-{os.getuid()}.deploy.lock")
        # The kernel's list: to try the lock itself could refuse the first.
        until("the first deploy", lambda: f":{lock.stat().st_ino} " in Path("/proc/locks").read_text())
        second = two.make("deploy")
        first.join()
    assert second.returncode != 0
    assert "another deploy" in second.stderr
    load.outcome.assert_nothing_lost_or_doubled()


def test_a_deploy_of_a_stack_that_is_down_says_so() -> None:
    require_engine()
    stack = Stack("compose", "down")
    try:
        done = stack.make("deploy")
        assert (done.returncode, "make up" in done.stderr) == (1, True), done.stderr
    finally:
        stack.down()


def test_workers_leave_when_their_master_is_gone() -> None:
    stack = Stack("native", "orphans")
    try:
        stack.up()
        workers = [worker["pid"] for worker in stack.workers()]
        (parent,) = {Path(f"/proc/{pid}/stat").read_text().split()[3] for pid in workers}
        stack.kill(int(parent))
        until("the end of the orphans", lambda: not [pid for pid in workers if alive(pid)], seconds=30)
        with socket.socket() as trial:
            assert trial.connect_ex(("127.0.0.1", stack.app_port)) != 0, "something still serves"
    finally:
        stack.down()


def test_a_full_disk_for_logs_stops_nothing() -> None:
    """/dev/full in place of the log files: every write to them fails for lack of space."""
    stack = Stack("native", "fulldisk", **RECYCLING)
    stack.folder.mkdir()
    for name in ("stack.log", "access.log"):
        (stack.folder / name).symlink_to("/dev/full")
    try:
        stack.up()
        with OpenLoop(stack, RATE) as load:
            events.recycle(stack, load, seconds=5)
        load.outcome.assert_nothing_lost_or_doubled()
    finally:
        stack.down()


def test_nothing_is_lost_in_fifty_thousand_requests_in_all(
    compose_events: Stack, request: pytest.FixtureRequest
) -> None:
    """The last of this file. The quicker the machine, the shorter the events: what is missing is sent here."""
    all_of_them = [name for name in globals() if name.startswith("test_")]
    run = {item.originalname for item in request.session.items if isinstance(item, pytest.Function)}
    if not run >= set(all_of_them):
        pytest.skip("only some of the proofs were asked for")
    missing = 50_000 - open_loop.sent_by_this_process
    if missing > 0:
        with OpenLoop(compose_events, RATE) as load:
            while load.outcome.total < missing:
                events.recycle(compose_events, load, 5)
        load.outcome.assert_nothing_lost_or_doubled()
    assert open_loop.sent_by_this_process >= 50_000


@pytest.mark.parametrize("case", zero_loss.CASES, ids=lambda case: case.event)
def test_the_rows_of_the_table_go_together(case: zero_loss.Case) -> None:
    """Otherwise make zero-loss ends in its middle, after a quarter of an hour."""
    table = GIVEN | rows() | SMALL_BUDGET | PATIENT_BUDGET | case.rows
    assert faults(read(StackSettings, table)) == [] or case.both
