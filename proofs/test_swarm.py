"""The stack on three machines: real engines in one Docker Swarm, whose power and cables are cut.

One cluster for all of it, and one load: its clients ask all nodes in turn, and move on only when no app got a byte.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.ratios import ratios
from proofs import shop
from proofs.cluster import Cluster, Node, cluster, run
from proofs.database import Database
from proofs.open_loop import MOST_UNDER_WAY, Connection, Connections, OpenLoop, Outcome
from proofs.stack import DEADLINE, PATIENT_BUDGET, ROOT, Stack, until
from proofs.test_cache import twice, url
from proofs.test_load_balancer import haproxy

pytestmark = pytest.mark.xdist_group("swarm")
# 300 POSTs and 200 GETs of 100 ms a second.
RATE, POSTS, GETS = 500, 0.6, ["/work/io?ms=100"]
# GETs a second to each node, where a request's cost is asked; and in how many rounds (more for a figure: ROUNDS=6).
NODE_RATE, ROUNDS = 100, int(os.environ.get("ROUNDS", "1"))


class SwarmStack(Stack):
    def __init__(
        self, made: Cluster, name: str = "swarm", port: int = 80, *, files: Mapping[str, str] | None = None, **rows: str
    ) -> None:
        # A connection that was idle for a second on a slow machine is one that is in use.
        usual = {"MAX_REQUESTS": "0", "CLIENT_KEEPALIVE_MIN_SECONDS": "5", "STOP_GRACE_SECONDS": "25",
                 "FORWARDED_HEADERS_FROM": made.ipv4(100)}  # fmt: skip
        where = {"HTTP_PORT": str(port), "REGISTRY": made.registry}
        super().__init__("swarm", name, files=files, **PATIENT_BUDGET | usual | where | rows)
        self.cluster, self.http_port = made, port
        # Built by this machine's engine, which has the caches; the manager only decides.
        self.environ |= {"BUILD_HOST": os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")}
        self.ask(made.manager)

    def ask(self, manager: Node) -> None:
        """Commands go to this manager from now on."""
        self.cluster.manager = manager
        self.environ["DOCKER_HOST"] = manager.host

    def deploy(self, **rows: str) -> str:
        done = self.make("deploy", **rows)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def down(self) -> None:
        """Its images go, and its copy of the tree. Whoever shares the cluster with others has run `make down`."""
        image = f"{self.rows['REGISTRY']}/{self.project}-*"
        found = subprocess.check_output(
            ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", image], text=True
        )
        if found:
            subprocess.run(["docker", "image", "rm", "--force", *found.split()], capture_output=True)
        Path(f"/tmp/{self.project}-{os.getuid()}.deploy.lock").unlink(missing_ok=True)
        if self.root != ROOT:
            shutil.rmtree(self.root)

    def version(self, node: Node) -> set[str]:
        return {c["Config"]["Image"] for c in node.containers(f"{self.project}_app")}

    def until_returned(self, node: Node, what: str, happened: Callable[[], Any]) -> None:
        """`until`, for a node that was off or cut off: a failure says what runs there."""
        try:
            until(what, happened, 4 * DEADLINE)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.what_runs(node)}") from None

    def what_runs(self, node: Node) -> str:
        """What the swarm and this node's engine say of its containers."""
        services = self.cluster.manager.docker("service", "ls", "--quiet", check=False).split()
        told = [
            node.docker("node", "ls", check=False),
            self.cluster.manager.docker("service", "ps", "--no-trunc", *services, check=False),
            node.docker("ps", "--all", "--no-trunc", check=False),
        ]
        for id in node.docker("ps", "--quiet", check=False).split():
            logs = subprocess.run(
                ["docker", "-H", node.host, "logs", "--tail", "5", id], capture_output=True, text=True
            )
            told.append(logs.stdout + logs.stderr)
        return "\n".join([*told, *(node.folder / "log").read_text().splitlines()[-20:]])


class NodeConnections:
    """Keep-alive connections to all nodes, which take turns.

    A request moves on where no byte of it was sent, and at 503, which says that no byte has reached an app. As many are
    opened at the start as requests are under way at the most: on a machine that is late with everything, some that were
    new when their nginx left were closed without an answer (docs/cluster.md), and that is not what is asked here.
    """

    def __init__(self, addresses: list[str], port: int = 80) -> None:
        self.to = {address: NodeConnection(address, port) for address in addresses}
        self.turn = 0
        self.sent: dict[str, str] = {}
        self.opening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        for connections in self.to.values():
            each = range(MOST_UNDER_WAY // len(self.to) + 1)
            connections.idle.extend([await connections.take() for _ in each])

    async def ask(self, request: bytes) -> int:
        self.opening = self.opening or asyncio.create_task(self.open())
        await self.opening
        self.turn = turn = self.turn + 1  # others take theirs while this one waits
        addresses = list(self.to)
        key = request.partition(b"X-Request-ID: ")[2].partition(b"\r\n")[0].decode()
        refused: list[str] = []
        for attempt in range(3 * len(addresses)):
            address = addresses[(turn + attempt) % len(addresses)]
            connections = self.to[address]
            if attempt < len(addresses) and time.monotonic() < connections.avoided:
                continue
            try:
                connection = await connections.take()
            except (OSError, TimeoutError) as error:
                connections.avoided = time.monotonic() + 2
                refused.append(f"{address} {type(error).__name__}")
                continue
            self.sent[key] = address
            status = await connections.ask_on(connection, request)
            # No byte has reached an app: an nginx that has just started, say, and knows none yet.
            if status != 503:
                return status
            refused.append(f"{address} {status}")
        raise ConnectionError(f"no node accepts: {', '.join(refused)}")

    def close(self) -> None:
        for connections in self.to.values():
            connections.close()


class NodeConnection(Connections):
    """Keep-alive connections to one address."""

    def __init__(self, address: str, port: int = 80) -> None:
        super().__init__(port)
        self.address, self.avoided = address, 0.0

    async def connect(self) -> Connection:
        async with asyncio.timeout(2):
            _, connection = await asyncio.get_running_loop().create_connection(Connection, self.address, self.port)
        return connection


def ask_own_app(stack: SwarmStack, node: Node, path: str) -> Any:
    """What the app on this node answers, as JSON; None where it has none that does.

    Inside its container, as the health check: the node's nginx asks another machine's app while its own is not there.
    """
    ask = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000{path}', timeout=10).read().decode())"
    name = f"label=com.docker.swarm.service.name={stack.project}_app"
    for container in node.docker("ps", "--quiet", "--filter", name, check=False).split():
        if said := node.docker("exec", container, "python", "-c", ask, check=False):
            return json.loads(said)
    return None


def ask_all_ledgers(stack: Stack, outcome: Outcome) -> None:
    """Each node's app has a ledger of its own: a key in two of them is done twice, too."""
    assert isinstance(stack, SwarmStack)
    for node in stack.cluster.nodes:
        path = f"/orders?prefix={outcome.prefix}-"
        found = until(f"the ledger of {node.name}", lambda: ask_own_app(stack, node, path))  # noqa: B023
        outcome.applied += found["keys"]
        outcome.doubled |= found["repeated"]


@contextmanager
def load(stack: SwarmStack, rate: float = RATE) -> Iterator[OpenLoop]:
    connections = NodeConnections([node.address for node in stack.cluster.nodes])
    with OpenLoop(
        stack, rate, ledger=ask_all_ledgers, post_share=POSTS, get_paths=GETS, connections=connections
    ) as running:
        running.run_for(1)
        yield running


@contextmanager
def balancer(stack: SwarmStack, folder: Path) -> Iterator[tuple[str, int]]:
    """HAProxy with examples/cluster/haproxy.cfg before the nodes; where it listens."""
    where = stack.cluster.ipv4(100), stack.https_port
    text = (stack.root / "examples/cluster/haproxy.cfg").read_text()
    values = {f"192.0.2.{node.number}:80": f"{node.address}:80 source {where[0]}" for node in stack.cluster.nodes}
    for before, after in (values | {"bind :80": f"bind {where[0]}:{where[1]}"}).items():
        assert before in text
        text = text.replace(before, after)
    (folder / "haproxy.cfg").write_text(text)
    process = subprocess.Popen([haproxy(), "-db", "-f", str(folder / "haproxy.cfg")])

    def answers() -> bool:
        assert process.poll() is None, "HAProxy has ended"
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://{where[0]}:{where[1]}/").status_code == 200
        return False

    try:
        until("the stack answers through HAProxy", answers)
        yield where
    finally:
        process.terminate()
        process.wait(timeout=DEADLINE)


@contextmanager
def load_through(where: tuple[str, int], stack: SwarmStack, rate: float) -> Iterator[OpenLoop]:
    """Clients that never send anything twice, and know the balancer alone. Their GETs take no time of themselves."""
    with OpenLoop(
        stack, rate, ledger=ask_all_ledgers, post_share=POSTS, get_paths=["/"], connections=NodeConnection(*where)
    ) as running:
        yield running


# One client that asks again and again on one connection, until its input is closed. In a process of its own: the load's
# would keep it waiting.
STEADY = """
import http.client, json, select, sys, time
connection, longest, before = http.client.HTTPConnection(*sys.argv[1:], timeout=60), (0, ""), time.monotonic()
while not select.select([sys.stdin], [], [], 0.005)[0]:
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200, answer.status
    now = time.monotonic()
    longest, before = max(longest, (round(1000 * (now - before)), answer.getheader("x-request-id"))), now
print(json.dumps(longest))
"""


@contextmanager
def steady_client(where: tuple[str, int]) -> Iterator[list[Any]]:
    """After the block: the most milliseconds between two of its answers, and the id of the second one's request."""
    address, port = where
    command = [sys.executable, "-c", STEADY, address, str(port)]
    found: list[Any] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        yield found
        said, _ = client.communicate("", timeout=2 * DEADLINE)
    assert client.returncode == 0
    found.extend(json.loads(said))


def lost_by_node(running: OpenLoop) -> Counter[str]:
    return Counter(running.client.connections.sent.get(key, "none") for _, _, key, _ in running.outcome.lost)


@contextmanager
def beside(stack: SwarmStack) -> Iterator[SwarmStack]:
    """Another stack on the same machines, for the block."""
    try:
        yield stack
    finally:
        stack.make("down")
        stack.down()


@pytest.fixture(scope="module")
def swarm() -> Iterator[SwarmStack]:
    with cluster() as made:
        stack = SwarmStack(made)
        try:
            stack.deploy()
            yield stack
        finally:
            stack.down()


def test_each_node_answers_with_its_own_app_and_the_clients_address(swarm: SwarmStack) -> None:
    for node in swarm.cluster.nodes:
        for address, client in ((node.address, swarm.cluster.here), (f"[{node.address6}]", swarm.cluster.ipv6(254))):
            seen = httpx.get(f"http://{address}/", timeout=DEADLINE).json()
            assert seen["replica"] == f"app-{node.id}", f"{node.name} answers with another machine's app"
            assert seen["client"] == client, f"the client {client} is {seen['client']} to the app"


def test_a_container_of_the_swarm_has_the_limits_and_the_hardening_of_compose(swarm: SwarmStack) -> None:
    services = json.loads(swarm.compose("config", "--format", "json"))["services"]
    for node in swarm.cluster.nodes:
        for name in ("nginx", "app"):
            (found,) = node.containers(f"{swarm.project}_{name}")
            host, wanted, limits = found["HostConfig"], services[name], services[name]["deploy"]["resources"]["limits"]
            assert host["Memory"] == int(limits["memory"])
            assert host["NanoCpus"] == int(limits["cpus"] * 1e9)
            assert host["PidsLimit"] == limits["pids"]
            assert host["ReadonlyRootfs"]
            assert host["LogConfig"] == {"Type": "json-file", "Config": wanted["logging"]["options"]}
            assert host["Sysctls"] == wanted["sysctls"]
            grace = "{{.Spec.TaskTemplate.ContainerSpec.StopGracePeriod}}"
            said = swarm.cluster.manager.docker("service", "inspect", "--format", grace, f"{swarm.project}_{name}")
            assert said == f"{swarm.rows['STOP_GRACE_SECONDS']}s"
            assert found["Config"]["Healthcheck"]["Test"] == wanted["healthcheck"]["test"]
            passed = dict(line.split("=", 1) for line in found["Config"]["Env"])
            asked = {k: v for k, v in wanted["environment"].items() if v is not None and k != "NGINX_COUNTS"}
            # For the database's connections, nginx's list and the share of the cache that a worker may fill.
            asked["APP_REPLICAS"] = "3"
            if name == "app":
                asked["STOP_DELAY_SECONDS"] = swarm.rows["CLIENT_KEEPALIVE_MIN_SECONDS"]
            assert asked.items() <= passed.items()
            status = dict(
                line.split(":\t", 1)
                for line in node.docker("exec", found["Id"], "cat", "/proc/1/status").splitlines()
                if ":\t" in line
            )
            assert "0" not in status["Uid"].split() + status["Gid"].split(), f"{name} runs as root"
            assert int(status["CapBnd"], 16) == 0, f"{name} may have capabilities"
            assert status["NoNewPrivs"] == "1", f"a setuid program makes {name} root"
            mounts = {line.split()[1]: line.split() for line in
                      node.docker("exec", found["Id"], "cat", "/proc/1/mounts").splitlines()}  # fmt: skip
            target, _, options = wanted["tmpfs"][0].partition(":")
            size = options.rpartition("size=")[2].removesuffix("m")
            assert f"size={int(size) * 1024}k" in mounts[target][3].split(","), mounts[target]


def test_only_nginx_is_reached_from_outside_a_node(swarm: SwarmStack) -> None:
    """Not the app, and not Locust, whose web UI Compose publishes on loopback: Swarm would publish it to everybody."""
    assert services(swarm) == [f"{swarm.project}_app", f"{swarm.project}_nginx"]
    assert_only_nginx_is_reached(swarm)


def services(swarm: SwarmStack) -> list[str]:
    """Their names, and the ports of the mesh, if there were any."""
    return sorted(swarm.cluster.manager.docker("service", "ls", "--format", "{{.Name}} {{.Ports}}").split())


def assert_only_nginx_is_reached(swarm: SwarmStack) -> None:
    for node in swarm.cluster.nodes:
        for port in (5557, 7999, 8000, 8001, 8081, 8089, 8090, 9090):
            with socket.socket() as trial:
                trial.settimeout(1)
                assert trial.connect_ex((node.address, port)) != 0, f"{node.name} answers on {port}"


def test_what_runs_and_is_logged_on_all_nodes_is_shown(swarm: SwarmStack, tmp_path: Path) -> None:
    nodes, keys = swarm.cluster.nodes, [uuid.uuid4().hex for _ in swarm.cluster.nodes]
    said = swarm.make("ps").stdout
    for node, key in zip(nodes, keys, strict=True):
        for name in ("app", "nginx"):
            assert re.search(rf" {swarm.project}_{name}\.\S+ .* {node.name} +Running ", said), said
        # So slow that the app says it too.
        httpx.get(f"http://{node.address}/work/io?ms=1100", headers={"X-Request-ID": key}, timeout=DEADLINE)
    for node, key in zip(nodes, keys, strict=True):

        def traced(key: str = key) -> bool:
            return [line.split()[0] for line in swarm.make("trace", ID=key).stdout.splitlines()] == ["app", "nginx"]

        until(f"{node.name}'s app and nginx have a line of {key}", traced)
    log = tmp_path / "log"
    following = subprocess.Popen(
        [sys.executable, "-m", "stack", "logs"],
        cwd=swarm.root, env=swarm.environ, stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        until("a line of each node", lambda: all(f"@{node.name} " in log.read_text() for node in nodes))
    finally:
        os.killpg(following.pid, signal.SIGTERM)
        following.wait(timeout=DEADLINE)


def test_a_trace_has_an_end_while_an_engine_stands_still(swarm: SwarmStack) -> None:
    """The log of all nodes has none then, and now and then while all are well."""
    asked, _, other = swarm.cluster.nodes
    key = uuid.uuid4().hex
    httpx.get(f"http://{asked.address}/", headers={"X-Request-ID": key}, timeout=DEADLINE)
    until("nginx's line of it", lambda: swarm.make("trace", ID=key).stdout)
    stopped = other.engine()
    os.kill(stopped, signal.SIGSTOP)
    try:
        said = swarm.make("trace", ID=key)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert [line.split()[0] for line in said.stdout.splitlines()] == ["nginx"], said.stdout + said.stderr
    assert "has not come to its end: lines of a node may be missing" in said.stderr
    whole(swarm)


def test_a_check_asks_the_swarm_and_names_a_row_that_it_cannot_honour(swarm: SwarmStack) -> None:
    # Those of the proofs are more than gixy allows.
    places = {"NGINX_WORKER_CONNECTIONS": "8192", "NGINX_MAX_REQUESTS_IN_FLIGHT": "3000"}
    rows = places | {"CLIENT_MAX_REQUESTS_IN_FLIGHT": "2000"}
    done = swarm.make("check", **rows)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok      the swarm: 3 of 3 nodes take containers" in done.stdout.splitlines(), done.stdout
    done = swarm.make("check", **rows, STICKY_SESSIONS="cookie")
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "STICKY"))]
    assert done.returncode == 1
    assert not done.stderr
    assert failed[0] == "FAILED  the swarm"
    assert failed[1].startswith("STICKY_SESSIONS=cookie with WAY=swarm: nginx asks its own machine's app first"), failed
    assert len(failed) == 2, failed


def assert_refused(swarm: SwarmStack, said: str, **rows: str) -> None:
    done = swarm.make("deploy", **rows)
    assert done.returncode == 1, f"{rows}: {done.stdout}{done.stderr}"
    assert said in done.stderr, f"{rows}: {done.stderr}"
    assert len(done.stderr.splitlines()) == 1, f"{rows}: {done.stderr}"


def test_what_cannot_be_deployed_is_said_in_one_line_and_changes_nothing(swarm: SwarmStack) -> None:
    manager = swarm.cluster.manager
    worker = next(node for node in swarm.cluster.nodes if node is not swarm.cluster.leader() and node is not manager)
    others = swarm.project + "_deploying"

    def state() -> list[str]:
        return [manager.docker(kind, "ls", "--format", "{{.ID}} {{.Name}}") for kind in ("service", "config", "secret")]

    before = state()
    assert_refused(swarm, "no engine answers; set DOCKER_HOST", DOCKER_HOST="unix:///nowhere/docker.sock")
    assert_refused(swarm, "this engine is in no swarm", DOCKER_HOST=swarm.environ["BUILD_HOST"])
    assert_refused(swarm, "REGISTRY is empty", REGISTRY="")
    assert_refused(swarm, "the manager cannot pull it", VERSION="20000101-000000")
    assert_refused(swarm, "VERSION=new one: must be a tag", VERSION="new one")
    assert_refused(swarm, "MiB of memory, and its part of the stack may take", APP_MEMORY="4000g")
    assert_refused(swarm, f"has another stack {swarm.project}", REGISTRY=f"{swarm.cluster.registry}/other")
    assert_refused(swarm, "STICKY_SESSIONS=cookie with WAY=swarm", STICKY_SESSIONS="cookie")
    assert_refused(swarm, "APP_REPLICAS=2 with WAY=swarm", APP_REPLICAS="2")
    # 5 x 3 x 4 + 5: enough for one machine, and not for three, one of which has the app twice.
    too_few = {"DATABASE_POOL_SIZE": "5", "DATABASE_MAX_CONNECTIONS": "64"}
    assert_refused(swarm, "3 nodes count as APP_REPLICAS=3: space budget, rule pools-fit-database", **too_few)
    assert_refused(swarm, "makes STOP_DELAY_SECONDS=9 with WAY=swarm: timeout", CLIENT_KEEPALIVE_MIN_SECONDS="9")
    assert_refused(swarm, "STATIC_ROOT=./app/nowhere", STATIC_ROOT="./app/nowhere")
    manager.docker("config", "create", others, "-", input="ada@elsewhere")
    try:
        assert_refused(swarm, f"runs: ada@elsewhere; where that has died: docker config rm {others}")
    finally:
        manager.docker("config", "rm", others)
    manager.docker("node", "demote", worker.name)
    try:
        is_manager = ("info", "--format", "{{.Swarm.ControlAvailable}}")
        until("it is a worker", lambda: worker.docker(*is_manager, check=False) == "false")
        assert_refused(swarm, "this node is a worker; ask a manager:", DOCKER_HOST=worker.host)
    finally:
        manager.docker("node", "promote", worker.name)
        until("it is a manager again", lambda: worker.docker(*is_manager, check=False) == "true")
        swarm.cluster.settle()
    assert state() == before


def test_a_load_test_sends_from_all_nodes_and_is_reached_from_nowhere(swarm: SwarmStack) -> None:
    objectives = {f"SLO_{name}_MS": "60000" for name in ("P50", "P95", "P99")} | {"SLO_MIN_RPS": "1"}
    rows = {"SHAPE": "closed", "USERS": "6", "SECONDS": "30", "WARMUP_SECONDS": "1", "PROCESSES": "3"}
    environ = swarm.environ | objectives | {f"LOADTEST_{name}": value for name, value in rows.items()}
    running = subprocess.Popen(
        [sys.executable, "-m", "stack", "loadtest"], cwd=swarm.root, env=environ | {"SLO_ERROR_SHARE": "0"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    worker = f"{swarm.project}_loadtest_locust-worker"
    try:
        nodes = swarm.cluster.nodes
        until("each node has a worker", lambda: all(node.containers(worker) for node in nodes), 4 * DEADLINE)
        assert_only_nginx_is_reached(swarm)
        said, _ = running.communicate(timeout=5 * DEADLINE)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGTERM)
            running.wait(timeout=DEADLINE)
    assert running.returncode == 0, said
    (report,) = [path for path in (swarm.root / "reports").iterdir() if f"/{path.name}" in said]
    summary = json.loads((report / "summary.json").read_text())
    assert (report / "report.html").exists()
    shutil.rmtree(report)
    assert summary["measured"]["requests"] > 0
    assert summary["settings"]["processes"] == 3
    assert services(swarm) == [f"{swarm.project}_app", f"{swarm.project}_nginx"]


def test_files_and_kept_answers_are_those_of_the_version_on_every_node(swarm: SwarmStack) -> None:
    """STATIC_ROOT and CACHE_MB. A config of Swarm's would hold neither an empty file nor one of more than 1 MB."""
    files = {
        "app/kept.py": (ROOT / "proofs/apps/kept.py").read_text(),
        "app/files/large.js": "1" * 2_000_000,
        "app/files/sub/empty.css": "",
    }
    rows = {"APP_MODULE": "app.kept:app", "CACHE_MB": "8", "CACHE_PATHS": "/kept/", "STATIC_ROOT": "./app/files"}
    address = url("a", "Cache-Control: max-age=3600, stale-while-revalidate=3600")
    new = SwarmStack(swarm.cluster, "files", 8080, files=files, **rows)

    def clients() -> Iterator[httpx.Client]:
        for node in swarm.cluster.nodes:
            with httpx.Client(base_url=f"http://{node.address}:8080", timeout=DEADLINE) as client:
                yield client

    with beside(new):
        new.deploy()
        for client in clients():
            assert twice(client, address) == ("MISS", "HIT")
            assert client.get("/files/large.js").text == "1" * 2_000_000
            assert client.get("/files/sub/empty.css").status_code == 200
        done = new.make("deploy", APP_MODULE="app.nowhere:app")
        assert "rolled back" in done.stderr, done.stdout + done.stderr
        # It may have answered some requests. The deploy does not wait for the new nginx.
        for client in clients():

            def forgotten(client: httpx.Client = client) -> bool:
                with suppress(httpx.TransportError):  # this nginx is being replaced
                    return twice(client, address)[0] == "MISS"
                return False

            until("what was kept is gone", forgotten)
        code, file = new.root / "app/kept.py", new.root / "app/files/sub/empty.css"
        code.write_text(code.read_text().replace('f"{times(name)}', 'f"new {times(name)}'))
        file.write_text("new")
        new.deploy()
        for client in clients():
            assert client.get(address).text.startswith("new "), "the old code's answer"
            assert client.get("/files/sub/empty.css").text == "new"
        (new.root / "app/files/link").symlink_to("/etc/passwd")
        assert_refused(new, "app/files/link is a link, which nginx would not follow")


class PinnedDatabase:
    """The shop's database in its container on a node, asked as `Database` is."""

    def __init__(self, stack: SwarmStack, node: Node) -> None:
        self.stack, self.node = stack, node

    def ask(self, statement: str) -> list[str]:
        (container,) = self.node.containers(f"{self.stack.project}_database")
        psql = ["psql", "--quiet", "--tuples-only", "--no-align", "--username=shop", "--command", statement]
        return self.node.docker("exec", container["Id"], *psql).splitlines()


@contextmanager
def shop_on(made: Cluster, where: str) -> Iterator[tuple[SwarmStack, Database | PinnedDatabase]]:
    """The shop, after the commands of its README and the words of docs/cluster.md."""
    page = (ROOT / "docs/cluster.md").read_text().partition("## State, and a database\n")[2]
    pinned, outside = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    rows = shop.ROWS | shop.WAITING | {"DATABASE_MAX_CONNECTIONS": "65"}
    with beside(SwarmStack(made, "shop", 8080, **rows)) as stack:
        done = stack.run_in_a_copy(shop.COMMANDS)
        assert done.returncode == 0, done.stderr
        override, own = stack.root / "docker-compose.override.yml", stack.root / ".env.app"
        if where == "outside":
            database = Database(max_connections=65, address=made.here)
            try:
                database.start()
                override.write_text(outside)
                address = re.sub(r"DATABASE_URL=.*", f"DATABASE_URL={database.url}", own.read_text())
                own.write_text(address)
                stack.deploy()
                yield stack, database
            finally:
                database.remove()
            return
        node = made.nodes[0]
        run("sh", "-c", "docker image inspect postgres:18 >/dev/null || docker pull --quiet postgres:18")
        run("sh", "-c", f"docker save postgres:18 | docker -H {node.host} load")
        before = "  database:\n    image: postgres:18\n"
        assert pinned.startswith(before)
        assert before in override.read_text()
        override.write_text(override.read_text().replace(before, pinned))
        stack.deploy()
        yield stack, PinnedDatabase(stack, node)


@pytest.mark.parametrize("where", ["outside", "pinned"])
def test_an_order_is_one_whichever_nodes_get_it_and_whichever_dies(swarm: SwarmStack, where: str) -> None:
    others = swarm.cluster.nodes[1:]
    victim = next(node for node in others if node is not swarm.cluster.manager)

    # Each request on a connection of its own, which nobody keeps: a thread that closes it would close that of another,
    # whose request was given to it meanwhile.
    client = httpx.Client(timeout=DEADLINE, headers={"Connection": "close"})
    with shop_on(swarm.cluster, where) as (stack, database), client:

        def place(node: Node, key: str) -> httpx.Response:
            headers = {"Idempotency-Key": key}
            return client.post(f"http://{node.address}:8080/orders", json=shop.ORDER, headers=headers)

        def place_at_once(key: str, *nodes: Node) -> tuple[int, str]:
            """The one answer that twenty on each node got."""
            with ThreadPoolExecutor(20) as threads:
                answers = threads.map(lambda node: place(node, key), nodes * 20)
                found = Counter((answer.status_code, answer.text) for answer in answers)
            assert len(found) == 1, found
            return next(iter(found))

        def orders(key: str) -> list[str]:
            return database.ask(f"SELECT count(*) FROM orders WHERE key = '{key}'")

        def clients() -> int:
            """The containers that have connections to it."""
            return int(database.ask("SELECT count(DISTINCT client_addr) FROM pg_stat_activity")[0])

        status, order = place_at_once("before", *swarm.cluster.nodes)
        assert status == 201
        assert orders("before") == ["1"]
        survivors = [node for node in swarm.cluster.nodes if node is not victim]
        load = shop.orders(stack, database, NodeConnections([node.address for node in swarm.cluster.nodes], 8080))
        with load:
            load.run_for(2)
            victim.kill()
            assert place_at_once("before", *survivors) == (201, order)
            load.run_for(2)
        assert not load.outcome.doubled, load.outcome
        for _, _, key, _ in load.outcome.lost:
            # Whoever got no answer sends it again.
            status, _ = place_at_once(key, *survivors)
            assert (status, orders(key)) == (201, ["1"])
        if where == "pinned":
            # Or else it would hold some that the rule gives to a deploy.
            until("the dead node's connections are closed", lambda: clients() == len(survivors))
        victim.start()
        victim.ready()
        whole(swarm)
        until("the shop is there again", lambda: serves(victim, 8080))
        assert place_at_once("before", *swarm.cluster.nodes) == (201, order)
        assert orders("before") == ["1"]
        print(f"{where}: {load.outcome}")


def test_nothing_is_lost_when_all_nodes_get_a_new_version(swarm: SwarmStack) -> None:
    before = [swarm.version(node) for node in swarm.cluster.nodes]
    with load(swarm) as running:
        said = swarm.deploy()
    running.outcome.assert_nothing_lost_or_doubled()
    assert all(f"app on {node.name}: runs" in said for node in swarm.cluster.nodes), said
    assert not [v for v, node in zip(before, swarm.cluster.nodes, strict=True) if v == swarm.version(node)]


def test_a_version_that_does_not_start_is_rolled_back_on_the_swarm(swarm: SwarmStack) -> None:
    before = [swarm.version(node) for node in swarm.cluster.nodes]
    with load(swarm) as running:
        done = swarm.make("deploy", APP_MODULE="app.nowhere:app")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "APP_MODULE=app.nowhere:app cannot be loaded" in done.stderr
    assert "rolled back" in done.stderr
    # One that the swarm has started once more may still fail.
    until("the old version alone", lambda: [swarm.version(node) for node in swarm.cluster.nodes] == before)
    running.outcome.assert_nothing_lost_or_doubled()


def test_nothing_is_lost_through_a_balancer_while_all_nodes_get_another_version(
    swarm: SwarmStack, tmp_path: Path
) -> None:
    """Back and forth: nothing is built meanwhile. As often as ROUNDS says."""
    versions = [next(iter(swarm.version(swarm.cluster.manager)))]
    swarm.deploy()
    versions.append(next(iter(swarm.version(swarm.cluster.manager))))
    updated, quiet = [], []
    with balancer(swarm, tmp_path) as where, load_through(where, swarm, 100) as through:
        for version in (versions * ROUNDS)[:ROUNDS]:
            begun = through.now
            with steady_client(where) as longest:
                swarm.deploy(VERSION=version.partition("@")[0].rpartition(":")[2])
            took = through.now - begun
            updated.append(longest)
            assert {version} == set.union(*map(swarm.version, swarm.cluster.nodes))
            with steady_client(where) as longest:
                through.run_for(took)
            quiet.append(longest)
    through.outcome.assert_nothing_lost_or_doubled()
    print("longest ms between two answers of a client of the balancer, and nginx's part of it:")
    for what, gaps in (("all nodes updated", updated), ("nothing", quiet)):
        print(f"    while {what}: {', '.join(f'{ms}, {nginx_ms(swarm, key)}' for ms, key in gaps)}")


def nginx_ms(swarm: SwarmStack, key: str) -> int:
    """How long nginx had this request, from its first byte to the last of the answer."""

    def logged() -> list[str]:
        return re.findall(r'"request_time": ([0-9.]+)', swarm.make("trace", ID=key).stdout)

    return round(1000 * float(until("nginx's line of it", logged)[0]))


@pytest.mark.alone
def test_a_request_costs_a_node_the_same_whether_others_are_asked_too_or_not(swarm: SwarmStack) -> None:
    """So N nodes carry N times what one does, up to what they share (docs/cluster.md)."""
    nodes = swarm.cluster.nodes

    def cost(asked: list[Node]) -> float:
        """Microseconds of CPU of these nodes for each request, each of them asked as often."""
        each = NodeConnections([node.address for node in asked])
        with OpenLoop(
            swarm, NODE_RATE * len(asked), lambda *_: None, post_share=0, get_paths=["/"], connections=each
        ) as load:
            load.run_for(1)
            before, answered = [node.cpu_seconds() for node in asked], load.outcome.answered.total()
            load.run_for(5)
            used = [node.cpu_seconds() - start for node, start in zip(asked, before, strict=True)]
            answered = load.outcome.answered.total() - answered
        assert min(used) > sum(used) / (2 * len(asked)), f"one did another's work: {used}"
        return sum(used) / answered * 1e6

    ones, threes = [], []
    for number in range(ROUNDS):
        ones.append(cost([nodes[number % len(nodes)]]))
        threes.append(cost(nodes))
    ratio = ratios(threes, ones)
    low, high = ratio.interval
    print(f"us of CPU for each request: one node asked {ones}, all three {threes}")
    print(f"CPU per request, all three asked to one: {ratio.median:.2f} ({low:.2f} to {high:.2f})")
    assert ratio.median < 2


@pytest.mark.alone
def test_nothing_is_lost_when_nginx_is_replaced_and_a_node_is_drained(swarm: SwarmStack, tmp_path: Path) -> None:
    """By clients that move on where they are refused; and through a balancer that does, by clients that never do."""
    node = swarm.cluster.nodes[2]
    with (
        balancer(swarm, tmp_path) as where,
        load_through(where, swarm, RATE * 0.2) as through,
        load(swarm, RATE * 0.4) as running,
    ):
        swarm.environ["GZIP_MIN_BYTES"] = "1025"
        swarm.deploy()
        swarm.cluster.manager.docker("node", "update", "--availability", "drain", node.name)
        until("nothing runs there", lambda: not node.docker("ps", "--quiet"))
        swarm.cluster.manager.docker("node", "update", "--availability", "active", node.name)
        until("its own app answers", lambda: serves_itself(node))
        running.run_for(1)
    running.outcome.assert_nothing_lost_or_doubled()
    through.outcome.assert_nothing_lost_or_doubled()
    print(f"through the balancer: {through.outcome}")


def test_a_client_of_the_balancer_arrives_with_its_address(swarm: SwarmStack, tmp_path: Path) -> None:
    client = swarm.cluster.ipv4(101)
    with balancer(swarm, tmp_path) as (address, port):
        for node in swarm.cluster.nodes:

            def seen(node: Node = node) -> Any:
                with httpx.Client(transport=httpx.HTTPTransport(local_address=client), timeout=DEADLINE) as asking:
                    said = asking.get(f"http://{address}:{port}/").json()
                return said if said["replica"] == f"app-{node.id}" else None

            assert until(f"{node.name} is asked", seen)["client"] == client


def serves_itself(node: Node) -> bool:
    """Whether this node's nginx answers with this node's app."""
    try:
        return bool(httpx.get(f"http://{node.address}/", timeout=2).json()["replica"] == f"app-{node.id}")
    except (httpx.HTTPError, ValueError, KeyError):
        return False


def serves(node: Node, port: int) -> bool:
    """Whether nginx and an app answer there."""
    try:
        return httpx.get(f"http://{node.address}:{port}/docs", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def whole(stack: SwarmStack) -> None:
    """All machines are on again, and each has what it should."""
    stack.cluster.settle()
    for node in stack.cluster.nodes:
        stack.until_returned(node, f"{node.name} serves itself", lambda: serves_itself(node))  # noqa: B023


def assert_only_the_dead_ones_were_lost(running: OpenLoop, *dead: Node) -> None:
    outcome = running.outcome
    assert set(lost_by_node(running)) <= {node.address for node in dead}, (
        f"lost through nodes that were well: {outcome} {lost_by_node(running)}"
    )
    assert len(outcome.lost) <= 100 * len(dead), f"more than were in flight: {outcome}"
    assert not outcome.doubled
    assert outcome.answered["POST"] <= outcome.applied <= outcome.sent["POST"]


def test_a_cable_that_is_cut_loses_only_what_was_in_flight_there(swarm: SwarmStack) -> None:
    node = swarm.cluster.nodes[2]
    with load(swarm) as running:
        node.cut()
        running.run_for(6)
        node.mend()
        until("its own app answers", lambda: serves_itself(node))
    assert_only_the_dead_ones_were_lost(running, node)
    swarm.cluster.settle()


def test_a_power_cut_loses_only_what_was_in_flight_there(swarm: SwarmStack) -> None:
    """The leader's. A deploy meanwhile waits for another one, and the node has the new version on its return."""
    node = swarm.cluster.leader()
    swarm.ask(next(n for n in swarm.cluster.nodes if n is not node))
    with load(swarm) as running:
        node.kill()
        said = swarm.deploy()
        assert all(f"app on {n.name}: runs" in said for n in swarm.cluster.nodes if n is not node), said
        returned = running.now
        node.start()
        node.ready()
        whole(swarm)
        running.run_for(1)
    assert_only_the_dead_ones_were_lost(running, node)
    assert not running.outcome.lost_since(returned), f"lost by its return: {running.outcome}"
    assert swarm.version(node) == swarm.version(swarm.cluster.manager)
    print(f"{node.name} had no power for a while: {running.outcome}")


def test_without_a_quorum_the_survivor_serves_and_a_deploy_says_why_it_cannot(swarm: SwarmStack) -> None:
    """The leader loses its power, and then another: two of three."""
    leader = swarm.cluster.leader()
    survivor, other = (node for node in swarm.cluster.nodes if node is not leader)
    swarm.ask(survivor)
    with load(swarm) as running:
        leader.kill()
        running.run_for(6)
        other.kill()
        running.run_for(3)
        refused = swarm.make("deploy")
        returned = running.now
        for node in (leader, other):
            node.start()
        for node in (leader, other):
            node.ready()
        whole(swarm)
    assert refused.returncode == 1
    assert refused.stderr.startswith("deploy: the swarm has no leader"), refused.stderr
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert_only_the_dead_ones_were_lost(running, leader, other)
    assert not running.outcome.lost_since(returned), f"lost by their return: {running.outcome}"
    print(f"{leader.name}, the leader, and {other.name} had no power for a while: {running.outcome}")
    # What runs, once more: nothing is built.
    (version,) = swarm.version(survivor)
    swarm.deploy(VERSION=version.partition("@")[0].rpartition(":")[2])
    assert swarm.version(leader) == {version}


def test_nothing_is_lost_when_an_engine_stops_and_when_the_registry_is_down(swarm: SwarmStack) -> None:
    """A node has the image: on its return it asks nobody for it. And what an engine is told then is looked at."""
    node = next(n for n in swarm.cluster.nodes if n is not swarm.cluster.manager)
    before = [swarm.version(n) for n in swarm.cluster.nodes]
    with load(swarm) as running:
        node.stop_engine()
        node.start(hardened="false")
        node.ready()
        whole(swarm)
        assert_refused(swarm, f"deploy: {node.name}: no-new-privileges is not set")
        swarm.cluster.stop_registry()
        try:
            assert_refused(swarm, "not built or not pushed, so nothing is changed")
            node.stop_engine()
            node.start()
            node.ready()
            whole(swarm)
        finally:
            swarm.cluster.start_registry()
    assert [swarm.version(n) for n in swarm.cluster.nodes] == before
    running.outcome.assert_nothing_lost_or_doubled()


def test_down_leaves_volumes_and_nothing_else_on_any_node(swarm: SwarmStack) -> None:
    done = swarm.make("down")
    assert done.returncode == 0, done.stdout + done.stderr
    manager = swarm.cluster.manager
    for kind in ("service", "config", "secret"):
        assert not manager.docker(kind, "ls", "--quiet"), kind
    assert swarm.project not in manager.docker("network", "ls", "--format", "{{.Name}}")
    for node in swarm.cluster.nodes:
        until(f"nothing runs on {node.name}", lambda: not node.docker("ps", "--quiet"))  # noqa: B023
        assert f"{swarm.project}_data" in node.docker("volume", "ls", "--format", "{{.Name}}").split()


def test_engines_that_have_the_images_serve_soon(swarm: SwarmStack) -> None:
    """The last of these proofs: three engines, in no swarm yet."""
    nodes = swarm.cluster.nodes
    repository = f"{swarm.rows['REGISTRY']}/{swarm.project}-app"
    tags = swarm.cluster.manager.docker("image", "ls", "--format", "{{.Tag}}", repository).split()
    newest = max(tag for tag in tags if tag != "<none>")
    for node in nodes:
        node.kill()
        node.forget_swarm()
        node.start()
    for node in nodes:
        node.ready()
    swarm.ask(nodes[0])
    seconds: dict[str, float] = {}
    begun = time.monotonic()
    swarm.cluster.join()
    joined = time.monotonic() - begun
    with ThreadPoolExecutor(1) as thread:
        deploying = thread.submit(swarm.deploy, VERSION=newest)

        def all_answer() -> bool:
            if deploying.done():
                deploying.result()  # a failure is said at once
            for node in nodes:
                if node.name not in seconds and serves_itself(node):
                    seconds[node.name] = round(time.monotonic() - begun, 1)
            return len(seconds) == len(nodes)

        until("an answer of each node", all_answer, 5 * DEADLINE)
    print(f"s from three engines without a swarm to each node's first answer: {seconds}, {joined:.1f} of them to join")
