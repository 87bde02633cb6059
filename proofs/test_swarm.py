"""The stack on three machines: real engines in one Docker Swarm, whose power and cables are cut.

One cluster for all of it, and one load: its clients ask all nodes in turn, and move on only when no app got a byte.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from proofs.cluster import Cluster, Node, cluster
from proofs.open_loop import Connection, Connections, OpenLoop, Outcome
from proofs.stack import PATIENT_BUDGET, Stack, until

pytestmark = pytest.mark.xdist_group("swarm")
# 300 POSTs and 200 GETs of 100 ms a second.
RATE, POSTS, GETS = 500, 0.6, ["/work/io?ms=100"]


class SwarmStack(Stack):
    def __init__(self, made: Cluster) -> None:
        super().__init__("swarm", "swarm", **PATIENT_BUDGET, MAX_REQUESTS="0", HTTP_PORT="80",
                         FORWARDED_HEADERS_FROM=made.ipv4(100), REGISTRY=made.registry)  # fmt: skip
        self.cluster, self.http_port = made, 80
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
        image = f"{self.rows['REGISTRY']}/{self.project}-*"
        found = subprocess.check_output(
            ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", image], text=True
        )
        if found:
            subprocess.run(["docker", "image", "rm", "--force", *found.split()], capture_output=True)
        Path(f"/tmp/{self.project}-{os.getuid()}.deploy.lock").unlink(missing_ok=True)

    def version(self, node: Node) -> set[str]:
        return {c["Config"]["Image"] for c in node.containers(f"{self.project}_app")}


class NodeConnections:
    """Keep-alive connections to all nodes, which take turns.

    A request moves on where no byte of it was sent, and at 503, which says that no byte has reached an app.
    """

    def __init__(self, addresses: list[str]) -> None:
        self.to = {address: NodeConnection(address) for address in addresses}
        self.turn = 0
        self.sent: dict[str, str] = {}

    async def ask(self, request: bytes) -> int:
        self.turn += 1
        addresses = list(self.to)
        key = request.partition(b"X-Request-ID: ")[2].partition(b"\r\n")[0].decode()
        for attempt in range(2 * len(addresses)):
            address = addresses[(self.turn + attempt) % len(addresses)]
            connections = self.to[address]
            if attempt < len(addresses) and time.monotonic() < connections.avoided:
                continue
            try:
                connection = await connections.take()
            except (OSError, TimeoutError):
                connections.avoided = time.monotonic() + 1
                continue
            self.sent[key] = address
            status = await connections.ask_on(connection, request)
            # No byte has reached an app: an nginx that has just started, say, and knows none yet.
            if status != 503:
                return status
        raise ConnectionError("no node accepts")

    def close(self) -> None:
        for connections in self.to.values():
            connections.close()


class NodeConnection(Connections):
    def __init__(self, address: str, port: int = 80) -> None:
        super().__init__(port)
        self.address, self.avoided = address, 0.0

    async def take(self) -> Any:
        while self.idle:
            connection = self.idle.popleft()
            if not connection.closed:
                return connection
            self._close(connection)
        async with asyncio.timeout(1):
            _, connection = await asyncio.get_running_loop().create_connection(Connection, self.address, self.port)
        self.open.add(connection)
        return connection

    async def ask_on(self, connection: Any, request: bytes) -> int:
        try:
            status = await connection.ask(request)
        except BaseException:
            self._close(connection)
            raise
        if connection.closed:
            self._close(connection)
        else:
            self.idle.append(connection)
        return int(status)


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
def load(stack: SwarmStack, nodes: list[Node] | None = None) -> Iterator[OpenLoop]:
    addresses = [node.address for node in nodes or stack.cluster.nodes]
    connections = NodeConnections(addresses)
    with OpenLoop(
        stack, RATE, ledger=ask_all_ledgers, post_share=POSTS, get_paths=GETS, connections=connections
    ) as running:
        running.run_for(1)
        yield running


def lost_by_node(running: OpenLoop) -> Counter[str]:
    return Counter(running.client.connections.sent.get(key, "none") for _, _, key, _ in running.outcome.lost)


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
            seen = httpx.get(f"http://{address}/").json()
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
    services = swarm.cluster.manager.docker("service", "ls", "--format", "{{.Name}} {{.Ports}}").split()
    assert sorted(services) == [f"{swarm.project}_app", f"{swarm.project}_nginx"], services
    for node in swarm.cluster.nodes:
        for port in (7999, 8000, 8001, 8081, 8089, 8090, 9090):
            with socket.socket() as trial:
                trial.settimeout(1)
                assert trial.connect_ex((node.address, port)) != 0, f"{node.name} answers on {port}"


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
    assert [swarm.version(node) for node in swarm.cluster.nodes] == before
    running.outcome.assert_nothing_lost_or_doubled()


def test_nothing_is_lost_when_nginx_is_replaced_and_a_node_is_drained(swarm: SwarmStack) -> None:
    """By clients that move on where they are refused."""
    node = swarm.cluster.nodes[2]
    with load(swarm) as running:
        swarm.deploy(GZIP_MIN_BYTES="1025")
        swarm.cluster.manager.docker("node", "update", "--availability", "drain", node.name)
        until("nothing runs there", lambda: not node.docker("ps", "--quiet"))
        swarm.cluster.manager.docker("node", "update", "--availability", "active", node.name)
        until("its app answers", lambda: well(node))
        running.run_for(1)
    running.outcome.assert_nothing_lost_or_doubled()


def well(node: Node) -> bool:
    try:
        return httpx.get(f"http://{node.address}/", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def assert_only_the_dead_ones_were_lost(running: OpenLoop, node: Node) -> None:
    outcome = running.outcome
    assert set(lost_by_node(running)) <= {node.address}, (
        f"lost through nodes that were well: {outcome} {lost_by_node(running)}"
    )
    assert len(outcome.lost) <= 100, f"more than were in flight: {outcome}"
    assert not outcome.doubled
    assert outcome.answered["POST"] <= outcome.applied <= outcome.sent["POST"]


def test_a_cable_that_is_cut_loses_only_what_was_in_flight_there(swarm: SwarmStack) -> None:
    node = swarm.cluster.nodes[2]
    with load(swarm) as running:
        node.cut()
        running.run_for(6)
        node.mend()
        until("its app answers", lambda: well(node))
    assert_only_the_dead_ones_were_lost(running, node)
    swarm.cluster.settle()
