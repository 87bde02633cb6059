"""HTTPS: what clients and the app see of it, and what happens to the certificate. Native and in Compose."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from websockets.asyncio.client import connect

from app.server import space
from app.server.settings import read
from proofs import certificates, floods, http2
from proofs.conftest import require_engine
from proofs.open_loop import BODY
from proofs.stack import DEADLINE, PATIENT_BUDGET, ROOT, Stack, until
from proofs.test_live import grows, total
from proofs.test_loadtest import EASY, SMALL, left_by
from stack import native
from stack.render import render
from stack.settings import GIVEN, StackSettings, rows

# Mozilla's intermediate profile, by the kind of the certificate's key.
CIPHERS = {
    kind: {f"ECDHE-{kind}-{cipher}" for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")}
    for kind in ("ECDSA", "RSA")
}
ROWS = {"TLS": "files", "SERVER_NAMES": "example.com", "HSTS_SECONDS": "600", "LOCUST": "on"}
# So few requests that 128 streams are more; time for half a handshake; a buffer that is not the kernel's own default.
ROWS |= {
    "CLIENT_SOCKET_BUFFER_BYTES": "32768",
    "CLIENT_MAX_REQUESTS_IN_FLIGHT": "40",
    "CLIENT_HEADER_TIMEOUT_SECONDS": "10",
    "CLIENT_MAX_HEADER_BYTES": "8192",
}


BOTH = [pytest.param(way, marks=pytest.mark.xdist_group(way)) for way in ("native", "compose")]


NATIVELY, IN_COMPOSE = (pytest.mark.parametrize("secure", [way], indirect=True) for way in BOTH)


@pytest.fixture(scope="module", params=BOTH)
def secure(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A stack that found no certificate, and made one for localhost."""
    if request.param == "compose":
        require_engine()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        # Patient: a second of work has to be done within the deadline also where 40 begin it on a busy machine.
        stack = Stack(request.param, "tls", **PATIENT_BUDGET | ROWS, TLS_FOLDER=folder)
        try:
            stack.up()
            yield stack
        finally:
            stack.down()


def plain(stack: Stack, **options: Any) -> httpx.Client:
    """A client of HTTP_PORT, which verifies nothing because there is nothing to verify."""
    return httpx.Client(base_url=f"http://127.0.0.1:{stack.http_port}", timeout=DEADLINE, **options)


def folder(stack: Stack) -> Path:
    return Path(stack.rows["TLS_FOLDER"])


def handshake(stack: Stack, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    connection = socket.create_connection(("127.0.0.1", stack.https_port), timeout=DEADLINE)
    return context.wrap_socket(connection, server_hostname="localhost", session=session)


def served(stack: Stack) -> str:
    """The certificate that a client gets to see."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with handshake(stack, context) as connection:
        return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b"")


@pytest.fixture
def original(secure: Stack) -> Iterator[Path]:
    """The folder of the certificate, which gets its first one back."""
    file = folder(secure) / "site.pem"
    before = file.read_bytes()
    yield folder(secure)
    put_for_all(secure, before)


def put_for_all(stack: Stack, pem: bytes) -> None:
    """Put it into its place, until every worker serves it: each looks again when what it has is a second old."""
    certificates.put(folder(stack), pem)
    begun = time.monotonic()
    until("the certificate", lambda: time.monotonic() - begun > 2 and served(stack).encode() in pem)


# --- What the app and the clients see -----------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_the_app_sees_https_and_the_host_with_its_port(secure: Stack, version: str) -> None:
    """By a client that trusts the certificate of make up, and believes no other."""
    with secure.client(http2=version == "HTTP/2") as client:
        answer = client.get("/", headers={"X-Request-ID": f"seen-by-{version[-1]}-{secure.https_port}"})
    assert answer.http_version == version
    seen = answer.json()
    assert (seen["scheme"], seen["host"]) == ("https", f"localhost:{secure.https_port}")
    assert seen["request_id"] == answer.headers["x-request-id"] == f"seen-by-{version[-1]}-{secure.https_port}"
    assert secure.way == "compose" or seen["client"] == "127.0.0.1"


def test_a_client_of_ipv6_comes_by_https_as_itself(secure: Stack) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this kernel has no IPv6")
    with httpx.Client(verify=secure.trust(), timeout=DEADLINE) as client:
        seen = client.get(f"https://[::1]:{secure.https_port}/", headers={"Host": "localhost"}).json()
    assert ":" in seen["client"], seen
    assert secure.way == "compose" or seen["client"] == "::1"


def test_what_has_no_certificate_of_its_own_is_told_how_to_trust_the_one_that_was_made() -> None:
    with tempfile.TemporaryDirectory() as empty:
        stack = Stack("native", "trust", TLS="files", TLS_FOLDER=f"{empty}/new")
        try:
            done = stack.make("up")
            assert done.returncode == 0, done.stderr
            file, public = f"{empty}/new/site.pem", Path(f"{empty}/new/trusted/localhost.pem")
            assert f"one for localhost is in {file}" in done.stdout
            assert f"curl does with --cacert {public}" in done.stdout
            trust = ssl.create_default_context(cafile=public)
            httpx.get(f"{stack.url}/", verify=trust, timeout=DEADLINE).raise_for_status()
            assert "PRIVATE KEY" not in public.read_text()
            assert f"https://localhost:{stack.https_port}/ (nginx)" in done.stdout
            assert Path(file).stat().st_mode & 0o077 == 0, "others may read the key"
            before = Path(file).read_bytes()
            assert "one for localhost" not in stack.make("reload").stdout
            assert Path(file).read_bytes() == before
        finally:
            stack.down()


def test_a_load_test_asks_by_https_and_verifies_the_certificate(secure: Stack, original: Path) -> None:
    """As a visitor of the first of SERVER_NAMES does, whatever the address; and no request is a redirect."""
    done = secure.make("loadtest", **SMALL, **EASY)
    shutil.rmtree(left_by(done))
    assert done.returncode == 0, done
    mine = [line for line in secure.access_log() if "gevent" in line["user_agent"]]
    assert len(mine) > 10, f"the load test's requests are not in the log: {len(mine)}"
    assert {line["status"] for line in mine} <= {200, 201}
    for names in ((), ("localhost",)):  # of nobody that is trusted; and trusted, for another name
        key = certificates.make_key()
        pem = certificates.certificate(key, -1, 30, *names)
        put_for_all(secure, certificates.private(key) + pem)
        if names:
            (original / "trusted/mine.pem").write_bytes(pem)
        refused = secure.make("loadtest", **SMALL, **EASY)
        assert (refused.returncode, refused.stdout) == (2, ""), refused
        assert "a visitor of example.com does not trust the certificate" in refused.stderr, refused
        assert ("mismatch" in refused.stderr) == bool(names), refused


def test_the_web_ui_makes_its_load_by_https(secure: Stack) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{secure.locust_port}", timeout=DEADLINE) as locust:

        def total() -> dict[str, Any]:
            found: dict[str, Any] = locust.get("/stats/requests").json()["stats"][-1]
            return found

        until("a worker of Locust", lambda: locust.get("/stats/requests").json()["workers"])
        form = {"user_count": 5, "spawn_rate": 5, "user_classes": "ClosedLoopUser"}
        assert locust.post("/swarm", data=form).json()["success"]
        try:
            until("answers", lambda: total()["num_requests"] > 50)
            assert total()["num_failures"] == 0, locust.get("/stats/requests").json()["errors"]
        finally:
            assert locust.post("/stop").json()["success"]
            until("Locust has stopped", lambda: locust.get("/stats/requests").json()["state"] == "stopped")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("name", ["localhost", "example.com", "example.com:8080"])
def test_plain_http_is_sent_to_the_same_place_by_https(secure: Stack, method: str, name: str) -> None:
    with plain(secure) as client:
        answer = client.request(method, "/a%20b/c?d=e&f=%2F", headers={"Host": name}, content=b"x" * 100_000)
    host = name.partition(":")[0]
    location = f"https://{host}:{secure.https_port}/a%20b/c?d=e&f=%2F"
    assert (answer.status_code, answer.headers.get("location")) == (308, location)


def test_a_redirect_is_counted_as_nginxs_own(secure: Stack) -> None:
    with plain(secure) as client:
        grows(secure, 3, "nginx", lambda: [client.get("/a") for _ in range(3)], status="308")


def test_a_redirect_to_port_443_does_not_name_it(tmp_path: Path) -> None:
    """By an nginx alone, which listens elsewhere: 443 is not ours to take."""
    stack = Stack("native", "usual", TLS="files", HTTPS_PORT="443")
    table = rows() | stack.rows
    values = native.environment(read(StackSettings, GIVEN | table), table)
    values |= {"NGINX_RUN": str(tmp_path), "NGINX_ACCESS_LOG": f"{tmp_path}/log"}
    values["NGINX_COUNTS"] = f"{tmp_path}/counts"
    values["NGINX_LISTEN_TLS"] = str(stack.https_port)
    render(values, tmp_path, native.nginx_version(native.nginx()))
    nginx = subprocess.Popen([native.nginx(), "-e", "stderr", "-c", f"{tmp_path}/nginx.conf", "-g", "daemon off;"])
    try:
        until("nginx", lambda: socket.socket().connect_ex(("127.0.0.1", stack.http_port)) == 0)
        with plain(stack) as client:
            assert client.get("/x", headers={"Host": "a.test"}).headers["location"] == "https://a.test/x"
    finally:
        nginx.terminate()
        nginx.wait(timeout=DEADLINE)


def test_an_order_by_plain_http_is_placed_once_by_https(secure: Stack) -> None:
    key = f"redirected-{secure.https_port}-{time.time_ns()}"
    with plain(secure, follow_redirects=True, verify=secure.trust()) as client:
        headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
        placed = client.post(f"http://localhost:{secure.http_port}/orders", content=BODY, headers=headers)
    assert (placed.status_code, placed.url.scheme) == (201, "https")
    with secure.client() as client:
        assert client.get(f"/orders/{key}").json()["deliveries"] == 1


@pytest.mark.parametrize("path", ["/nginx-health", "/.well-known/acme-challenge/token"])
def test_health_and_a_cas_question_are_answered_by_plain_http(secure: Stack, path: str) -> None:
    with plain(secure) as client:
        answer = client.get(path)
    assert answer.status_code == (200 if path == "/nginx-health" else 404), f"{path} by plain HTTP: {answer}"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_name_that_nobody_claims_is_not_followed(secure: Stack, scheme: str) -> None:
    with plain(secure) if scheme == "http" else secure.client() as client:
        answer = client.get("/", headers={"Host": "evil.test"})
    assert (answer.status_code, answer.headers.get("location")) == (421, None)


def test_plain_http_on_the_port_of_https_is_a_400_as_json(secure: Stack) -> None:
    answer = httpx.get(f"http://localhost:{secure.https_port}/", timeout=DEADLINE)
    assert (answer.status_code, answer.json()["error"]) == (400, "Bad Request")


@pytest.mark.parametrize("path", ["/", "/nowhere"])
def test_hsts_is_said_by_https_and_not_by_http(secure: Stack, path: str) -> None:
    with secure.client() as client:
        assert client.get(path).headers.get("strict-transport-security") == "max-age=600"
    with plain(secure) as client:
        assert client.get(path).headers.get("strict-transport-security") is None


def test_websockets_work_over_tls(secure: Stack) -> None:
    """By a client of one thread: where one reads while another writes, OpenSSL may lose what is written."""

    async def echo() -> str | bytes:
        address = f"wss://localhost:{secure.https_port}/ws/echo"
        async with connect(address, ssl=secure.trust(), open_timeout=DEADLINE) as websocket:
            await websocket.send("by TLS")
            return await asyncio.wait_for(websocket.recv(), DEADLINE)

    assert asyncio.run(echo()) == "by TLS"


def test_an_upgrade_inside_http2_does_not_reach_the_app(secure: Stack) -> None:
    """Passed on it gets an answer to a handshake from the app: 101, which HTTP/2 has not, or 400."""
    upgrade = [
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]

    async def ask() -> int:
        connection = await http2.connect(secure.https_port, secure.trust("h2"))
        headers = http2.request_headers("GET", "/ws/echo", secure.https_port, upgrade)
        status = await asyncio.wait_for(connection.begin(headers).answer, DEADLINE)
        assert connection.transport
        connection.transport.close()
        return status

    assert asyncio.run(ask()) == 404


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_an_event_arrives_before_the_last_is_sent(secure: Stack, version: str) -> None:
    arrived: list[tuple[float, float]] = []
    with (
        secure.client(http2=version == "HTTP/2") as client,
        client.stream("GET", "/events?count=5&interval_ms=1500") as answer,
    ):
        assert answer.http_version == version
        for line in answer.iter_lines():
            if line.startswith("data: "):
                arrived.append((float(line.removeprefix("data: ")), time.time()))
    assert len(arrived) == 5
    (_, received), (last_sent, _) = arrived[0], arrived[-1]
    assert received < last_sent, f"the first event came {received - last_sent:.2f} s after the last was sent"


@NATIVELY
def test_a_load_test_is_sent_to_https_and_runs(secure: Stack) -> None:
    """Not in Compose: the redirect names the published port, which is not there inside the networks (docs/https.md)."""
    done = secure.make(
        "loadtest", LOADTEST_SECONDS="2", LOADTEST_USERS="2", LOADTEST_WARMUP_SECONDS="0", LOADTEST_PROCESSES="1",
        LOADTEST_MODULE="loadtest.demo", LOADTEST_SHAPE="closed", SLO_ERROR_SHARE="0", SLO_MIN_RPS="0.1",
        SLO_P50_MS="30000", SLO_P95_MS="30000", SLO_P99_MS="30000",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# --- Requests of one connection -----------------------------------------------------------------------------------


def test_one_connection_takes_thousands_of_requests(secure: Stack) -> None:
    """By default nginx says GOAWAY at the thousandth."""

    async def ask() -> tuple[Counter[int], list[int]]:
        connection = await http2.connect(secure.https_port, secure.trust("h2"))
        statuses: Counter[int] = Counter()
        for _ in range(75):
            headers = http2.request_headers("GET", "/nginx-health", secure.https_port)
            if not connection.no_more:
                streams = [connection.begin(headers) for _ in range(20)]
                statuses.update(await asyncio.gather(*(stream.answer for stream in streams)))
        assert connection.transport
        connection.transport.close()
        return statuses, connection.goaways

    statuses, goaways = asyncio.run(ask())
    assert (statuses[200], goaways) == (1500, []), f"{statuses[200]} answers, then GOAWAY"


def test_a_browser_with_one_connection_is_not_refused_for_what_it_was_allowed(secure: Stack) -> None:
    """It sends as many requests at a time as the server's settings say."""

    async def ask() -> Counter[int]:
        connection = await http2.connect(secure.https_port, secure.trust("h2"))
        allowed = min(connection.h2.remote_settings.max_concurrent_streams, 200)
        headers = http2.request_headers("GET", "/work/io?ms=1000", secure.https_port)
        streams = [connection.begin(headers) for _ in range(allowed)]
        statuses = Counter(await asyncio.gather(*(stream.answer for stream in streams)))
        assert connection.transport
        connection.transport.close()
        return statuses

    assert asyncio.run(ask()) == {200: int(secure.rows["CLIENT_MAX_REQUESTS_IN_FLIGHT"])}


def test_streams_of_one_address_count_as_its_requests_in_flight(secure: Stack) -> None:
    limit = int(secure.rows["CLIENT_MAX_REQUESTS_IN_FLIGHT"])

    async def ask() -> Counter[int]:
        connections = [await http2.connect(secure.https_port, secure.trust("h2")) for _ in range(2)]
        headers = http2.request_headers("GET", "/work/io?ms=1500", secure.https_port)
        first, second = ([c.begin(headers) for _ in range(limit)] for c in connections)
        statuses = Counter(await asyncio.gather(*(stream.answer for stream in first + second)))
        for connection in connections:
            assert connection.transport
            connection.transport.close()
        return statuses

    # Those of the second connection may come when the first are answered, on a busy machine.
    statuses = until("a refusal", lambda: (found := asyncio.run(ask()))[429] and found)
    assert statuses[200] + statuses[429] == 2 * limit, statuses


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_a_header_that_the_row_allows_is_taken(secure: Stack, version: str) -> None:
    with secure.client(http2=version == "HTTP/2") as client:
        assert client.get("/", headers={"X-Long": "a" * 8000}).status_code == 200


def test_600_half_handshakes_hold_what_the_budget_says_keep_nobody_out_and_are_cut_off(secure: Stack) -> None:
    hello = half_a_hello()
    before = held(secure)
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(600):
            connection = socket.create_connection(("127.0.0.1", secure.https_port), timeout=DEADLINE)
            connections.append(stack.enter_context(connection))
            connection.sendall(hello)
        with secure.client() as client:
            assert client.get("/").status_code == 200
        each = (held(secure) - before) / len(connections)
        budget = space.CONNECTION + space.TLS + 2 * int(secure.rows["CLIENT_MAX_HEADER_BYTES"])
        assert each <= budget, f"each holds {each / space.KIB:.0f} KiB; the budget says {budget / space.KIB:.0f}"
        for connection in connections:
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b"", "the handshake goes on"


@pytest.mark.parametrize("name", floods.FLOODS)
def test_a_flood_is_ended_and_a_bystander_is_served(secure: Stack, name: str) -> None:
    workers, before = nginx_workers(secure), held(secure)
    with ThreadPoolExecutor(1) as attacker, secure.client() as bystander:
        flood = attacker.submit(floods.run, name, secure.https_port, secure.trust("h2"))
        while True:
            over = flood.done()
            assert bystander.get("/").status_code == 200
            if over:
                break
    flood.result()
    taken = sum(f"flood={name}" in line["uri"] for line in secure.access_log())
    assert taken < floods.COUNT / 100, f"nginx took {taken} requests of one client in one go"
    assert nginx_workers(secure) == workers
    more = held(secure) - before
    assert more < space.MIB, f"the flood has left {more / space.KIB:.0f} KiB in nginx"


def half_a_hello() -> bytes:
    """A ClientHello without its last bytes."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()[:-3]


def held(stack: Stack) -> int:
    """The bytes of memory that nginx's workers hold."""
    pids = nginx_workers(stack)
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(re.findall(r"RssAnon:\s+(\d+) kB", text)[0]) * 1024 for text in texts)


# --- The profile --------------------------------------------------------------------------------------------------


def old_context(version: ssl.TLSVersion, ciphers: str = "ALL:COMPLEMENTOFALL") -> ssl.SSLContext:
    """A client that would take anything of this version."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"])
def test_tls_1_2_and_1_3_are_spoken_and_nothing_older(secure: Stack, version: str) -> None:
    try:
        with handshake(secure, old_context(getattr(ssl.TLSVersion, version))) as connection:
            spoken = connection.version()
    except (ssl.SSLError, ConnectionError):
        spoken = None
    assert spoken == (version.replace("_", ".") if version in ("TLSv1_2", "TLSv1_3") else None)


@pytest.mark.parametrize("kind", ["ECDSA", "RSA"])
def test_the_ciphers_are_those_of_mozillas_intermediate_profile(secure: Stack, original: Path, kind: str) -> None:
    """Every cipher that this machine's OpenSSL knows is offered, one at a time."""
    certificates.put(original, certificates.site(kind.lower()))
    known = old_context(ssl.TLSVersion.TLSv1_2).get_ciphers()
    names = {cipher["name"] for cipher in known if cipher["protocol"] != "TLSv1.3"}
    assert len(names) > 30
    taken: set[str] = set()

    def as_it_should_be() -> bool:
        taken.clear()
        taken.update(name for name in names if is_taken(secure, name))
        return taken == CIPHERS[kind]

    # For a second a worker may have the certificate from before.
    with contextlib.suppress(AssertionError):
        until("the profile", as_it_should_be, seconds=20)
    assert taken == CIPHERS[kind]


def test_sslyze_finds_mozillas_intermediate_profile_kept(secure: Stack, original: Path, tmp_path: Path) -> None:
    """But for the certificate's signature, which is nobody's that sslyze knows."""
    put_for_all(secure, certificates.site())
    uv = shutil.which("uv") or str(Path(sys.executable).parents[2] / ".uv/bin/uv")
    scan = [uv, "run", "--quiet", "--frozen", "--project", ROOT / "proofs/sslyze", "sslyze"]
    environ = os.environ | {"UV_PROJECT_ENVIRONMENT": str(tmp_path / "venv")}
    site = f"localhost:{secure.https_port}"
    command = [*scan, "--mozilla_config=intermediate", site]
    found = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300).stdout
    wrong = [line.strip(" *") for line in found.rpartition(f"{site}: ")[2].splitlines()]
    assert wrong[0] == "FAILED - Not compliant.", found
    assert [line.partition(":")[0] for line in wrong[1:] if line] == ["certificate_path_validation"], found


def is_taken(stack: Stack, cipher: str) -> bool:
    try:
        handshake(stack, old_context(ssl.TLSVersion.TLSv1_2, cipher)).close()
    except (ssl.SSLError, ConnectionError):
        return False
    return True


def test_early_data_is_not_offered(secure: Stack) -> None:
    """A replayed POST would run twice."""
    asked = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{secure.https_port}", "-tls1_3", "-ign_eof"],
        input="GET /nginx-health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert re.findall(r"Max Early Data: (\d+)", asked.stdout) != []
    assert set(re.findall(r"Max Early Data: (\d+)", asked.stdout)) == {"0"}


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_client_that_comes_back_after_a_reload_has_half_a_handshake(secure: Stack, version: str) -> None:
    context = secure.trust()
    context.maximum_version = getattr(ssl.TLSVersion, version)
    session = a_session(secure, context)
    assert session.ticket_lifetime_hint == (86_400 if version == "TLSv1_3" else 0)
    # A ticket of TLS 1.2 holds the session itself, under a key that stays in memory.
    assert version == "TLSv1_3" or not session.has_ticket
    reload_nginx(secure)
    resumed = []
    for _ in range(10):  # by either worker
        with handshake(secure, context, session) as connection:
            resumed.append(connection.session_reused)
            session = ask_health(connection)
    assert resumed == [True] * 10


def a_session(stack: Stack, context: ssl.SSLContext) -> ssl.SSLSession:
    with handshake(stack, context) as connection:
        return ask_health(connection)


def ask_health(connection: ssl.SSLSocket) -> ssl.SSLSession:
    """The session, which in TLS 1.3 comes after the handshake."""
    connection.sendall(b"GET /nginx-health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = b""
    while piece := connection.recv(4096):
        answer += piece
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert connection.session is not None
    return connection.session


def reload_nginx(stack: Stack) -> None:
    """Reload, and wait until no worker from before takes connections."""
    before = nginx_workers(stack)
    if stack.way == "compose":
        stack.compose("exec", "-T", "nginx", "nginx", "-c", "/run/nginx/nginx.conf", "-s", "reload")
    else:
        stack.kill(int((stack.folder / "nginx/nginx.pid").read_text()), "HUP")
    until("new workers", lambda: nginx_workers(stack) and not nginx_workers(stack) & before)


def nginx_workers(stack: Stack) -> set[str]:
    """The pids of those that are not shutting down."""
    if stack.way == "compose":
        (container,) = stack.containers("nginx")
        text = subprocess.check_output(["docker", "top", container, "-o", "pid,args"], text=True)
    else:
        master = (stack.folder / "nginx/nginx.pid").read_text().strip()
        text = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", master], capture_output=True, text=True).stdout
    return {line.split()[0] for line in text.splitlines() if "worker process" in line and "shutting" not in line}


# --- The certificate ----------------------------------------------------------------------------------------------


def test_a_new_certificate_is_served_without_a_reload_and_cuts_nobody_off(secure: Stack, original: Path) -> None:
    workers = nginx_workers(secure)
    # The client, too, keeps it for as long as this takes.
    with secure.client(limits=httpx.Limits(keepalive_expiry=None)) as client:
        first = client.get("/")
        certificates.put(original, new := certificates.site())
        until("the new certificate", lambda: served(secure).encode() in new, seconds=30)
        assert client.get("/").status_code == first.status_code == 200  # on the connection from before
    assert nginx_workers(secure) == workers


def test_the_end_of_the_certificate_that_clients_get_is_a_metric(secure: Stack, original: Path) -> None:
    """Of the one that is served, whatever lies in the folder of the machine that asks."""

    def end() -> float:
        return total(secure, "tls_certificate_not_after_timestamp_seconds")

    for days in (3, 2000):
        put_for_all(secure, certificates.site(end=days))
        wanted = x509.load_pem_x509_certificate(served(secure).encode()).not_valid_after_utc.timestamp()
        until(f"the end in {days} days", lambda wanted=wanted: end() == wanted)


@IN_COMPOSE  # natively nginx may be older than the directive
def test_a_certificate_is_read_once_a_second_and_not_at_each_handshake(secure: Stack) -> None:
    handshakes = 300
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with opened(folder(secure) / "site.pem") as count, ThreadPoolExecutor(4) as threads:
        for connection in threads.map(lambda _: handshake(secure, context), range(handshakes)):
            connection.close()
        times = count()
    assert 0 < times < handshakes / 2, f"site.pem was opened {times} times in {handshakes} handshakes"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """How often a file is opened, by anybody, in any container: the kernel's word (inotify)."""
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init1(os.O_NONBLOCK)
    opening, reading, closing = 0x20, 0x1, 0x10  # with the others between them, two openings are not taken for one
    assert libc.inotify_add_watch(queue, bytes(path), opening | reading | closing) > 0

    def count() -> int:
        data, times = os.read(queue, 1 << 20), 0
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            times += bool(mask & opening)
            data = data[16 + length :]
        return times

    try:
        yield count
    finally:
        os.close(queue)


def test_the_port_of_https_waits_and_buffers_as_that_of_http(secure: Stack) -> None:
    """The queue of connections, and what the kernel holds of each."""

    def listening(port: int) -> set[tuple[str, ...]]:
        command = ["ss", "--no-header", "--listening", "--tcp", "--numeric", "--memory", f"sport = :{port}"]
        if secure.way == "compose":
            (container,) = secure.containers("nginx")
            pid = str(secure.inspect(container)["State"]["Pid"])
            command = ["nsenter", "--target", pid, "--net", *command]
        text = subprocess.check_output(command, text=True)
        return set(re.findall(r"LISTEN +\d+ +(\d+) .*?\(r\d+,(rb\d+),t\d+,(tb\d+)", text, re.DOTALL))

    ports = (80, 443) if secure.way == "compose" else (secure.http_port, secure.https_port)
    http, https = map(listening, ports)
    assert len(http) == 1
    assert http == https


@pytest.mark.xdist_group("compose")
def test_the_app_cannot_read_the_key() -> None:
    require_engine()
    stack = Stack("compose", "key", TLS="files")
    config = json.loads(stack.compose("config", "--format", "json"))
    with_key = [name for name, service in config["services"].items() if "certificates" in str(service.get("volumes"))]
    assert with_key == ["nginx"]


# --- Without it ---------------------------------------------------------------------------------------------------


def test_without_tls_nothing_of_it_is_there(native_stack: Stack) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", native_stack.https_port), timeout=5)
    rendered = native_stack.folder / "nginx"
    assert [(rendered / f"{part}.conf").read_text() for part in ("tls", "tls-default", "tls-server")] == ["", "", ""]


@pytest.mark.xdist_group("compose")
def test_without_tls_the_containers_know_nothing_of_it(compose_stack: Stack) -> None:
    (container,) = compose_stack.containers("nginx")
    found = compose_stack.inspect(container)
    assert list(found["HostConfig"]["PortBindings"]) == ["80/tcp"]
    assert [mount for mount in found["Mounts"] if "certificate" in mount["Source"]] == []
    assert "acme" not in compose_stack.compose("ps", "--all", "--services")
