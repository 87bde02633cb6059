"""Behind a load balancer: HAProxy on another machine, its clients, and strangers who say the same of themselves."""

from __future__ import annotations

import http.client
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from proofs import certificates
from proofs.conftest import lacks, require_engine, started
from proofs.outside import Outside, answer, outside
from proofs.stack import DEADLINE, Stack, until
from proofs.test_limits import ASKS, SMALL, let_in, refusal
from stack import debian

HEADERS = """
    mode http
    option forwardfor
    http-request set-header X-Forwarded-Proto https if { ssl_fc }
    http-request set-header X-Forwarded-Proto http unless { ssl_fc }
    server nginx HERE:PORT source BALANCER
"""
# It passes on what the client sends, whatever that says.
PROXY = """
    mode tcp
    server nginx HERE:PORT source BALANCER send-proxyVERSION
"""
CONFIGURATION = """
defaults
    timeout connect 60s
    timeout client 60s
    timeout server 60s
"""
CLIENTS = """
listen clients
    bind BALANCER:80
    bind [BALANCER6]:80
    bind BALANCER:443 ssl crt FOLDER/site.pem
"""
# HTTPS ends in the stack, not here.
PASSED_ON = """
listen plain
    bind BALANCER:80
    mode tcp
    server nginx HERE:PORT source BALANCER send-proxy-v2
listen tls
    bind BALANCER:443
    mode tcp
    server nginx HERE:HTTPS source BALANCER send-proxy-v2
"""
KINDS = {"headers": ("FORWARDED_HEADERS_FROM", HEADERS), "v1": ("PROXY_PROTOCOL_FROM", PROXY.replace("VERSION", "")),
         "v2": ("PROXY_PROTOCOL_FROM", PROXY.replace("VERSION", "-v2"))}  # fmt: skip
SPOOFED = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https", "X-Real-IP": "203.0.113.7",
           "Forwarded": "for=203.0.113.7;proto=https"}  # fmt: skip
Balanced = tuple[Stack, Outside, Path]
WAYS = [pytest.param(way, marks=pytest.mark.xdist_group(way)) for way in ("native", "compose")]
EACH_WAY, EACH_KIND = pytest.mark.parametrize("way", WAYS), pytest.mark.parametrize("kind", KINDS)


def haproxy() -> str:
    """The path of HAProxy. Skips where there is none; fails when REQUIRE_HAPROXY=1."""
    return debian.found("haproxy") or lacks("no HAProxy is installed", "REQUIRE_HAPROXY")


@contextmanager
def balancer(machine: Outside, stack: Stack, words: str, folder: Path) -> Iterator[None]:
    """HAProxy on the other machine's ipv4(2), before the stack."""
    address = machine.ipv4(2)
    text = CONFIGURATION + words
    values = {"BALANCER6": machine.ipv6(1, 2), "BALANCER": address, "HERE": machine.here, "FOLDER": str(folder)}
    for name, value in (values | {"PORT": str(stack.http_port), "HTTPS": str(stack.https_port)}).items():
        text = text.replace(name, value)
    (folder / "haproxy.cfg").write_text(text)
    process = subprocess.Popen(machine.command(haproxy(), "-db", "-f", str(folder / "haproxy.cfg")))

    def accepts() -> bool:
        assert process.poll() is None, "HAProxy has ended"
        try:
            machine.connect(machine.ipv4(3), 80, address).close()
        except ConnectionRefusedError:
            return False
        return True

    try:
        until("HAProxy accepts", accepts)
        yield
    finally:
        process.terminate()
        process.wait(timeout=DEADLINE)


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Balanced]]:
    """A stack behind HAProxy, by way of running and kind of balancer; two requests in flight for each client."""
    haproxy()
    with ExitStack() as opened:
        behind: dict[tuple[str, str], Balanced] = {}

        def get(way: str, kind: str) -> Balanced:
            if way == "compose":
                require_engine()
            if (way, kind) in behind:
                return behind[way, kind]
            folder = tmp_path_factory.mktemp(f"{way}-{kind}")
            certificates.put(folder, certificates.site())
            machine = opened.enter_context(outside())
            row, words = KINDS[kind]
            rows = {
                row: f"2001:db8:ffff::/48 {machine.ipv4(2)} {machine.ipv4(9)}",
                "CLIENT_MAX_REQUESTS_IN_FLIGHT": "2",
                "CLIENT_BODY_TIMEOUT_SECONDS": "20",
                "LOCUST": "on",
            }
            stack = Stack(
                way, f"balanced-{kind}", **rows, CLIENT_MAX_UPLOADS_IN_FLIGHT="1", APP_MODULE="app.demo.main:app"
            )
            opened.enter_context(contextmanager(started)(stack))
            opened.enter_context(balancer(machine, stack, CLIENTS + words, folder))
            behind[way, kind] = stack, machine, folder
            return behind[way, kind]

        yield get


@EACH_WAY
@EACH_KIND
def test_a_client_of_the_balancer_arrives_with_its_address_and_scheme(
    balanced: Callable[[str, str], Balanced], way: str, kind: str
) -> None:
    """Whatever it says of itself."""
    stack, machine, folder = balanced(way, kind)
    tls = ssl.create_default_context(cafile=str(folder / "site.pem"))
    for number, (client, port, scheme) in enumerate(
        [(machine.ipv4(3), 80, "http"), (machine.ipv4(4), 443, "https"), (machine.ipv6(1, 3), 80, "http")]
    ):
        to = machine.ipv6(1, 2) if ":" in client else machine.ipv4(2)
        for spoofed in ({}, SPOOFED):
            connection = machine.connect(client, port, to)
            if scheme == "https":
                connection = tls.wrap_socket(connection, server_hostname="localhost")
            sent = f"balanced-{kind}-{number}-{len(spoofed)}"
            status, seen = answer(connection, headers=spoofed | {"X-Request-ID": sent})
            assert status == 200, seen
            got = (seen["client"], seen["scheme"])
            assert got == (client, scheme), f"{client} over {scheme} is {got} to the app; it has sent {spoofed}"
            (line,) = until("its line in the log", lambda sent=sent: logged(stack, sent))
            assert line["client"] == client, f"{client} is {line['client']} in the access log"


def logged(stack: Stack, request_id: str) -> list[dict[str, Any]]:
    return [line for line in stack.access_log() if line["request_id"] == request_id]


@EACH_WAY
@EACH_KIND
def test_a_stranger_is_who_it_is_whatever_it_says(
    balanced: Callable[[str, str], Balanced], way: str, kind: str
) -> None:
    stack, machine, _ = balanced(way, kind)
    stranger = machine.ipv4(5)
    header = f"PROXY TCP4 203.0.113.7 {machine.here} 5000 443\r\n".encode()
    connection = machine.connect(stranger, stack.http_port)
    if kind != "headers":
        connection.sendall(header)
    status, seen = answer(connection, headers=SPOOFED)
    assert status == 200, seen
    got = (seen["client"], seen["scheme"])
    assert got == (stranger, "http"), f"the stranger {stranger} is {got} to the app"
    # And what is not spoken on this port is refused.
    with machine.connect(stranger, stack.http_port) as connection:
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(header + request if kind == "headers" else request)
        refused = connection.recv(4096)
    assert refused.startswith(b"HTTP/1.1 400 ") if kind == "headers" else refused == b"", refused


@pytest.mark.xdist_group("native")
def test_behind_a_cdn_and_a_balancer_the_client_is_who_asked_the_cdn(
    balanced: Callable[[str, str], Balanced],
) -> None:
    """The row names both. What the client has written stands before its address."""
    _, machine, _ = balanced("native", "headers")
    cdn = machine.connect(machine.ipv4(9), 80, machine.ipv4(2))
    _, seen = answer(cdn, headers={"X-Forwarded-For": "198.51.100.3, 203.0.113.9"})
    assert seen["client"] == "203.0.113.9", f"to the app the CDN's client 203.0.113.9 is {seen['client']}"


@pytest.mark.xdist_group("native")
@pytest.mark.parametrize("kind", KINDS)
def test_limits_count_the_clients_behind_the_balancer(balanced: Callable[[str, str], Balanced], kind: str) -> None:
    _, machine, _ = balanced("native", kind)
    head = f"POST /upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{ASKS}\r\n{SMALL}\r\n\r\n".encode()
    with ExitStack() as opened:

        def begin(client: str) -> Any:
            connection = opened.enter_context(machine.connect(client, 80, machine.ipv4(2)))
            connection.sendall(head)
            return connection

        assert let_in(begin(machine.ipv4(3)))
        assert let_in(begin(machine.ipv4(3)))
        status, said, _ = refusal(begin(machine.ipv4(3)))
        assert status == 429, f"the third request of a client got {status} ({said['error']})"
        assert let_in(begin(machine.ipv4(4))), "another client behind the same balancer is refused"


@pytest.mark.xdist_group("compose")
@pytest.mark.parametrize("kind", ["headers", "v2"])
def test_behind_a_balancer_locust_reaches_nginx(balanced: Callable[[str, str], Balanced], kind: str) -> None:
    """Without the PROXY protocol, inside the networks of the stack; and it is nobody else there either."""
    stack, _, _ = balanced("compose", kind)
    (locust,) = stack.containers("locust")
    code = "import urllib.request as u; h = {'X-Forwarded-For': '203.0.113.7', 'X-Forwarded-Proto': 'https'}; "
    code += "print(u.urlopen(u.Request('http://nginx/', headers=h), timeout=30).read().decode())"
    said = subprocess.check_output(["docker", "exec", locust, "python", "-c", code], text=True)
    assert '"scheme":"http"' in said
    assert "203.0.113.7" not in said


@pytest.mark.xdist_group("native")
@pytest.mark.parametrize("kind", KINDS)
def test_natively_this_machine_reaches_nginx_on_loopback(balanced: Callable[[str, str], Balanced], kind: str) -> None:
    stack, _, _ = balanced("native", kind)
    with stack.client() as client:
        seen = client.get("/", headers=SPOOFED).json()
    assert (seen["client"], seen["scheme"]) == ("127.0.0.1", "http")


@EACH_WAY
@pytest.mark.parametrize("kind", ["headers", "v2"])
def test_https_through_the_balancer_is_that_of_its_client(way: str, kind: str) -> None:
    """Whether the balancer ends it or passes it on: no client is sent from HTTPS to HTTPS, and each is itself."""
    haproxy()
    if way == "compose":
        require_engine()
    row, words = KINDS[kind]
    with outside() as machine, ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        certificates.put(folder, certificates.site())
        stack = Stack(
            way, f"balanced-tls-{kind}", **{row: machine.ipv4(2)}, TLS="files", TLS_FOLDER=str(folder), LOCUST="on"
        )
        folder.chmod(0o755)  # nginx's user in its container reads it
        opened.enter_context(contextmanager(started)(stack))
        opened.enter_context(balancer(machine, stack, CLIENTS + words if kind == "headers" else PASSED_ON, folder))
        tls = ssl.create_default_context(cafile=str(folder / "site.pem"))

        client = machine.ipv4(3)
        connection = tls.wrap_socket(machine.connect(client, 443, machine.ipv4(2)), server_hostname="localhost")
        status, seen = answer(connection, headers=SPOOFED | {"X-Forwarded-Proto": "http"})
        assert status == 200, seen
        assert (seen["client"], seen["scheme"]) == (client, "https")
        there = f"https://localhost:{stack.https_port}/"
        assert redirected(machine.connect(client, 80, machine.ipv4(2))) == there
        stranger = machine.connect(machine.ipv4(5), stack.http_port)
        if kind == "v2":
            stranger.sendall(f"PROXY TCP4 203.0.113.7 {machine.here} 5000 443\r\n".encode())
        assert redirected(stranger) == there, "a stranger's word on its scheme is believed"

        if way == "native":
            with stack.client() as inside:
                assert inside.get("/").json()["client"] == "127.0.0.1"
        else:
            code = "import ssl, urllib.request as u; c = ssl._create_unverified_context(); "
            code += "print(u.urlopen(u.Request('https://nginx/'), timeout=30, context=c).read().decode())"
            said = subprocess.check_output(
                ["docker", "exec", *stack.containers("locust"), "python", "-c", code], text=True
            )
            assert '"scheme":"https"' in said


def redirected(connection: socket.socket) -> str | None:
    """Where it leads, whatever scheme the client says it came by."""
    client = http.client.HTTPConnection("localhost")
    client.sock = connection
    client.request("GET", "/", headers={"X-Forwarded-Proto": "https", "Connection": "close"})
    answered = client.getresponse()
    client.close()
    return answered.headers["Location"] if answered.status == 308 else None


@pytest.mark.xdist_group("compose")
@pytest.mark.parametrize(
    "rows",
    [
        {"PROXY_PROTOCOL_FROM": "192.0.2.1; evil"},
        {"PROXY_PROTOCOL_FROM": "192.0.2.1", "FORWARDED_HEADERS_FROM": "192.0.2.2"},
    ],
)
def test_without_make_the_container_says_what_is_wrong_with_the_rows(rows: dict[str, str]) -> None:
    require_engine()
    stack = Stack("compose", "balanced-wrong", **rows)
    try:
        done = subprocess.run(
            ["docker", "compose", "run", "--rm", "--no-deps", "--no-TTY", "nginx"],
            cwd=stack.root, env=stack.environ, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode != 0, done.stdout
        (line,) = [line for line in done.stderr.splitlines() if "mend the row" in line]
        assert f"PROXY_PROTOCOL_FROM={rows['PROXY_PROTOCOL_FROM']}" in line
    finally:
        stack.down()
