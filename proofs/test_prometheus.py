"""Prometheus beside the stack: it finds what there is, each alert comes with its fault, and it can harm nobody."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from prometheus import dashboard
from proofs import certificates
from proofs.conftest import lacks, require_engine, started
from proofs.stack import DEADLINE, Patch, Stack, until
from proofs.test_faults import descriptors, no_descriptors
from proofs.test_live import lose_lines
from proofs.test_worker import pid_of, straight
from stack import debian

pytestmark = pytest.mark.xdist_group("prometheus")
# Seconds instead of minutes; no threshold is another.
FAST: list[Patch] = [
    ("prometheus/prometheus.yml", "scrape_interval: 5s", "scrape_interval: 2s"),
    ("prometheus/prometheus.yml", "scrape_timeout: 4s", "scrape_timeout: 2s"),
    ("prometheus/prometheus.yml", "evaluation_interval: 5s", "evaluation_interval: 1s"),
    *(("prometheus/rules.yml", f"for: {long}", "for: 2s") for long in ("15s", "30s", "1m", "5m")),
]
BACKLOG = 64
CONNECTIONS = 256  # of each of nginx's two workers
# With handlers that leak, fill the thread pool and never end; and little room, so that it is soon taken.
ROWS = {
    "METRICS": "on",
    "ENABLE_LAB": "1",
    "TLS": "files",
    "APP_MODULE": "proofs.apps.leak:app",
    "APP_MAX_REQUESTS_IN_FLIGHT": "8",
    "LISTEN_BACKLOG": str(BACKLOG),
    "NGINX_WORKER_CONNECTIONS": str(CONNECTIONS),
    "NGINX_MAX_REQUESTS_IN_FLIGHT": "64",
    "CLIENT_MAX_REQUESTS_IN_FLIGHT": "60",
    "NGINX_MAX_UPLOADS_IN_FLIGHT": "20",
    "CLIENT_MAX_UPLOADS_IN_FLIGHT": "10",
    "CLIENT_HEADER_TIMEOUT_SECONDS": "20",
    "WORKER_MEMORY_MB": "180",
    "REPLACED_WORKER_SECONDS": "4",
}


def watched(stack: Stack) -> Iterator[Stack]:
    """The stack, once Prometheus has looked at it: increase() sees nothing without a look before."""
    for up in started(stack):
        until("a first look", lambda: query(stack, "nginx_up") and query(stack, "app_generation"))
        yield up


@pytest.fixture(scope="module")
def native_metrics() -> Iterator[Stack]:
    if not debian.found("prometheus"):
        lacks("prometheus is not installed (apt-get install prometheus)", "REQUIRE_PROMETHEUS")
    with tempfile.TemporaryDirectory() as folder:
        yield from watched(Stack("native", "alerts", patches=FAST, **ROWS, TLS_FOLDER=folder))


@pytest.fixture(scope="module")
def compose_metrics() -> Iterator[Stack]:
    require_engine()
    yield from watched(Stack("compose", "alerts", patches=FAST, METRICS="on"))


@pytest.fixture(params=["native", "compose"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def metrics(way: str, request: pytest.FixtureRequest) -> Stack:
    stack: Stack = request.getfixturevalue(f"{way}_metrics")
    return stack


def asked(stack: Stack, what: str, **parameters: str) -> Any:
    url = f"http://127.0.0.1:{stack.prometheus_port}/api/v1/{what}"
    answer = httpx.get(url, params=parameters, timeout=DEADLINE).json()
    assert answer["status"] == "success", answer
    return answer["data"]


def query(stack: Stack, expression: str) -> list[float]:
    """The values of a query, now."""
    return [float(found["value"][1]) for found in asked(stack, "query", query=expression)["result"]]


def firing(stack: Stack) -> set[str]:
    return {alert["labels"]["alertname"] for alert in asked(stack, "alerts")["alerts"] if alert["state"] == "firing"}


def fires(stack: Stack, *alerts: str) -> None:
    until(f"{alerts} among those that fire", lambda: set(alerts) <= firing(stack))


def ends(stack: Stack, *alerts: str) -> None:
    until(f"none of {alerts} among those that fire", lambda: not set(alerts) & firing(stack))


def calm(stack: Stack, *alerts: str) -> None:
    """None of them fires yet: what comes is their cause."""
    assert not set(alerts) & firing(stack), f"{firing(stack)} before there is a cause"


def test_every_query_of_the_dashboard_gives_data_and_no_alert_comes_without_a_fault(metrics: Stack) -> None:
    with metrics.client() as client:

        def nothing_missing() -> bool:
            for path in ("/", "/items", "/work/io?ms=20"):
                assert client.get(path).status_code == 200
            found = [query(metrics, expression) for expression in dashboard.queries()]
            # A number that is none is a share of no requests.
            return all(any(value == value for value in values) for values in found)

        until("data for every query", nothing_missing)
    wrong = [rule for group in asked(metrics, "rules")["groups"] for rule in group["rules"] if rule["health"] == "err"]
    assert not wrong, wrong
    # How fast a busy machine answers is no fault of the stack.
    until("no other alert", lambda: firing(metrics) - {"SlowRequests"} == set())


def serving(stack: Stack, slot: int) -> int:
    """The pid of this slot's worker, once there is one alone."""
    pid: int = until("a worker", lambda: pid_of(stack, slot))
    return pid


@contextlib.contextmanager
def meanwhile(
    stack: Stack, path: str, count: int, client_of: Callable[[Stack], httpx.Client] = Stack.client
) -> Iterator[None]:
    """`count` clients ask for `path` over and over."""
    over = threading.Event()

    def ask() -> None:
        with client_of(stack) as client:
            while not over.is_set():
                client.get(path)
                over.wait(0.05)

    with ThreadPoolExecutor(count) as pool:
        for _ in range(count):
            pool.submit(ask)
        try:
            yield
        finally:
            over.set()


def test_a_blocked_event_loop_is_an_alert(native_metrics: Stack) -> None:
    with meanwhile(native_metrics, "/work/block?ms=3500", 1):
        fires(native_metrics, "EventLoopBlocked")
    until("its end", lambda: "EventLoopBlocked" not in firing(native_metrics))


def test_a_worker_that_is_killed_is_an_alert(native_metrics: Stack) -> None:
    native_metrics.kill(native_metrics.workers()[0]["pid"])
    fires(native_metrics, "WorkersKilled")


def test_a_reload_that_fails_is_an_alert(native_metrics: Stack) -> None:
    code = native_metrics.root / "app/demo/main.py"
    before = code.read_text()
    code.write_text(f"{before}\nraise RuntimeError('a fault')\n")
    try:
        assert native_metrics.make("reload").returncode
    finally:
        code.write_text(before)
    fires(native_metrics, "ReloadFailed")


def test_answers_that_come_too_late_are_alerts(native_metrics: Stack) -> None:
    with meanwhile(native_metrics, "/work/io?ms=5000", 4):
        fires(native_metrics, "DeadlinesMissed", "ErrorBudget", "SlowRequests")


def test_requests_that_are_refused_are_an_alert(native_metrics: Stack) -> None:
    with meanwhile(native_metrics, "/work/io?ms=1000", 24):
        fires(native_metrics, "RequestsRefused")


def test_a_full_thread_pool_is_an_alert(native_metrics: Stack) -> None:
    """Sixty clients of one worker ask for more than its 40 threads can do."""
    calm(native_metrics, "ThreadPoolFull")
    with meanwhile(native_metrics, "/nap?ms=3000", 60, straight):
        fires(native_metrics, "ThreadPoolFull")
    ends(native_metrics, "ThreadPoolFull")


def test_a_worker_that_is_cut_off_from_its_requests_is_an_alert(native_metrics: Stack) -> None:
    calm(native_metrics, "DrainCut")
    pid = serving(native_metrics, 0)
    with straight(native_metrics) as client, client.stream("GET", "/drip") as answer:
        parts = answer.iter_raw()
        next(parts)
        native_metrics.kill(pid, "TERM")  # to a worker it means: leave when another is ready
        with contextlib.suppress(httpx.HTTPError):
            for _ in parts:
                pass
    fires(native_metrics, "DrainCut")


def test_a_worker_near_its_limit_of_memory_is_an_alert(native_metrics: Stack) -> None:
    """It leaks until a twentieth of its room is left, at which it is not replaced yet."""
    stack = native_metrics
    calm(stack, "MemoryNear")
    pid = serving(stack, 1)
    limit = int(stack.rows["WORKER_MEMORY_MB"]) << 20
    with straight(stack, 1) as client:
        while stack.metric("app_worker_memory_bytes", 'worker="1"') < 0.93 * limit:
            assert client.get("/leak?mb=2").json() == pid, "it was replaced on the way"
    fires(stack, "MemoryNear")
    stack.kill(pid, "TERM")
    ends(stack, "MemoryNear")


def test_a_worker_whose_descriptors_are_used_up_is_an_alert_then_it_does_not_accept_then_it_refuses(
    native_metrics: Stack,
) -> None:
    """Clients of one worker that stay, thirty of them, then so many that its queue is full."""
    stack, pid = native_metrics, serving(native_metrics, 0)
    calm(stack, "DescriptorsNear", "WorkerDoesNotAccept", "ListenOverflow")
    used = len(os.listdir(f"/proc/{pid}/fd"))
    with ExitStack() as opened, descriptors(pid, used + 30):

        def connect(count: int) -> None:
            for _ in range(count):
                client = opened.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", stack.app_port))

        connect(27)  # room is left, and little of it
        fires(stack, "DescriptorsNear")
        calm(stack, "WorkerDoesNotAccept", "ListenOverflow")
        connect(30)
        fires(stack, "WorkerDoesNotAccept")
        calm(stack, "ListenOverflow")
        connect(BACKLOG + 10)
        fires(stack, "ListenOverflow")
    ends(stack, "DescriptorsNear", "WorkerDoesNotAccept")
    assert serving(stack, 0) == pid, "the worker was replaced"


def test_a_worker_that_nobody_can_replace_is_an_alert(native_metrics: Stack) -> None:
    """The master has no descriptor left to start one with."""
    stack = native_metrics
    calm(stack, "WorkersMissing")
    with no_descriptors(stack.master):
        stack.kill(serving(stack, 0))
        fires(stack, "WorkersMissing")
    ends(stack, "WorkersMissing")


def test_clients_that_find_nginxs_table_full_are_an_alert(native_metrics: Stack) -> None:
    """They begin a header each: idle connections nginx would close for others."""
    stack = native_metrics
    calm(stack, "ConnectionsDropped")
    with ExitStack() as opened:
        for _ in range(2 * CONNECTIONS + 50):
            connection = opened.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                connection.settimeout(DEADLINE)
                connection.connect(("127.0.0.1", stack.http_port))
                connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
    fires(stack, "ConnectionsDropped")
    with stack.client() as client:
        assert client.get("/items").status_code == 200


def test_a_certificate_that_ends_soon_is_an_alert(native_metrics: Stack) -> None:
    stack = native_metrics
    folder = Path(stack.rows["TLS_FOLDER"])
    before = (folder / "site.pem").read_bytes()

    def severities() -> set[str]:
        alerts = asked(stack, "alerts")["alerts"]
        found = [each for each in alerts if each["labels"]["alertname"] == "CertificateExpires"]
        return {each["labels"]["severity"] for each in found if each["state"] == "firing"}

    calm(stack, "CertificateExpires")
    try:
        certificates.put(folder, certificates.site(end=6))
        until("a ticket", lambda: severities() == {"ticket"})
        certificates.put(folder, certificates.site(begin=-2, end=-1))  # over
        until("a call too", lambda: severities() == {"ticket", "page"})
        certificates.put(folder, b"")
        until("that there is none", lambda: query(stack, "tls_certificate_not_after_timestamp_seconds") == [0])
        # A scrape that a slow machine has missed ends both, until the next.
        until("both again", lambda: severities() == {"ticket", "page"})
    finally:
        certificates.put(folder, before)
    ends(stack, "CertificateExpires")


# --- in containers ------------------------------------------------------------------------------------------


def execute(stack: Stack, *command: str, seconds: float = DEADLINE) -> subprocess.CompletedProcess[str]:
    (container,) = stack.containers("prometheus")
    return subprocess.run(["docker", "exec", container, *command], capture_output=True, text=True, timeout=seconds)


def test_prometheus_is_on_loopback_with_no_rights_and_bounds(compose_metrics: Stack) -> None:
    stack = compose_metrics
    (container,) = stack.containers("prometheus")
    found = stack.inspect(container)
    ports = [bound for each in found["NetworkSettings"]["Ports"].values() for bound in each or ()]
    assert [f"{bound['HostIp']}:{bound['HostPort']}" for bound in ports] == [f"127.0.0.1:{stack.prometheus_port}"]
    host = found["HostConfig"]
    assert all(host[limit] for limit in ("Memory", "NanoCpus", "PidsLimit")), "a limit is missing"
    status = execute(stack, "cat", "/proc/1/status").stdout
    assert "CapBnd:\t0000000000000000" in status, "it has capabilities"
    assert "NoNewPrivs:\t1" in status, "a setuid program gives it more rights"
    assert "Uid:\t0" not in status, "it is root"
    assert execute(stack, "touch", "/etc/written").returncode, "its root file system is writable"
    flags = asked(stack, "status/flags")
    assert (flags["storage.tsdb.retention.time"], flags["storage.tsdb.retention.size"]) in (
        ("15d", "1GiB"),
        ("15d", "1024MB"),
    )
    (data,) = [mount for mount in found["Mounts"] if mount["Destination"] == "/prometheus"]
    assert data["Name"] == f"{stack.project}_prometheus", "what it keeps goes with its container"
    # From another start on: of the first one's looks at its health the engine may have forgotten the first by now.
    subprocess.run(["docker", "restart", container], check=True, capture_output=True)

    def asked_after() -> list[float]:
        state = stack.inspect(container)["State"]
        begun = datetime.fromisoformat(state["StartedAt"])
        looks = [datetime.fromisoformat(each["Start"]) for each in state["Health"]["Log"]]
        return [(look - begun).total_seconds() for look in looks if look > begun]

    waited, *_ = until("a look at its health", asked_after)
    assert waited < 20, f"nobody asked for its health for {waited:.0f} s"
    until("its answer", lambda: stack.inspect(container)["State"]["Health"]["Status"] == "healthy")


def test_the_health_check_notices_a_prometheus_that_stands_still(compose_metrics: Stack) -> None:
    stack = compose_metrics
    (container,) = stack.containers("prometheus")
    found = stack.inspect(container)
    check = found["Config"]["Healthcheck"]["Test"][1:]
    assert execute(stack, *check).returncode == 0
    os.kill(found["State"]["Pid"], signal.SIGSTOP)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert execute(stack, *check, seconds=4).returncode, "it is called healthy"
    finally:
        os.kill(found["State"]["Pid"], signal.SIGCONT)


def test_prometheus_cannot_name_a_client_for_it_does_not_reach_the_app(compose_metrics: Stack) -> None:
    stack = compose_metrics

    def address(service: str, network: str) -> str:
        (container,) = stack.containers(service)
        return str(stack.inspect(container)["NetworkSettings"]["Networks"][f"{stack.project}_{network}"]["IPAddress"])

    app, live = address("app", "app"), address("live", "edge")
    ask = ("wget", "-q", "--header", "Host: live", "-O", "-")
    reached = [
        url
        for url, seconds in ((f"{app}:8000/livez", 2), (f"{app}:7999/metrics", 2), (f"{live}:8090/metrics", 20))
        if execute(stack, *ask, "-T", f"{seconds}", f"http://{url}").returncode == 0
    ]
    assert reached == [f"{live}:8090/metrics"]


def test_replicas_are_found_and_one_that_does_not_answer_is_an_alert(compose_metrics: Stack) -> None:
    stack = compose_metrics
    stack.scale(2)
    until("metrics of both replicas", lambda: len(query(stack, "app_generation")) == 2)
    (silent, _) = stack.containers("app")
    subprocess.run(["docker", "pause", silent], check=True, capture_output=True)
    try:
        fires(stack, "ReplicaSilent")
        assert "Down" not in firing(stack)
    finally:
        subprocess.run(["docker", "unpause", silent], check=True, capture_output=True)
    until("its end", lambda: "ReplicaSilent" not in firing(stack))
    stack.compose("stop", "app")
    fires(stack, "Down", "ReplicasMissing")
    stack.compose("start", "app")
    until("its end", lambda: "Down" not in firing(stack))
    stack.scale(1)


@pytest.mark.parametrize(("service", "alert"), [("nginx", "Down"), ("live", "MetricsMissing")])
def test_what_is_gone_is_an_alert(compose_metrics: Stack, service: str, alert: str) -> None:
    stack = compose_metrics
    stack.compose("stop", service)
    try:
        fires(stack, alert)
    finally:
        stack.compose("start", service)
    until("its end", lambda: alert not in firing(stack))


def test_requests_that_are_missing_in_the_counts_are_an_alert(compose_metrics: Stack) -> None:
    calm(compose_metrics, "CountsLost")
    assert lose_lines(compose_metrics, 900) > 0
    fires(compose_metrics, "CountsLost")


def test_without_the_row_nothing_of_it_runs_and_what_it_kept_stays(compose_metrics: Stack) -> None:
    stack = compose_metrics
    until("what can be kept", lambda: query(stack, "nginx_up"))
    since = time.time()
    done = stack.make("up", METRICS="off")
    assert done.returncode == 0, done.stderr
    assert not stack.containers("prometheus")
    done = stack.make("up")
    assert done.returncode == 0, done.stderr
    old = asked(stack, "query", query="nginx_up", time=str(since))["result"]
    assert old, "what Prometheus kept went with its container"
