"""What a container may use, when it counts as well, and how it starts: asked of containers of one service alone."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest

from proofs.conftest import require_engine
from proofs.stack import Stack, until
from proofs.test_proxy import assert_json_error

SERVICES = ("nginx", "app", "live", "locust", "locust-worker")
LIMITED = ("nginx", "app", "locust")  # locust-worker is made after locust
MEMORY_MB = {"nginx": 96, "app": 256, "locust": 150}
PIDS = {"nginx": 20, "app": 200, "locust": 40}
TMP_MB = {"nginx": 20, "app": 21}
TCP_BYTES = "50000"
# Longer than the ten seconds that an engine waits by itself.
GRACE_SECONDS = 13
ROWS = (
    {f"{service.upper()}_MEMORY": f"{MEMORY_MB[service]}m" for service in LIMITED}
    | {f"{service.upper()}_PIDS": str(PIDS[service]) for service in LIMITED}
    | {f"{service.upper()}_TMP": f"{megabytes}m" for service, megabytes in TMP_MB.items()}
    | {"APP_SOCKET_BUFFER_BYTES": TCP_BYTES}
    # The app starts with them only if the space budget holds.
    | {"NGINX_MAX_UPLOADS_IN_FLIGHT": "100", "CLIENT_MAX_UPLOADS_IN_FLIGHT": "20", "WORKER_MEMORY_MB": "50"}
    | {"APP_MAX_REQUESTS_IN_FLIGHT": "10", "CLIENT_MAX_REQUESTS_IN_FLIGHT": "20", "NGINX_MAX_REQUESTS_IN_FLIGHT": "40"}
    | {"NGINX_WORKER_CONNECTIONS": "208", "NGINX_WORKERS": "1"}
    | {"APP_REPLICAS": "3", "STOP_GRACE_SECONDS": str(GRACE_SECONDS)}
)
# These wait for seconds that the engine counts: begun before the first test, looked at by the last.
pytestmark = [pytest.mark.usefixtures("stopping", "frozen"), pytest.mark.xdist_group("compose")]


@pytest.fixture(scope="module")
def bare() -> Iterator[Stack]:
    """A stack that is built and not started: each test starts what it needs."""
    require_engine()
    stack = Stack("compose", "bare", **ROWS, LOCUST="on")
    try:
        stack.compose("build", "--quiet")
        yield stack
    finally:
        # by force: most of them do not listen to TERM
        subprocess.run(["docker", "rm", "--force", "--volumes", *made(stack)], capture_output=True)
        stack.down()


def made(stack: Stack, *labels: str) -> list[str]:
    """The ids of all containers of this stack with these labels of Compose's, running or not."""
    wanted = [f"project={stack.project}", *labels]
    filters = [argument for label in wanted for argument in ("--filter", f"label=com.docker.compose.{label}")]
    return subprocess.check_output(["docker", "ps", "--all", "--quiet", *filters], text=True).split()


def apart(stack: Stack, service: str, script: str) -> str:
    """Start a container of this service that runs `script` in the service's stead; its id."""
    command = ["run", "--detach", "--no-deps", "--entrypoint", "sh", service, "-c", script]
    return stack.compose(*command).split()[-1]


def output(stack: Stack, service: str, script: str, **rows: str) -> str:
    """What such a container prints."""
    command = ["docker", "compose", "run", "--rm", "--no-deps", "--no-TTY", "--entrypoint", "sh", service, "-c", script]
    return subprocess.run(
        command, cwd=stack.root, env=stack.environ | rows, capture_output=True, text=True, timeout=120
    ).stdout


def probes(stack: Stack, container: str) -> list[tuple[float, float, int]]:
    """The last health checks that have ended: begin, end, exit status."""
    log: list[dict[str, Any]] = stack.inspect(container)["State"]["Health"]["Log"]
    return [(unix_time(probe["Start"]), unix_time(probe["End"]), probe["ExitCode"]) for probe in log]


def unix_time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.fixture(scope="module")
def stopping(bare: Stack) -> Iterator[tuple[str, float]]:
    """A container that does not listen to TERM and is being stopped, and since when."""
    container = apart(bare, "nginx", "trap '' TERM; while :; do sleep 1; done")
    begun = time.time()
    with subprocess.Popen(["docker", "stop", container], stdout=subprocess.DEVNULL) as process:
        yield container, begun
        process.kill()


@pytest.fixture(scope="module")
def frozen(bare: Stack) -> str:
    """An nginx that is well for some seconds; from then on it accepts connections and says nothing."""
    start = "/docker-entrypoint.sh nginx -c /run/nginx/nginx.conf -g 'daemon off;'"
    until_well = "until curl -fsS http://127.0.0.1/nginx-health; do sleep 0.1; done"
    return apart(bare, "nginx", f"{start} & {until_well}; sleep 4; kill -STOP -1; sleep 600")


@pytest.fixture(scope="module")
def silent(bare: Stack) -> dict[str, str]:
    """A container of each service in which nothing answers."""
    return {service: apart(bare, service, "sleep 600") for service in SERVICES}


@pytest.mark.parametrize("service", LIMITED)
def test_a_container_uses_no_more_cpu_than_its_row_says(bare: Stack, service: str) -> None:
    # Little, so that even on a busy machine there would be more for the asking.
    limit = 0.06
    burn = "timeout 2 sh -c 'while :; do :; done' &"
    text = output(bare, service, f"{burn} {burn} {burn} wait; times", **{f"{service.upper()}_CPUS": str(limit)})
    minutes_and_seconds = [each.split("m") for each in text.splitlines()[-1].split()]
    share = sum(60 * float(minutes) + float(seconds[:-1]) for minutes, seconds in minutes_and_seconds) / 2
    assert 0 < share < 2.5 * limit, f"busy processes in {service} got {share:.2f} CPUs, the row says {limit}"


@pytest.mark.parametrize("service", LIMITED)
def test_a_process_that_wants_more_memory_than_its_row_says_is_killed(bare: Stack, service: str) -> None:
    limit = MEMORY_MB[service]
    # An engine gives as much swap as memory, where the host has swap. tail keeps all of a line that does not end.
    want = 2 * limit + 60
    status = output(bare, service, f"head -c {want}m /dev/zero | tail >/dev/null; echo $?").strip()
    assert status == "137", (
        f"a process of {want} MiB lived on in {service} (exit status {status}), the row says {limit}"
    )


@pytest.mark.parametrize("service", LIMITED)
def test_a_container_gets_no_more_processes_than_its_row_says(bare: Stack, service: str) -> None:
    lines = output(bare, service, "n=0; while [ $n -lt 300 ]; do sleep 5 & n=$((n+1)); echo $n; done").split()
    limit = PIDS[service]
    assert len(lines) < limit, f"{service} started {len(lines)} processes, the row says {limit}"
    assert len(lines) > limit / 2, f"{service} got only {len(lines)} processes, the row says {limit}"


@pytest.mark.parametrize(("service", "folder"), [("nginx", "/run/nginx"), ("app", "/tmp")])
def test_a_folder_in_memory_is_no_larger_than_its_row_says(bare: Stack, service: str, folder: str) -> None:
    limit = TMP_MB[service]
    megabytes = int(output(bare, service, f"df -m {folder} | tail -n 1").split()[1])
    assert megabytes == limit, f"{folder} of {service} has {megabytes} MiB, the row says {limit}"


@pytest.mark.parametrize("service", ["nginx", "app"])
def test_the_kernel_holds_no_more_of_a_connection_than_the_row_says(bare: Stack, service: str) -> None:
    most = output(bare, service, "cd /proc/sys/net/ipv4; cat tcp_wmem tcp_rmem").split()[2::3]
    assert most == [TCP_BYTES, TCP_BYTES], (
        f"the kernel holds up to {' and '.join(most)} bytes of a connection of {service}"
    )


def test_the_log_of_a_container_is_bounded_but_not_short(bare: Stack) -> None:
    container = apart(bare, "nginx", "yes $(printf %01000d) | head -c 64000000")
    until("64 MB are written", lambda: bare.inspect(container)["State"]["Status"] == "exited")
    kept = subprocess.run(f"docker logs {container} | wc --bytes", shell=True, check=True, capture_output=True).stdout
    megabytes = int(kept) / 1e6
    assert megabytes < 55, f"after 64 MB of log {megabytes:.0f} MB are kept: nothing bounds it until the disk is full"
    assert megabytes > 15, f"after 64 MB of log the last {megabytes:.0f} MB are kept"


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_does_not_answer_is_not_healthy(bare: Stack, silent: dict[str, str], service: str) -> None:
    until(f"three health checks of {service}", lambda: len(probes(bare, silent[service])) >= 3, seconds=120)
    assert all(status for _, _, status in probes(bare, silent[service])), f"{service} does not answer, and is healthy"


def test_a_container_may_take_its_time_to_start(bare: Stack, silent: dict[str, str]) -> None:
    until("four health checks", lambda: len(probes(bare, silent["nginx"])) >= 4, seconds=120)
    status = bare.inspect(silent["nginx"])["State"]["Health"]["Status"]
    assert status == "starting", f"a container that is not ready after four health checks is {status}"


def test_a_container_that_starts_is_asked_often(bare: Stack, silent: dict[str, str]) -> None:
    until("three health checks", lambda: len(probes(bare, silent["nginx"])) >= 3, seconds=120)
    begins = [begin for begin, _, _ in probes(bare, silent["nginx"])]
    gap = min(later - begin for begin, later in itertools.pairwise(begins))
    assert gap < 3, f"a container that starts is asked every {gap:.0f} s"


def test_the_app_starts_without_the_other_services(bare: Stack) -> None:
    container = bare.compose("run", "--detach", "--no-deps", "app").split()[-1]

    def decided() -> bool:
        state = bare.inspect(container)["State"]
        return not state["Running"] or state["Health"]["Status"] != "starting"

    until("the app is healthy or gone", decided, seconds=120)
    said = subprocess.run(["docker", "logs", "--tail", "1", container], capture_output=True, text=True)
    running = bare.inspect(container)["State"]["Running"]
    assert running, f"the app does not start; its log ends: {(said.stdout + said.stderr).strip()}"


def test_compose_starts_as_many_apps_as_the_row_says(bare: Stack) -> None:
    bare.compose("up", "--no-start", "--no-deps", "app")
    count = len(made(bare, "service=app", "oneoff=False"))
    assert count == 3, f"docker compose up makes {count} containers of the app, the row says 3"


@pytest.fixture(scope="module")
def nginx_alone(bare: Stack) -> str:
    """The id of an nginx container that was started without an app; empty where none could be made."""
    bare.compose("up", "--detach", "--no-deps", "nginx", check=False)
    return next(iter(made(bare, "service=nginx", "oneoff=False")), "")


def ask(url: str) -> httpx.Response | None:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5)
    return None


def served(stack: Stack, container: str) -> httpx.Response:
    """nginx's answer; fails with the end of its log where none comes."""
    end = time.monotonic() + 30
    while (answer := ask(stack.url)) is None:
        if time.monotonic() > end:
            done = subprocess.run(["docker", "logs", "--tail", "1", container], capture_output=True, text=True)
            raise AssertionError(f"nginx does not answer; its log ends: {(done.stdout + done.stderr).strip()}")
        time.sleep(0.1)
    return answer


def test_nginx_starts_without_an_app_and_has_no_welcome_page(bare: Stack, nginx_alone: str) -> None:
    answer = served(bare, nginx_alone)
    assert answer.status_code == 503, f"nginx without an app answers {answer.status_code}: {answer.text[:60]!r}"
    assert_json_error(answer, 503, "Service Unavailable")


def test_a_container_whose_process_ends_is_started_again(bare: Stack, nginx_alone: str) -> None:
    served(bare, nginx_alone)
    # The command may end with the container before its own exit status is known.
    subprocess.run(["docker", "exec", nginx_alone, "sh", "-c", "kill -TERM 1"], capture_output=True)
    until("a container whose process has ended is started again", lambda: bare.inspect(nginx_alone)["RestartCount"])
    served(bare, nginx_alone)


def test_the_web_ui_is_published_and_has_a_worker(bare: Stack) -> None:
    bare.compose("up", "--detach", "--no-deps", "locust", "locust-worker", check=False)
    url = f"http://127.0.0.1:{bare.locust_port}/stats/requests"
    answer = until("an answer of Locust's web UI on its port of the host", lambda: ask(url))
    assert answer.status_code == 200, f"the web UI answers {answer.status_code}"
    until("Locust's web UI shows a worker", lambda: (now := ask(url)) is not None and now.json().get("workers"))


def test_a_healthy_container_is_asked_again_within_seconds(bare: Stack, frozen: str) -> None:
    begins = [begin for begin, _, _ in until_frozen(bare, frozen)]
    gap = begins[-1] - begins[-2]
    assert gap < 20, f"that nginx hangs is noticed late: a healthy container is asked every {gap:.0f} s"


def test_a_health_check_that_hangs_is_ended(bare: Stack, frozen: str) -> None:
    begin, end, _ = until_frozen(bare, frozen)[-1]
    assert end - begin < 15, f"a health check of an nginx that hangs took {end - begin:.0f} s"


def until_frozen(stack: Stack, container: str) -> list[tuple[float, float, int]]:
    """A health check that met the frozen nginx, after the one before it."""

    def found() -> list[tuple[float, float, int]]:
        seen = probes(stack, container)
        # the engine's status for one that it has ended itself
        hung = [number for number, (_, _, status) in enumerate(seen) if status == -1 and number > 0]
        return seen[hung[0] - 1 : hung[0] + 1] if hung else []

    return until("a health check that meets the frozen nginx", found, seconds=120)


def test_a_container_has_its_grace_to_stop(bare: Stack, stopping: tuple[str, float]) -> None:
    container, begun = stopping
    until("the end of the container", lambda: not bare.inspect(container)["State"]["Running"])
    lived = unix_time(bare.inspect(container)["State"]["FinishedAt"]) - begun
    assert lived > GRACE_SECONDS - 1, f"killed {lived:.0f} s after the stop, the row says {GRACE_SECONDS}"
