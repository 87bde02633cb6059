"""HTTPS on three machines of one Docker Swarm, as on one: real engines, real handshakes with each node."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from proofs.authority import Authority
from proofs.cluster import Node, cluster
from proofs.stack import DEADLINE, until
from proofs.test_acme import OVERRIDE
from proofs.test_swarm import SwarmStack
from proofs.test_tls import ask_health

pytestmark = pytest.mark.xdist_group("swarm")


@pytest.fixture(scope="module")
def machines() -> Iterator[SwarmStack]:
    """Not yet deployed."""
    with cluster() as made, tempfile.TemporaryDirectory() as folder:
        # In a tree of its own: beside other proofs' reports, one of the same second would be the same folder.
        tree = {"reports/.keep": ""}
        stack = SwarmStack(made, files=tree, TLS="files", TLS_FOLDER=folder, HTTPS_PORT="443", NGINX_MEMORY="10g")
        stack.https_port = 443
        try:
            yield stack
        finally:
            stack.down()


@pytest.fixture(scope="module")
def swarm(machines: SwarmStack) -> SwarmStack:
    """With TLS=files, and a certificate for localhost; and a key for tickets that was made long ago."""
    label, name = f"com.docker.stack.namespace={machines.project}", f"{machines.project}_ticket-key-20000101-000000"
    machines.cluster.manager.docker("secret", "create", "--label", label, name, "-", input="k" * 80)
    machines.deploy()
    return machines


def all_nginx(stack: SwarmStack) -> list[str]:
    """The ids of the containers."""
    return sorted(c["Id"] for node in stack.cluster.nodes for c in node.containers(f"{stack.project}_nginx"))


def handshake(
    stack: SwarmStack, node: Node, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> ssl.SSLSocket:
    connection = socket.create_connection((node.address, stack.https_port), timeout=DEADLINE)
    return context.wrap_socket(connection, server_hostname="localhost", session=session)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_client_resumes_its_session_at_every_node(swarm: SwarmStack, version: str) -> None:
    context = swarm.trust()
    context.maximum_version = getattr(ssl.TLSVersion, version)
    for given in swarm.cluster.nodes:
        with handshake(swarm, given, context) as connection:
            session = ask_health(connection)
        assert session.has_ticket
        for taken in swarm.cluster.nodes:
            with handshake(swarm, taken, context, session) as connection:
                assert connection.session_reused, f"{taken.name} does not know what {given.name} gave"


def test_the_key_of_tickets_is_nginxs_alone_and_stays_over_a_deploy(swarm: SwarmStack) -> None:
    """And the one from long ago is gone."""
    manager = swarm.cluster.manager

    def keys() -> list[str]:
        return [name for name in manager.docker("secret", "ls", "--format", "{{.Name}}").split() if "ticket" in name]

    (key,), before = keys(), all_nginx(swarm)
    assert key != f"{swarm.project}_ticket-key-20000101-000000"
    swarm.deploy()
    assert (keys(), all_nginx(swarm)) == ([key], before)
    for node in swarm.cluster.nodes:
        for name in ("app", "nginx"):
            (found,) = node.containers(f"{swarm.project}_{name}")
            listed = node.docker("exec", found["Id"], "sh", "-c", "stat -c '%a %u %s' /run/secrets/*", check=False)
            assert listed == ("400 101 80" if name == "nginx" else ""), name
    given = json.loads(manager.docker("service", "inspect", f"{swarm.project}_app"))[0]["Spec"]
    assert "ticket-key" not in json.dumps(given)


# --- TLS=acme -----------------------------------------------------------------------------------------------------

# To the authority each name is another node.
NAMES = ["a.test", "b.test", "c.test"]
SECONDS = 180


def serial(connection: ssl.SSLSocket) -> int:
    return int(connection.getpeercert()["serialNumber"], 16)  # type: ignore[index, arg-type]


class Site:
    """A swarm with TLS=acme, and the authority that one of its nodes asks."""

    def __init__(self, stack: SwarmStack, opened: ExitStack) -> None:
        self.stack, self.nodes = stack, stack.cluster.nodes
        self.authority = Authority(80, SECONDS)
        opened.callback(self.authority.end)
        files = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        override = OVERRIDE.format(root=self.authority.root).replace("host-gateway", stack.cluster.here)
        (files / "override.yml").write_text(override)
        stack.environ |= {
            "TLS": "acme", "ACME_NAMES": " ".join(NAMES), "ACME_CHECK_SECONDS": "2",
            "ACME_DIRECTORY": f"https://pebble:{self.authority.port}/dir",
            "COMPOSE_FILE": f"{stack.environ['COMPOSE_FILE']}:{files}/override.yml",
        }  # fmt: skip
        names = [name.replace(".", "_") for name in NAMES]
        self.authority.start(**dict(zip(names, (node.address for node in self.nodes), strict=True)))

    def served(self, node: Node) -> int:
        """The serial number of the certificate that this node shows; 0 where it has none."""
        try:
            with handshake(self.stack, node, self.trust()) as connection:
                return serial(connection)
        except OSError:
            return 0

    def served_by_all(self, *nodes: Node) -> int:
        """The one that all of these show, or else 0."""
        serials = {self.served(node) for node in nodes or self.nodes}
        return serials.pop() if len(serials) == 1 else 0

    def trust(self) -> ssl.SSLContext:
        context = self.authority.issuers()
        context.check_hostname = False
        return context

    def given(self) -> list[int]:
        """The serial numbers of the certificates that the authority has given, the first one first."""
        return [int(found, 16) for found in re.findall(r"Issued certificate serial (\w+)", self.authority.log())]

    def accounts(self) -> int:
        """How many nodes have asked the authority: each has an account of its own.

        A node may have two certificates soon: when it renews the first is drawn from the whole of its life.
        """
        return len(re.findall(r"There are now \d+ accounts", self.authority.log()))

    def asking(self) -> list[Node]:
        """The nodes that ask the authority."""
        return [node for node in self.nodes if node.init and node.containers(f"{self.stack.project}_acme")]


@pytest.fixture(scope="module")
def site(machines: SwarmStack) -> Iterator[Site]:
    with ExitStack() as opened:
        made = Site(machines, opened)
        machines.deploy()
        yield made


class Visitors:
    """One client of each node, who comes again and again, each time with a whole handshake."""

    def __init__(self, site: Site) -> None:
        self.site, self.ended = site, threading.Event()
        self.served: set[int] = set()
        self.failed: list[str] = []
        self.threads = [threading.Thread(target=self.visit, args=(node,)) for node in site.nodes]

    def visit(self, node: Node) -> None:
        context = self.site.trust()
        while not self.ended.wait(0.02):
            try:
                with handshake(self.site.stack, node, context) as connection:
                    self.served.add(serial(connection))
                    ask_health(connection)
            except (OSError, AssertionError) as error:
                self.failed.append(f"{node.name}: {error!r}")

    def __enter__(self) -> Visitors:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()


def test_one_certificate_is_got_for_all_nodes_and_each_answers_the_ca(site: Site) -> None:
    """Each name of the certificate was asked for at another node, or it would not be there."""
    served = until("the certificate", site.served_by_all, 2 * DEADLINE)
    assert served in site.given()
    assert site.accounts() == 1, "more nodes than one have asked"
    assert site.asking() == [site.stack.cluster.manager]
    for node in site.nodes:
        with handshake(site.stack, node, site.trust()) as connection:
            names = connection.getpeercert()["subjectAltName"]  # type: ignore[index]
        assert sorted(name for _, name in names) == NAMES
        nothing = httpx.get(f"http://{node.address}/.well-known/acme-challenge/none", timeout=DEADLINE)
        assert (nothing.status_code, nothing.json()["error"]) == (404, "Not Found")


def test_a_load_test_of_the_swarm_verifies_the_certificate(site: Site) -> None:
    """By public CAs, where nothing was put into TLS_FOLDER/trusted."""
    until("the certificate", site.served_by_all, 2 * DEADLINE)
    rows = {"SHAPE": "closed", "USERS": "3", "SECONDS": "3", "WARMUP_SECONDS": "1", "PROCESSES": "3"}
    rows = {f"LOADTEST_{name}": value for name, value in rows.items()}
    rows |= {f"SLO_{name}_MS": "60000" for name in ("P50", "P95", "P99")} | {"SLO_MIN_RPS": "1", "SLO_ERROR_SHARE": "0"}
    done = site.stack.make("loadtest", **rows)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"a visitor of {NAMES[0]} does not trust the certificate" in done.stdout + done.stderr
    root = ssl.DER_cert_to_PEM_cert(site.authority.issuers().get_ca_certs(binary_form=True)[0])
    (Path(site.stack.rows["TLS_FOLDER"]) / "trusted/authority.pem").write_text(root)
    done = site.stack.make("loadtest", **rows)
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = [path for path in (site.stack.root / "reports").iterdir() if f"/{path.name}" in done.stdout]
    assert json.loads((report / "summary.json").read_text())["measured"]["requests"] > 0
    shutil.rmtree(report)


def test_a_renewal_reaches_all_nodes_and_fails_no_handshake(site: Site) -> None:
    nginx = all_nginx(site.stack)
    with Visitors(site) as visitors:
        first = until(
            "the visitors see it", lambda: (now := site.served_by_all()) in visitors.served and now, 2 * DEADLINE
        )
        second = until("the renewal", lambda: (now := site.served_by_all()) != first and now, SECONDS)
        until("the visitors see that, too", lambda: second in visitors.served)
    assert visitors.failed == []
    given = site.given()
    assert {first, second} <= visitors.served <= set(given), "clients saw another one"
    assert given.index(second) > given.index(first)
    assert site.accounts() == 1, "another node has asked too"
    assert all_nginx(site.stack) == nginx, "nginx was replaced"


def test_the_asking_node_may_be_off_and_a_deploy_has_another_one_ask(site: Site) -> None:
    stack = site.stack
    before = until("the certificate", site.served_by_all, 2 * DEADLINE)
    (off,) = site.asking()
    on = [node for node in site.nodes if node is not off]
    image = on[0].containers(f"{stack.project}_app")[0]["Config"]["Image"]
    off.kill()
    until("that it is seen", lambda: "Down" in on[0].docker("node", "ls", "--format", "{{.Status}}", check=False), 120)
    assert [site.served(node) for node in on] == [before, before]
    asked = f"http://{on[0].address}/.well-known/acme-challenge/none"
    until("a 502", lambda: httpx.get(asked, timeout=2 * DEADLINE).status_code == 502, 2 * DEADLINE)
    stack.ask(on[0])
    # The name that was the dead node's is another's now.
    site.authority.point(NAMES[site.nodes.index(off)], on[1].address)
    version = image.partition("@")[0].rpartition(":")[2]
    stack.deploy(VERSION=version)
    assert site.asking() == [on[0]]
    after = until(
        "a certificate of the other", lambda: (now := site.served_by_all(*on)) != before and now, 2 * DEADLINE
    )
    given = site.given()
    assert given.index(after) > given.index(before)
    assert site.accounts() == 2
    off.start()
    off.ready()
    stack.cluster.settle()

    def renewed() -> bool:
        """With the other's certificate, or with one that it has got meanwhile: it lives three minutes."""
        given = site.given()
        return site.served(off) in given[given.index(after) :]

    stack.until_returned(off, "its return with the new certificate", renewed)
    # A deploy by another manager leaves it where it is.
    stack.ask(on[1])
    stack.deploy(VERSION=version)
    assert site.asking() == [on[0]]


def test_down_leaves_no_key_of_the_swarm(site: Site) -> None:
    """The last of these proofs."""
    done = site.stack.make("down")
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in ("service", "secret"):
        assert not site.stack.cluster.manager.docker(kind, "ls", "--quiet"), kind
