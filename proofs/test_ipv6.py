"""Clients of IPv6: they arrive as themselves, and a /64 is one client."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.server.settings import read
from proofs.conftest import require_engine, started
from proofs.outside import Outside, outside
from proofs.stack import ROOT, Stack, until
from proofs.test_limits import ASKS, let_in, refusal, until_nothing_is_in_flight
from stack import native
from stack.render import render
from stack.settings import GIVEN, StackSettings, rows

KINDS: dict[str, Callable[[Outside], str]] = {
    "IPv4": lambda machine: machine.ipv4(2),
    "IPv6": lambda machine: machine.ipv6(1, 2),
}


@pytest.fixture(scope="module")
def machine() -> Iterator[Outside]:
    with outside() as machine:
        yield machine


@pytest.fixture(scope="module")
def strict() -> Iterator[Stack]:
    """Two requests in flight for each client, one of them an upload; a client keeps its worker, of three."""
    strict: dict[str, Any] = {
        "CLIENT_MAX_REQUESTS_IN_FLIGHT": "2",
        "CLIENT_MAX_UPLOADS_IN_FLIGHT": "1",
        "CLIENT_BODY_TIMEOUT_SECONDS": "20",
        "STICKY_SESSIONS": "address",
        "WORKERS": "3",
    }
    yield from started(Stack("native", "ipv6", **strict))


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_arrives_as_itself(stack: Stack, machine: Outside, kind: str) -> None:
    address, sent = KINDS[kind](machine), f"arrives-as-itself-{kind}"
    status, seen = machine.ask(address, stack.http_port, headers={"X-Request-ID": sent})
    assert status == 200, seen
    assert seen["client"] == address, f"to the app the client {address} is {seen['client']}"
    (line,) = until("its line in the access log", lambda: [x for x in stack.access_log() if x["request_id"] == sent])
    assert line["client"] == address, f"in the log the client {address} is {line['client']}"


@pytest.mark.xdist_group("native")
@pytest.mark.parametrize(("body", "most"), [("Content-Length: 9999", 2), ("Content-Length: 20000", 1)])
def test_a_64_is_one_client_and_its_neighbour_another(strict: Stack, machine: Outside, body: str, most: int) -> None:
    """For requests, and for uploads among them."""
    head = f"POST /upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{ASKS}\r\n{body}\r\n\r\n".encode()
    with ExitStack() as opened:

        def begin(address: str) -> socket.socket:
            connection = opened.enter_context(machine.connect(address, strict.http_port))
            connection.sendall(head)
            return connection

        for host in range(2, 2 + most):
            assert let_in(begin(machine.ipv6(1, host)))
        status, said, _ = refusal(begin(machine.ipv6(1, 9)))
        assert status == 429, f"beside {most} of its /64 an address got {status} ({said['error']})"
        assert let_in(begin(machine.ipv6(2, 2))), "a client of another /64 is refused"
        for host in range(2, 5):
            assert let_in(begin(machine.ipv4(host))), "a client of another IPv4 address is refused"
    until_nothing_is_in_flight(strict)


@pytest.mark.xdist_group("native")
def test_a_64_keeps_its_worker(strict: Stack, machine: Outside) -> None:
    """A client of IPv6 changes its address every day, within its /64."""
    seen = {machine.ask(machine.ipv6(1, host), strict.http_port)[1]["pid"] for host in range(2, 10)}
    assert len(seen) == 1, f"eight addresses of a /64 were served by {len(seen)} workers"


@pytest.mark.xdist_group("native")
def test_where_the_kernel_has_no_ipv6_nginx_does_not_ask_for_it(tmp_path: Path) -> None:
    """To the script that writes its configuration /proc/net/if_inet6 is not there."""
    if os.getuid() != 0:
        pytest.skip("only root may hide a file from a process")
    table = rows()
    settings, binary = read(StackSettings, GIVEN | table), native.nginx()
    values = native.environment(settings, table) | {"NGINX_RUN": str(tmp_path), "NGINX_ACCESS_LOG": f"{tmp_path}/log"}
    values["NGINX_COUNTS"] = f"{tmp_path}/counts"
    values["NGINX_LISTEN"] = f"unix:{tmp_path}/socket"
    render(values, tmp_path, native.nginx_version(binary))
    configuration = tmp_path / "nginx.conf"
    assert configuration.read_text().count("listen [::]:") == 2
    hidden = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /proc && exec sh nginx/40-upstream.sh"]
    subprocess.run(hidden, cwd=ROOT, env=os.environ | values, check=True)
    left = [line.strip() for line in configuration.read_text().splitlines() if "listen" in line and "[" in line]
    assert left == [], f"without IPv6 in the kernel nginx is to listen on it: {left}"
    done = subprocess.run([binary, "-t", "-q", "-e", "stderr", "-c", configuration], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.xdist_group("compose")
def test_with_ipv6_false_the_network_has_none_and_clients_of_ipv6_are_served() -> None:
    require_engine()
    stack = Stack("compose", "ipv6-false", IPV6="false")
    try:
        stack.compose("up", "--detach", "--no-deps", "nginx")
        (container,) = stack.compose("ps", "--all", "--quiet", "nginx").split()
        addresses = [n["GlobalIPv6Address"] for n in stack.inspect(container)["NetworkSettings"]["Networks"].values()]
        assert addresses == [""] * 3

        def served() -> bool:
            try:
                return httpx.get(f"http://[::1]:{stack.http_port}/nginx-health", timeout=5).status_code == 200
            except httpx.HTTPError:
                return False

        until("an answer on IPv6", served)
    finally:
        stack.down()


@pytest.mark.xdist_group("compose")
def test_an_engine_that_has_no_addresses_of_ipv6_is_named_with_the_way_out() -> None:
    """The engine refuses because the addresses are another network's; one that has none of IPv6 refuses as well."""
    require_engine()
    subnet = f"fd13:{os.getpid() % 65536:x}::/64"
    taken = f"proof-taken-{os.getpid()}"
    edge = "enable_ipv6: ${IPV6}\n"
    patch = ("docker-compose.yml", edge, f'{edge}    ipam: {{ config: [{{ subnet: "{subnet}" }}] }}\n')
    stack = Stack("compose", "no-ipv6", patches=[patch])
    subprocess.run(
        ["docker", "network", "create", "--ipv6", "--subnet", subnet, taken], check=True, capture_output=True
    )
    try:
        done = stack.make("up")
        assert done.returncode == 1, done.stdout
        (line,) = done.stderr.strip().splitlines()[-1:]
        assert "IPV6=true" in line, done.stderr
        assert "make up IPV6=false" in line
        assert stack.compose("ps", "--all", "--quiet") == ""
    finally:
        stack.down()
        subprocess.run(["docker", "network", "rm", taken], check=True, capture_output=True)
