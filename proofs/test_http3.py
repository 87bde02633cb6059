"""HTTP/3: what the app and the clients see, what a reload costs, and what strangers can do."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from aioquic.h3.connection import H3_ALPN
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from app.server import space
from proofs import certificates, http3
from proofs.browser import opened
from proofs.conftest import lacks, require_engine
from proofs.open_loop import BODY
from proofs.stack import DEADLINE, PATIENT_BUDGET, Stack, until
from proofs.test_tls import held, plain, put_for_all
from stack import native

pytestmark = pytest.mark.xdist_group("compose")
HEALTH = "nginx/templates/answers.conf.template"


@pytest.fixture(scope="module")
def quic() -> Iterator[Stack]:
    require_engine()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        rows = PATIENT_BUDGET | {
            "TLS": "files",
            "TLS_FOLDER": folder,
            "SERVER_NAMES": "example.com",
            "HTTP3": "on",
            "CLIENT_MAX_REQUESTS_IN_FLIGHT": "40",
            "CLIENT_KEEPALIVE_SECONDS": "15",
            "CLIENT_KEEPALIVE_MIN_SECONDS": "1",
            "NGINX_MEMORY": "9g",
            "CLIENT_MAX_HEADER_BYTES": "8192",
        }
        stack = Stack(
            "compose",
            "http3",
            patches=[(HEALTH, '"nginx":"ok"', '"nginx":"ok"')],
            **rows,
        )
        try:
            stack.up()
            yield stack
        finally:
            stack.down()


def trusted(stack: Stack) -> Path:
    return Path(stack.rows["TLS_FOLDER"]) / "trusted/localhost.pem"


async def once(stack: Stack, method: str, path: str, headers: http3.Headers = (), body: bytes = b"") -> http3.Answer:
    """One request on a connection of its own."""
    async with http3.connected(stack.https_port, trusted(stack)) as client:
        return await client.ask(method, path, headers, body)


def test_the_app_sees_what_it_sees_by_the_others(quic: Stack) -> None:
    given = f"seen-by-3-{quic.https_port}"
    answer = asyncio.run(once(quic, "GET", "/", [("x-request-id", given)]))
    seen = json.loads(answer.body)
    assert (seen["scheme"], seen["host"]) == ("https", f"localhost:{quic.https_port}")
    assert seen["request_id"] == answer.headers["x-request-id"] == given

    def logged() -> list[tuple[str, str]]:
        mine = [line for line in quic.access_log() if line["request_id"] == given]
        return [(line["protocol"], line["host"]) for line in mine]

    until("its line in the log", logged)
    assert logged() == [("HTTP/3.0", f"localhost:{quic.https_port}")]


def test_a_post_arrives_whole_and_is_applied_once(quic: Stack) -> None:
    key = f"by-http3-{quic.https_port}"
    headers = [("content-type", "application/json"), ("idempotency-key", key)]
    first, second = (asyncio.run(once(quic, "POST", "/orders", headers, BODY)) for _ in range(2))
    assert (first.status, second.status) == (201, 201), (first.body, second.body)
    assert (b'"applied":true' in first.body, b'"applied":false' in second.body) == (True, True)


def test_a_client_of_ipv6_comes_by_http3(quic: Stack) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this kernel has no IPv6")

    async def ask() -> int:
        async with http3.connected(quic.https_port, trusted(quic), "::1") as client:
            return (await client.ask("GET", "/")).status

    assert asyncio.run(ask()) == 200


def test_a_name_that_nobody_claims_gets_421(quic: Stack) -> None:
    async def ask() -> int:
        async with http3.connected(quic.https_port, trusted(quic)) as client:
            client.host = "other.example"
            return (await client.ask("GET", "/")).status

    assert asyncio.run(ask()) == 421


def test_browsers_are_told_by_https_and_not_by_http(quic: Stack) -> None:
    with quic.client(http2=True) as client:
        for path in ("/", "/nowhere"):
            assert client.get(path).headers.get("alt-svc") == f'h3=":{quic.https_port}"; ma=86400', path
    with plain(quic) as client:
        assert "alt-svc" not in client.get("/").headers


def test_an_upgrade_does_not_reach_the_app(quic: Stack) -> None:
    answer = asyncio.run(once(quic, "GET", "/ws/echo", [("upgrade", "websocket"), ("sec-websocket-version", "13")]))
    assert answer.status == 404, answer


def test_an_event_stream_comes_piece_by_piece(quic: Stack) -> None:
    answer = asyncio.run(once(quic, "GET", "/events?count=3&interval_ms=2000"))
    events = [when for when, piece in answer.pieces if b"data:" in piece]
    assert len(events) == 3, answer.pieces
    assert events[-1] - events[0] > 0.7, "the events came together"


def test_a_client_with_one_connection_is_not_refused_for_what_it_was_allowed(quic: Stack) -> None:
    async def ask() -> Counter[int]:
        async with http3.connected(quic.https_port, trusted(quic)) as client:
            answers = await asyncio.gather(*(client.begin("GET", "/work/io?ms=500") for _ in range(100)))
            return Counter(answer.status for answer in answers)

    assert asyncio.run(ask()) == {200: 100}


def test_requests_of_one_address_count_together(quic: Stack) -> None:
    """Whatever the number of its connections."""

    async def ask() -> Counter[int]:
        path = "/work/io?ms=1500"
        async with (
            http3.connected(quic.https_port, trusted(quic)) as one,
            http3.connected(quic.https_port, trusted(quic)) as other,
        ):
            answers = await asyncio.gather(*(client.begin("GET", path) for client in (one, other) for _ in range(40)))
        return Counter(answer.status for answer in answers)

    # Those of the second connection may come when the first are answered, on a busy machine.
    statuses = until("a refusal", lambda: (found := asyncio.run(ask()))[429] and found)
    assert statuses[200] + statuses[429] == 80, statuses


def test_a_header_that_is_too_long_ends_its_request_and_no_other(quic: Stack) -> None:
    limit = int(quic.rows["CLIENT_MAX_HEADER_BYTES"])

    async def ask() -> tuple[int, int, str]:
        async with http3.connected(quic.https_port, trusted(quic)) as client:
            slow = client.begin("GET", "/work/io?ms=1000")
            fits = (await client.ask("GET", "/", [("x-long", "a" * (limit - 200))])).status
            try:
                over = str((await client.ask("GET", "/", [("x-long", "a" * 2 * limit)])).status)
            except ConnectionError as error:
                over = str(error)
            return fits, (await slow).status, over

    assert asyncio.run(ask()) == (200, 200, f"stream reset: {0x107}")  # H3_EXCESSIVE_LOAD


def test_a_flood_of_requests_that_are_taken_back_is_ended_and_a_bystander_is_served(quic: Stack) -> None:
    async def flood() -> None:
        """Until nginx ends the connection. It is never idle, so nothing else ends it."""
        async with asyncio.timeout(DEADLINE), http3.connected(quic.https_port, trusted(quic)) as client:
            while not client.ended.done():
                for _ in range(20):
                    client.take_back("GET", "/work/io?ms=1000")
                await asyncio.sleep(0.001)

    async def both() -> list[int]:
        flooding = asyncio.create_task(flood())
        served = []
        while not flooding.done():
            served.append((await once(quic, "GET", "/")).status)
        await flooding
        return served

    before = held(quic)
    served_meanwhile = asyncio.run(both())
    assert set(served_meanwhile) == {200}, served_meanwhile
    assert held(quic) - before < 8_000_000


def test_connections_are_spread_over_nginxs_workers(quic: Stack) -> None:
    def ticks() -> list[int]:
        """CPU time of each worker, in ticks."""
        (container,) = quic.containers("nginx")
        top = subprocess.check_output(["docker", "top", container, "-o", "pid,args"], text=True).splitlines()
        pids = [line.split()[0] for line in top if "worker process" in line and "shutting" not in line]
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in sorted(pids, key=int)]
        return [int(stat[11]) + int(stat[12]) for stat in stats]

    async def ask() -> None:
        async with http3.connected(quic.https_port, trusted(quic)) as client:
            for _ in range(10):
                assert (await client.ask("GET", "/")).status == 200

    async def many() -> None:
        await asyncio.gather(*(ask() for _ in range(36)))

    before = ticks()
    for _ in range(3):  # so many connections that chance gives each worker a fifth of them, and 40 at once at the most
        asyncio.run(many())
    used = [after - first for first, after in zip(before, ticks(), strict=True)]
    assert len(used) == 2, used
    assert min(used) >= 0.2 * sum(used), f"one worker did nearly all: {used}"


def test_a_reload_ends_a_connection_only_for_new_configuration_and_answers_what_is_under_way(quic: Stack) -> None:
    """The client is told of the end, and comes back at once instead of waiting for its timeout."""

    async def ask() -> tuple[str, str]:
        async with http3.connected(quic.https_port, trusted(quic), idle=300) as client:
            assert (await client.ask("GET", "/")).status == 200
            reloading = asyncio.create_task(asyncio.to_thread(quic.make, "reload"))
            while not reloading.done():  # never idle for CLIENT_KEEPALIVE_SECONDS, however long it takes
                assert (await client.ask("GET", "/")).status == 200
                await asyncio.wait([reloading], timeout=1)
            unchanged = reloading.result()
            assert (await client.ask("GET", "/")).status == 200, unchanged
            file = quic.root / HEALTH
            file.write_text(file.read_text().replace('"nginx":"ok"', '"nginx":"new"'))
            reloading = asyncio.create_task(asyncio.to_thread(quic.make, "reload"))
            statuses: Counter[int] = Counter()
            while not client.ended.done():  # until nginx closes it
                try:
                    answers = await asyncio.gather(*(client.begin("GET", "/work/io?ms=500") for _ in range(5)))
                    statuses.update(answer.status for answer in answers)
                    await asyncio.wait([client.ended], timeout=0.3)
                except ConnectionError:
                    break
            changed = await reloading
            assert set(statuses) == {200}, statuses
            until("new workers", lambda: quic.client().get("/nginx-health").json() == {"nginx": "new"})
            async with asyncio.timeout(DEADLINE):
                await client.ended
        assert (await once(quic, "GET", "/")).status == 200
        return unchanged.stdout, changed.stdout

    unchanged, changed = asyncio.run(ask())
    assert "HTTP/3" not in unchanged
    assert "connections of HTTP/3 end when what is under way is answered" in changed


def test_nothing_is_lost_while_the_certificate_is_renewed(quic: Stack) -> None:
    folder = Path(quic.rows["TLS_FOLDER"])
    first = (folder / "site.pem").read_bytes()
    renewals = [certificates.site() for _ in range(5)]

    async def ask() -> Counter[int]:
        statuses: Counter[int] = Counter()
        async with http3.connected(quic.https_port, trusted(quic)) as client:

            async def load() -> None:
                number = 0
                while True:
                    number += 1
                    headers = [("content-type", "application/json"), ("idempotency-key", f"renewal-{number:08}")]
                    both = client.ask("GET", "/work/io?ms=1"), client.ask("POST", "/orders", headers, BODY)
                    statuses.update(answer.status for answer in await asyncio.gather(*both))

            running = asyncio.create_task(load())
            for pem in renewals:
                await asyncio.to_thread(put_for_all, quic, pem)
                public = folder / "new.pem"
                public.write_bytes(pem[pem.index(b"-----BEGIN CERT") :])
                async with http3.connected(quic.https_port, public) as late:
                    assert (await late.ask("GET", "/")).status == 200
                assert not running.done(), running.exception()
            running.cancel()
        return statuses

    try:
        statuses = asyncio.run(ask())
    finally:
        put_for_all(quic, first)
    assert set(statuses) == {200, 201}, statuses
    assert statuses[201] > 50, statuses


def test_a_stranger_cannot_have_more_sent_to_somebody_than_three_times_what_he_sends(quic: Stack) -> None:
    """His sender's address is somebody else's: nginx sends three times as much to it, until it has answered."""
    made = QuicConnection(configuration=QuicConfiguration(alpn_protocols=H3_ALPN, server_name="localhost"))
    address = ("127.0.0.1", quic.https_port)
    made.connect(address, now=time.time())
    ((datagram, _),) = made.datagrams_to_send(now=time.time())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as somebody:
        somebody.sendto(datagram, address)
        somebody.settimeout(5)  # longer than the pauses between what is sent again
        received = 0
        try:
            while True:
                received += len(somebody.recv(65536))
        except TimeoutError:
            pass
    assert 0 < received <= 3 * len(datagram), (received, len(datagram))
    assert asyncio.run(once(quic, "GET", "/")).status == 200


@pytest.fixture
def home(quic: Stack, tmp_path: Path) -> Path:
    """Of a browser that trusts the stack's certificate."""
    certutil = shutil.which("certutil") or lacks("certutil is not installed (libnss3-tools)", "REQUIRE_BROWSER")
    store = tmp_path / ".pki/nssdb"
    store.mkdir(parents=True)
    trust = ["-N", "--empty-password"], ["-A", "-t", "P,,", "-n", "localhost", "-i", str(trusted(quic))]
    for command in trust:
        subprocess.run([certutil, "-d", f"sql:{store}", *command], check=True)
    return tmp_path


MAPPED = "--host-resolver-rules=MAP example.com 127.0.0.1"
HOP = "performance.getEntriesByType('navigation')[0].nextHopProtocol"


# Alone: Chromium gives up what it loads when a network of this machine comes or goes (ERR_NETWORK_CHANGED).
@pytest.mark.alone
@pytest.mark.parametrize("protocol", ["h2", "h3"])
def test_a_browser_that_trusts_the_certificate_has_no_warning(
    quic: Stack, chromium: str, protocol: str, home: Path
) -> None:
    site = f"example.com:{quic.https_port}"
    # Otherwise it comes by HTTP/2 first, and by HTTP/3 when it sees fit.
    flags = [MAPPED, f"--origin-to-force-quic-on={site}" if protocol == "h3" else "--disable-quic"]
    complaints: list[str] = []
    with opened(chromium, f"https://{site}/", complaints, flags=flags, home=home) as page:
        assert page.evaluate("isSecureContext")
        assert page.evaluate(HOP) == protocol
        assert json.loads(page.inner_text("body"))["scheme"] == "https"
    # The demo has no picture for its tab.
    assert [complaint for complaint in complaints if "favicon.ico" not in complaint] == []


@pytest.mark.alone
@pytest.mark.skipif(not shutil.which("iptables"), reason="iptables is not installed")
def test_where_udp_is_blocked_a_browser_stays_with_http2(quic: Stack, chromium: str, home: Path) -> None:
    """It reads of HTTP/3 in the first page, and tries it for one of the next: the packets vanish."""
    nginx = quic.inspect(quic.containers("nginx")[0])["State"]["Pid"]

    def filtered(*words: str) -> str:
        inside = ["nsenter", "--net", f"--target={nginx}", "iptables"]
        return subprocess.check_output([*inside, *words], text=True)

    dropped = ("INPUT", "--protocol", "udp", "--destination-port", "443", "--jump", "DROP")
    filtered("--append", *dropped)
    try:
        with opened(chromium, f"https://example.com:{quic.https_port}/", [], flags=[MAPPED], home=home) as page:

            def tried() -> bool:
                answer = page.reload()
                assert answer
                assert (answer.status, page.evaluate(HOP)) == (200, "h2")
                return packets() > 0

            def packets() -> int:
                listed = filtered("--list", "INPUT", "--verbose", "--exact", "--numeric").splitlines()
                return int(next(line.split()[0] for line in listed if "DROP" in line))

            until("it has tried HTTP/3", tried)
            assert page.reload()
            assert page.evaluate(HOP) == "h2"
    finally:
        filtered("--delete", *dropped)


def test_without_it_no_port_of_udp_is_taken() -> None:
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack("compose", "no-http3", TLS="files", TLS_FOLDER=folder)
        nginx = json.loads(stack.compose("config", "--format", "json"))["services"]["nginx"]
    assert {port["protocol"] for port in nginx["ports"]} == {"tcp"}


def test_300_half_handshakes_hold_what_the_budget_says_and_their_place_is_given_back(quic: Stack) -> None:
    """Each is the first packet of a client that is heard of no more."""

    def half() -> None:
        made = QuicConnection(configuration=QuicConfiguration(alpn_protocols=H3_ALPN, server_name="localhost"))
        made.connect(("127.0.0.1", quic.https_port), now=time.time())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for datagram, _ in made.datagrams_to_send(now=time.time()):
                stranger.sendto(datagram, ("127.0.0.1", quic.https_port))

    async def closed() -> None:
        async with http3.connected(quic.https_port, trusted(quic)) as client:
            await client.ended

    before = held(quic)
    for _ in range(300):
        half()
    for _ in range(10):  # each nginx worker that answers has read what came before
        assert asyncio.run(once(quic, "GET", "/")).status == 200
    first = held(quic) - before
    assert first / 300 < space.CONNECTION + space.TLS + space.QUIC
    # One that came after them, and asks for nothing, is closed for its idleness; so are they.
    asyncio.run(asyncio.wait_for(closed(), DEADLINE))
    for _ in range(300):
        half()
    assert held(quic) - before < 1.5 * first, "the first 300 still hold their memory"


def test_an_nginx_without_http3_is_refused_in_one_line() -> None:
    binary = native.nginx()
    if "http_v3" in subprocess.run([binary, "-V"], capture_output=True, text=True).stderr:
        pytest.skip("this nginx has HTTP/3")
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack("native", "no-http3", TLS="files", TLS_FOLDER=folder, HTTP3="on", NGINX_MEMORY="9g")
        try:
            done = stack.make("up")
        finally:
            stack.down()
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done
    for words in ("HTTP3=on", binary, "without HTTP/3", "set HTTP3=off"):
        assert words in done.stderr
