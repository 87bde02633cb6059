"""What the containers may do and who reaches them: asked of the running containers, not of the YAML."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest

from proofs.conftest import require_engine, started
from proofs.stack import ROOT, Stack, until
from proofs.test_proxy import assert_json_error

SERVICES = ("nginx", "app", "live", "locust", "locust-worker")
pytestmark = pytest.mark.xdist_group("compose")


def execute(container: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", "exec", container, *command], capture_output=True, text=True, timeout=60)


def test_compose_accepts_its_file() -> None:
    require_engine()
    done = subprocess.run(["docker", "compose", "config", "--quiet"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"docker compose refuses its file: {done.stderr.strip()}"


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_is_not_root_and_has_no_capabilities(compose_stack: Stack, service: str) -> None:
    (container,) = compose_stack.containers(service)
    status = dict(
        line.split(":\t", 1)
        for line in execute(container, "cat", "/proc/1/status").stdout.splitlines()
        if ":\t" in line
    )
    assert "0" not in status["Uid"].split(), f"{service} runs as root"
    assert "0" not in status["Gid"].split(), f"{service} runs in root's group"
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, f"{service} may have capabilities: {kind} is {status[kind]}"
    assert status["NoNewPrivs"] == "1", f"a setuid program makes {service} root: NoNewPrivs is {status['NoNewPrivs']}"


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_cannot_write_to_its_root_file_system(compose_stack: Stack, service: str) -> None:
    (container,) = compose_stack.containers(service)
    attempt = subprocess.run(
        ["docker", "exec", "-u", "0", container, "touch", "/probe"], capture_output=True, text=True
    )
    assert attempt.returncode != 0, f"a file could be written to the root file system of {service}"
    assert "Read-only file system" in attempt.stderr, attempt
    mounts = execute(container, "cat", "/proc/1/mounts").stdout.splitlines()
    (root,) = [line.split() for line in mounts if line.split()[1] == "/"]
    assert "ro" in root[3].split(","), root


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_limits(compose_stack: Stack, service: str) -> None:
    """That they hold is proved in test_resources.py, with rows of its own; here that each container has all of them."""
    (container,) = compose_stack.containers(service)
    host = compose_stack.inspect(container)["HostConfig"]
    for limit in ("Memory", "NanoCpus", "PidsLimit"):
        assert host[limit], f"{service} has no limit: {limit} is {host[limit]}"
    assert host["LogConfig"]["Config"], f"the log of {service} is not bounded"


def probes(container: dict[str, Any]) -> list[tuple[datetime, int]]:
    """When the container's last health checks began, and their exit status."""
    return [(datetime.fromisoformat(p["Start"]), p["ExitCode"]) for p in container["State"]["Health"]["Log"]]


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_is_not_asked_every_half_minute_only(compose_stack: Stack, service: str) -> None:
    (container,) = compose_stack.containers(service)
    found = compose_stack.inspect(container)
    begins = [datetime.fromisoformat(found["State"]["StartedAt"]), *(begin for begin, _ in probes(found))]
    gap = min((later - begin).total_seconds() for begin, later in itertools.pairwise(begins))
    assert gap < 20, f"{service} is asked for its health every {gap:.0f} s: so long nobody knows that it is up or hangs"


def test_the_published_ports_answer(compose_stack: Stack) -> None:
    for what, url in (
        ("nginx", compose_stack.url),
        ("the web UI", f"http://127.0.0.1:{compose_stack.locust_port}"),
        ("the live page", compose_stack.live_url),
    ):
        try:
            status = httpx.get(url, timeout=30).status_code
        except httpx.TransportError as error:
            raise AssertionError(f"{what} does not answer on its port of the host: {error}") from None
        assert status == 200, f"{what} answers with status {status}"


def test_only_nginx_the_web_ui_and_the_live_page_are_published(compose_stack: Stack) -> None:
    published = {}
    for service in SERVICES:
        (container,) = compose_stack.containers(service)
        found = compose_stack.inspect(container)
        ports = found["NetworkSettings"]["Ports"]
        # In an internal network the engine gives none of them, and says nothing.
        asked = found["HostConfig"]["PortBindings"]
        assert bool(asked) == (service in ("nginx", "live", "locust")), (
            f"{service} asks for these ports of the host: {asked}"
        )
        published[service] = sorted({f"{b['HostIp']}:{b['HostPort']}" for bound in ports.values() for b in bound or ()})
    assert [p.rpartition(":")[2] for p in published.pop("nginx")] == [str(compose_stack.http_port)] * 2
    assert published == {
        "app": [],
        "live": [f"127.0.0.1:{compose_stack.live_port}"],
        "locust": [f"127.0.0.1:{compose_stack.locust_port}"],
        "locust-worker": [],
    }


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
    seen = [target for target, yes in reached.items() if yes]
    assert seen == ["nginx 80"], f"{service} reaches {', '.join(seen) or 'nothing'}"


@pytest.mark.parametrize("service", ["app", "locust-worker"])
def test_a_container_that_is_not_published_has_no_way_out(compose_stack: Stack, service: str) -> None:
    (container,) = compose_stack.containers(service)
    routes = execute(container, "cat", "/proc/net/route").stdout.splitlines()[1:]
    assert not [line for line in routes if line.split()[1] == "00000000"], f"a default route leads out of {service}"


def test_a_container_that_is_published_has_no_address_for_the_world_outside(compose_stack: Stack) -> None:
    name = f"{compose_stack.project}_edge"
    (network,) = json.loads(subprocess.check_output(["docker", "network", "inspect", name]))
    masquerades = network["Options"].get("com.docker.network.bridge.enable_ip_masquerade", "true")
    assert masquerades == "false", "the engine lends the host's address to whatever nginx or Locust sends to the world"


def test_nothing_of_the_build_is_left_in_the_image(compose_stack: Stack) -> None:
    (container,) = compose_stack.containers("app")
    assert execute(container, "which", "uv").returncode != 0
    assert execute(container, "sh", "-c", "ls /root/.cache 2>/dev/null").stdout == ""
    compiled = execute(
        container, "sh", "-c", "ls app/demo/__pycache__/main.*.pyc venv/lib/*/site-packages/fastapi/__pycache__"
    )
    assert compiled.returncode == 0, compiled.stderr


def test_the_images_are_as_large_as_the_readme_says(compose_stack: Stack) -> None:
    """Over the base image, whose size is not this project's; nginx's is used as it is."""

    def megabytes(image: str) -> float:
        return int(subprocess.check_output(["docker", "image", "inspect", "-f", "{{.Size}}", image], text=True)) / 1e6

    base = re.search(r"^FROM (\S+)", (ROOT / "app/Dockerfile").read_text(), flags=re.MULTILINE)
    assert base
    said = re.search(r"the app's\s+image takes (\d+) MB, the live page's (\d+) and Locust's (\d+)",
                     (ROOT / "README.md").read_text())  # fmt: skip
    assert said, "README.md says nothing of the images"
    for service, figure in zip(("app", "live", "locust"), map(int, said.groups()), strict=True):
        (container,) = compose_stack.containers(service)
        takes = megabytes(compose_stack.inspect(container)["Image"]) - megabytes(base[1])
        assert takes == pytest.approx(figure, rel=0.1, abs=1), f"the image of {service} takes {takes:.0f} MB"


@pytest.fixture(scope="module")
def changing_stack() -> Iterator[Stack]:
    """A stack whose containers come and go."""
    require_engine()
    yield from started(Stack("compose", "changing", LOCUST="on"))


@pytest.fixture(scope="module")
def start(changing_stack: Stack) -> dict[str, dict[str, Any]]:
    """What the engine knew of each container as soon as all were up: it remembers the last five health checks."""
    return {service: changing_stack.inspect(changing_stack.containers(service)[0]) for service in SERVICES}


@pytest.mark.parametrize(("first", "second"), [("app", "nginx"), ("nginx", "locust"), ("locust", "locust-worker")])
def test_a_container_starts_when_the_one_it_needs_is_ready(
    start: dict[str, dict[str, Any]], first: str, second: str
) -> None:
    ready = min(begin for begin, status in probes(start[first]) if status == 0)
    begun = datetime.fromisoformat(start[second]["State"]["StartedAt"])
    early = (ready - begun).total_seconds()
    assert early < 0, f"{second} started {early:.1f} s before {first} was ready"


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


def test_the_ledger_outlives_its_container(changing_stack: Stack) -> None:
    key = uuid.uuid4().hex
    order = {"customer": {"name": "A", "email": "a@example.com", "address": ""},
             "lines": [{"sku": "s", "quantity": 1, "unit_price_cents": 1}]}  # fmt: skip
    with changing_stack.client() as client:
        placed = client.post("/orders", json=order, headers={"Idempotency-Key": key})
        assert placed.status_code == 201, f"an order gets {placed.status_code}"
        changing_stack.compose("up", "--detach", "--wait", "--no-deps", "--force-recreate", "app")
        answer = until("an answer of the new container", lambda: status_200(client.get(f"/orders/{key}")), seconds=10)
    assert answer.json()["applied"] == 1, "an order is forgotten when its container is replaced"


def status_200(answer: httpx.Response) -> httpx.Response | None:
    return answer if answer.status_code == 200 else None


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


def test_without_any_app_nginx_answers_503_as_json(changing_stack: Stack) -> None:
    stack = changing_stack
    stack.compose("stop", "app")
    try:
        with stack.client() as client:
            until("nginx notices", lambda: client.get("/").status_code != 200, seconds=10)
            answer = client.get("/")
            assert_json_error(answer, 503, "Service Unavailable")
            assert answer.headers["retry-after"] == "1", "nothing was done: the client may ask again"
            assert client.get("/nginx-health").status_code == 200
    finally:
        stack.compose("up", "--detach", "--wait", "--no-deps", "app")
