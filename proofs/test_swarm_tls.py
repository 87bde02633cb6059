"""HTTPS on three machines of one Docker Swarm, as on one: real engines, real handshakes with each node."""

from __future__ import annotations

import json
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from proofs.cluster import Node, cluster
from proofs.stack import DEADLINE
from proofs.test_swarm import SwarmStack
from proofs.test_tls import ask_health

pytestmark = pytest.mark.xdist_group("swarm")


@pytest.fixture(scope="module")
def swarm() -> Iterator[SwarmStack]:
    """With TLS=files, and a certificate for localhost; and a ticket key that was made long ago."""
    with ExitStack() as opened:
        made = opened.enter_context(cluster())
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        stack = SwarmStack(made, TLS="files", TLS_FOLDER=str(folder), HTTPS_PORT="443")
        stack.https_port = 443
        opened.callback(stack.down)
        made.manager.docker("secret", "create", *label(stack), f"{stack.project}_ticket-key-20000101-000000", "-",
                            input="k" * 80)  # fmt: skip
        stack.deploy()
        yield stack


def label(stack: SwarmStack) -> tuple[str, str]:
    return "--label", f"com.docker.stack.namespace={stack.project}"


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

    def nginx() -> list[str]:
        return sorted(c["Id"] for node in swarm.cluster.nodes for c in node.containers(f"{swarm.project}_nginx"))

    def keys() -> list[str]:
        return [name for name in manager.docker("secret", "ls", "--format", "{{.Name}}").split() if "ticket" in name]

    (key,), before = keys(), nginx()
    assert key != f"{swarm.project}_ticket-key-20000101-000000"
    swarm.deploy()
    assert (keys(), nginx()) == ([key], before)
    for node in swarm.cluster.nodes:
        for name in ("app", "nginx"):
            (found,) = node.containers(f"{swarm.project}_{name}")
            listed = node.docker("exec", found["Id"], "sh", "-c", "stat -c '%a %u %s' /run/secrets/*", check=False)
            assert listed == ("400 101 80" if name == "nginx" else ""), name
    given = json.loads(manager.docker("service", "inspect", f"{swarm.project}_app"))[0]["Spec"]
    assert "ticket-key" not in json.dumps(given)
