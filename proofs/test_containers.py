"""What the containers may do and who reaches them: asked of the running containers, not of the YAML."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from proofs.conftest import started
from proofs.stack import Stack, until
from proofs.test_proxy import assert_json_error

SERVICES = ("nginx", "app", "locust", "locust-worker")
pytestmark = pytest.mark.usefixtures("compose_stack")


def execute(container: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", "exec", container, *command], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_is_not_root_and_has_no_capabilities(compose_stack: Stack, service: str) -> None:
    (container,) = compose_stack.containers(service)
    status = dict(
        line.split(":\t", 1)
        for line in execute(container, "cat", "/proc/1/status").stdout.splitlines()
        if ":\t" in line
    )
    assert "0" not in status["Uid"].split()
    assert "0" not in status["Gid"].split()
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, f"{kind} is {status[kind]}"
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_cannot_write_to_its_root_file_system(compose_stack: Stack, service: str) -> None:
    (container,) = compose_stack.containers(service)
    mounts = execute(container, "cat", "/proc/1/mounts").stdout.splitlines()
    (root,) = [line.split() for line in mounts if line.split()[1] == "/"]
    assert "ro" in root[3].split(","), root
    attempt = subprocess.run(
        ["docker", "exec", "-u", "0", container, "touch", "/probe"], capture_output=True, text=True
    )
    assert "Read-only file system" in attempt.stderr, attempt


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_limits_and_a_bounded_log(compose_stack: Stack, service: str) -> None:
    (container,) = compose_stack.containers(service)
    host = compose_stack.inspect(container)["HostConfig"]
    assert host["Memory"] > 0
    assert host["NanoCpus"] > 0
    assert host["PidsLimit"] > 0
    assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "5"}
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert compose_stack.inspect(container)["Config"]["StopTimeout"] == int(compose_stack.rows["STOP_GRACE_SECONDS"])


def test_only_nginx_and_the_web_ui_are_published(compose_stack: Stack) -> None:
    published = {}
    for service in SERVICES:
        (container,) = compose_stack.containers(service)
        ports = compose_stack.inspect(container)["NetworkSettings"]["Ports"]
        published[service] = sorted({f"{b['HostIp']}:{b['HostPort']}" for bound in ports.values() for b in bound or ()})
    assert [p.rpartition(":")[2] for p in published.pop("nginx")] == [str(compose_stack.http_port)] * 2
    assert published == {"app": [], "locust": [f"127.0.0.1:{compose_stack.locust_port}"], "locust-worker": []}


@pytest.mark.parametrize("service", ["locust", "locust-worker"])
def test_locust_reaches_nginx_and_nothing_else(compose_stack: Stack, service: str) -> None:
    (container,) = compose_stack.containers(service)
    (app,) = compose_stack.containers("app")
    (address,) = [n["IPAddress"] for n in compose_stack.inspect(app)["NetworkSettings"]["Networks"].values()]
    connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3)"
    reached = {
        target: execute(container, "python", "-c", connect, *target.split()).returncode == 0
        for target in ("nginx 80", "app 8000", f"{address} 8000", "192.0.2.1 80")
    }
    assert [target for target, yes in reached.items() if yes] == ["nginx 80"]


def test_the_app_reaches_nothing_outside(compose_stack: Stack) -> None:
    (container,) = compose_stack.containers("app")
    routes = execute(container, "cat", "/proc/net/route").stdout.splitlines()[1:]
    assert not [line for line in routes if line.split()[1] == "00000000"], "a default route leads out"


def test_nothing_of_the_build_is_left_in_the_image(compose_stack: Stack) -> None:
    (container,) = compose_stack.containers("app")
    assert execute(container, "which", "uv").returncode != 0
    assert execute(container, "sh", "-c", "ls /root/.cache 2>/dev/null").stdout == ""
    compiled = execute(
        container, "sh", "-c", "ls app/__pycache__/main.*.pyc venv/lib/*/site-packages/fastapi/__pycache__"
    )
    assert compiled.returncode == 0, compiled.stderr


@pytest.fixture(scope="module")
def changing_stack() -> Iterator[Stack]:
    """A stack whose containers come and go."""
    yield from started(Stack("compose", "changing"))


def replica(stack: Stack) -> str | None:
    with stack.client() as client:
        answer = client.get("/")
    return answer.json()["replica"] if answer.status_code == 200 else None


def test_a_recreated_app_container_is_served_within_5_s_without_a_reload(changing_stack: Stack) -> None:
    stack = changing_stack
    (nginx,) = stack.containers("nginx")
    (before,) = stack.containers("app")
    network = f"{stack.project}_app"
    stack.compose("rm", "--stop", "--force", "app")
    # Something else takes the old address, so that the new container gets another.
    subprocess.run(
        ["docker", "run", "--detach", "--rm", "--name", f"{stack.project}-squatter", "--network", network,
         "--label", f"com.docker.compose.project={stack.project}", "nginx:1.30"], check=True, capture_output=True,
    )  # fmt: skip
    try:
        stack.compose("up", "--detach", "--wait", "--no-deps", "app")
        (after,) = stack.containers("app")
        addresses = [stack.inspect(c)["NetworkSettings"]["Networks"] for c in (after,)]
        until("an answer by the new container", lambda: replica(stack) == after[:12], seconds=5)
        assert before != after
        assert addresses
        assert stack.containers("nginx") == [nginx], "nginx was replaced"
    finally:
        subprocess.run(["docker", "rm", "--force", f"{stack.project}-squatter"], capture_output=True)


def test_replicas_that_are_added_are_used_and_those_removed_are_not(changing_stack: Stack) -> None:
    stack = changing_stack
    stack.compose("up", "--detach", "--wait", "--no-recreate", "--scale", "app=3", "app")
    three = {c[:12] for c in stack.containers("app")}
    assert len(three) == 3
    seen: set[str | None] = set()
    until("all three replicas serve", lambda: seen.add(replica(stack)) or seen >= three, seconds=30)
    stack.compose("up", "--detach", "--wait", "--no-recreate", "--scale", "app=1", "app")
    (left,) = stack.containers("app")
    until("nginx knows of the one alone", lambda: {replica(stack) for _ in range(20)} == {left[:12]}, seconds=30)


def test_without_any_app_nginx_answers_502_as_json(changing_stack: Stack) -> None:
    stack = changing_stack
    stack.compose("stop", "app")
    try:
        with stack.client() as client:
            # 504 as long as nginx still knows the address that nobody has any more
            until("nginx knows of no app", lambda: client.get("/").status_code == 502, seconds=10)
            assert_json_error(client.get("/"), 502, "Bad Gateway")
            assert client.get("/nginx-health").status_code == 200
    finally:
        stack.compose("up", "--detach", "--wait", "--no-deps", "app")
