"""HTTPS: what it costs by protocol and by handshake, how long a page's requests take, what a renewal holds up."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import io
import itertools
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from app.server.settings import read
from bench import cpu
from bench.harness import Comparison, Progress, Result
from bench.processes import IMAGE, Bench, CannotRun
from bench.ratios import Figures, Goal, ratios
from proofs import http2, http3
from stack import certificate, compose, debian, native
from stack.console import Failure
from stack.settings import GIVEN, StackSettings, rows

QUESTION = (
    "How much more CPU does a request take by HTTPS over HTTP/1.1, HTTP/2 and HTTP/3, and a handshake with and without "
    "resumption; and how long does a renewal of the certificate keep a client waiting?"
)
ROUNDS = 8
# Under way at a time, by each protocol: connections and streams of each.
LOADS = {"plain HTTP/1.1": (100, 1), "HTTP/1.1 over TLS": (100, 1), "HTTP/2 over TLS": (4, 25)}
PLAIN, ENCRYPTED, SECOND = LOADS
SLICE_SECONDS = 1
PAGE = 100  # small requests on one connection
HANDSHAKES = 400
PAGES = 6  # in a row, by each client in Python
RENEWALS = 6
PATH = "/"
CACHE = "ssl_certificate_cache max=2 valid=1s;\n"  # in nginx/templates/tls.conf.template
NGINX_GOAL, HANDSHAKE_GOAL, GAP_GOAL = Goal("at most", 1.3), Goal("at most", 1.15), Goal("at most", 100)


def seconds() -> float:
    return 8 + ROUNDS * (len(LOADS) * (SLICE_SECONDS + 0.3) + 2.6) + 2 * (RENEWALS + 1)


Client = Callable[[int, Path], Coroutine[None, None, list[float]]]


@dataclass(frozen=True)
class Server:
    """An nginx and its app: the pid at the root of the processes of each, where nginx is asked, and on which port."""

    nginx: int
    app: int
    url: str
    port: int

    @property
    def tiers(self) -> dict[str, int]:
        return {"nginx": self.nginx, "app": self.app}


def run(progress: Progress) -> Result:
    _prepare()
    result = Result()
    image = compose.engine() is not None
    nginx = native.nginx()
    result.notes.append(f"nginx is {IMAGE if image else nginx}; the load of the first table is h2load's")
    with ExitStack() as stack:
        progress.step("starting the app, and nginx with and without HTTPS")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # nginx in its container is another user
        site, *renewals = _certificates(folder, 1 + RENEWALS)
        has_third = image or "http_v3" in subprocess.run([nginx, "-V"], capture_output=True, text=True).stderr
        plain = Bench("plain")
        secure = Bench("secure", TLS="files", TLS_FOLDER=str(site), HTTP3="on" if has_third else "off")
        apps = []
        for bench in (plain, secure):
            stack.enter_context(bench.own_folder())
            apps.append(stack.enter_context(bench.app()))
        pid, port, _ = stack.enter_context(plain.nginx_of(image, "plain", {}))
        ours = _server(stack.enter_context(secure.nginx_of(image, "ours", {})), apps[1])
        words = ("ssl_certificate", "ssl_certificate_key")
        fixed = {f"{word} $stack_certificate;": f"{word} {site}/site.pem;" for word in words}
        handshakes = {
            "full": ours,
            "resumed": ours,
            "static": _server(stack.enter_context(secure.nginx_of(image, "static", fixed)), apps[1]),
        }
        if image:  # what is installed here may be older, and has no such cache
            uncached = stack.enter_context(secure.nginx_of(image, "uncached", {CACHE: ""}))
            handshakes["uncached"] = _server(uncached, apps[1])
        servers = {PLAIN: Server(pid, apps[0], f"http://localhost:{port}", port), ENCRYPTED: ours, SECOND: ours}
        _protocols(result, servers, progress)
        _pages(result, servers, progress)
        _handshakes(result, handshakes, site, progress)
        if has_third:
            _third(result, ours, site, progress)
        else:
            result.unavailable.append(f"HTTP/3: {nginx} was built without it")
        _renewals(result, ours, site, renewals, progress)
    return result


def _server(found: tuple[int, int, int], app: int) -> Server:
    pid, _, port = found
    return Server(pid, app, f"https://localhost:{port}", port)


def _prepare() -> None:
    """Raises CannotRun where h2load is not to be had."""
    if shutil.which("h2load"):
        return
    if not debian.can_install():
        raise CannotRun("h2load, which makes the load, is not installed: sudo apt-get install nghttp2-client")
    try:
        debian.install("nghttp2-client")
    except Failure as failure:
        raise CannotRun(f"h2load: {failure}") from None


def _certificates(folder: Path, count: int) -> list[Path]:
    """Folders, each with a site.pem of its own for localhost."""
    table = GIVEN | rows() | {"TLS": "files"}
    found = []
    for number in range(count):
        found.append(folder / str(number))
        with contextlib.redirect_stdout(io.StringIO()):
            certificate.prepare(read(StackSettings, table | {"TLS_FOLDER": str(found[-1])}), in_compose=False)
        (found[-1] / "site.pem").chmod(0o644)
    return found


def _h2load(server: Server, name: str, *arguments: str) -> tuple[int, list[float]]:
    """Run h2load; the number of answers, and the milliseconds of each. Raises CannotRun unless all were 2xx."""
    version = [] if name == SECOND else ["--h1"]
    with tempfile.NamedTemporaryFile() as log:
        command = ["h2load", *version, "--threads=1", f"--log-file={log.name}", *arguments, f"{server.url}{PATH}"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
        lines = [line.split() for line in Path(log.name).read_text().splitlines()]
    wrong = [status for _, status, _ in lines if not status.startswith("2")]
    if not lines or wrong:
        raise CannotRun(f"{name}: {len(wrong)} of {len(lines)} requests failed; h2load says: {said.strip()[-300:]}")
    return len(lines), [int(microseconds) / 1000 for _, _, microseconds in lines]


def _cpu_us(server: Server, load: Callable[[], int]) -> dict[str, float]:
    """Microseconds of each tier's CPU for each of what `load` says it has done."""
    before = {tier: cpu.tree_seconds(pid) for tier, pid in server.tiers.items()}
    done = load()
    return {tier: (cpu.tree_seconds(pid) - before[tier]) / done * 1e6 for tier, pid in server.tiers.items()}


def _protocols(result: Result, servers: dict[str, Server], progress: Progress) -> None:
    tiers: dict[str, dict[str, list[float]]] = {tier: {name: [] for name in LOADS} for tier in ("nginx", "app")}
    for number in range(ROUNDS):
        for name in _in_turn(list(LOADS), number):
            progress.step(f"round {number + 1} of {ROUNDS}: {name}")
            connections, streams = LOADS[name]
            options = (f"--clients={connections}", f"--max-concurrent-streams={streams}", f"--duration={SLICE_SECONDS}")
            if not number:
                _h2load(servers[name], name, *options)  # the first second is the processes' own
            used = _cpu_us(servers[name], lambda: _h2load(servers[name], name, *options)[0])  # noqa: B023
            for tier, found in tiers.items():
                found[name].append(used[tier])
    for tier, found in tiers.items():
        for name in (ENCRYPTED, SECOND):
            goal = NGINX_GOAL if tier == "nginx" and name == SECOND else None
            ratio = ratios(found[name], found[PLAIN])
            result.comparisons.append(Comparison(f"{tier} CPU per request, {name} to {PLAIN}", ratio, goal))
        result.rounds[f"{tier} CPU us per request"] = found
    for name, (connections, streams) in LOADS.items():
        columns = {"connections": str(connections), "streams of each": str(streams)}
        cost = {f"{tier} CPU us/request": f"{median(found[name]):.0f}" for tier, found in tiers.items()}
        result.details.append({"protocol": name} | columns | cost)


def _pages(result: Result, servers: dict[str, Server], progress: Progress) -> None:
    """The 99th percentile of a page of small requests on one connection."""
    found: dict[str, list[float]] = {name: [] for name in LOADS}
    for number in range(ROUNDS):
        progress.step(f"round {number + 1} of {ROUNDS}: {PAGE} small requests on one connection")
        for name in _in_turn(list(LOADS), number):
            streams = PAGE if name == SECOND else 1
            options = ("--clients=1", f"--max-concurrent-streams={streams}", f"--requests={PAGE}")
            found[name].append(_p99(_h2load(servers[name], name, *options)[1]))
    for name, taken in found.items():
        at_a_time = "all at a time" if name == SECOND else "one after the other"
        figure = f"p99 of {PAGE} small requests on one connection of {name}, {at_a_time}"
        result.comparisons.append(Comparison(figure, Figures(tuple(taken)), unit="ms"))
    result.rounds["p99 ms of a page"] = found


def _handshakes(result: Result, servers: dict[str, Server], site: Path, progress: Progress) -> None:
    """Each with one small request, after which a session of TLS 1.3 is there."""
    found: dict[str, list[float]] = {kind: [] for kind in servers}
    for number in range(ROUNDS):
        progress.step(f"round {number + 1} of {ROUNDS}: handshakes")
        for kind in _in_turn(list(found), number):
            load = functools.partial(_shake_hands, servers[kind], site, again=kind == "resumed")
            found[kind].append(_cpu_us(servers[kind], load)["nginx"] / 1000)
    variable, fixed = "this configuration", "a static certificate"
    cost = "nginx CPU per handshake"
    result.comparisons += [
        Comparison(f"{cost}, {variable} to {fixed}", ratios(found["full"], found["static"]), HANDSHAKE_GOAL),
        Comparison(f"{cost}, a session resumed to none", ratios(found["resumed"], found["full"])),
        Comparison(f"{cost} and one request", Figures(tuple(found["full"])), unit="ms"),
    ]
    if "uncached" in found:
        without = ratios(found["uncached"], found["full"])
        result.comparisons.append(Comparison(f"{cost}, no cache of certificates to {variable}", without))
    result.rounds["nginx CPU ms per handshake"] = found


def _shake_hands(server: Server, site: Path, *, again: bool) -> int:
    context = ssl.create_default_context(cafile=site / "trusted/localhost.pem")
    session = None
    for _ in range(HANDSHAKES):
        plain = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        with context.wrap_socket(plain, server_hostname="localhost", session=session) as connection:
            if again and session and not connection.session_reused:
                raise CannotRun("a session was not resumed")
            connection.sendall(b"GET /nginx-health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            while connection.recv(4096):
                pass
            session = connection.session if again else None
    return HANDSHAKES


def _third(result: Result, ours: Server, site: Path, progress: Progress) -> None:
    """HTTP/3 against HTTP/2, both by clients in Python: h2load has no HTTP/3."""
    second, third = "HTTP/2 by a client in Python", "HTTP/3 by a client in Python"
    clients = {second: _by_http2, third: _by_http3}
    costs: dict[str, list[float]] = {name: [] for name in clients}
    pages: dict[str, list[float]] = {name: [] for name in clients}
    for number in range(ROUNDS):
        for name in _in_turn(list(clients), number):
            progress.step(f"round {number + 1} of {ROUNDS}: {name}")
            p99s: list[float] = []

            def load(client: Client = clients[name], p99s: list[float] = p99s) -> int:
                p99s += asyncio.run(client(ours.port, site))
                return len(p99s) * PAGE

            costs[name].append(_cpu_us(ours, load)["nginx"])
            pages[name].append(median(p99s))
    cost = ratios(costs[third], costs[second])
    result.comparisons.append(Comparison(f"nginx CPU per request, {third} to {second}", cost))
    figure = f"p99 of {PAGE} small requests at a time on one connection, {third} to {second}"
    result.comparisons.append(Comparison(figure, ratios(pages[third], pages[second])))
    result.rounds["nginx CPU us per request, clients in Python"] = costs
    result.rounds["p99 ms of a page, clients in Python"] = pages


async def _by_http2(port: int, site: Path) -> list[float]:
    trust = ssl.create_default_context(cafile=site / "trusted/localhost.pem")
    trust.set_alpn_protocols(["h2"])
    connection = await http2.connect(port, trust)
    headers = http2.request_headers("GET", PATH, port)

    async def ask() -> int:
        return await connection.begin(headers).answer

    p99s = await _ask_for_pages(ask)
    assert connection.transport
    connection.transport.close()
    return p99s


async def _by_http3(port: int, site: Path) -> list[float]:
    async with http3.connected(port, site / "trusted/localhost.pem") as connection:

        async def ask() -> int:
            return (await connection.begin("GET", PATH)).status

        return await _ask_for_pages(ask)


async def _ask_for_pages(ask: Callable[[], Awaitable[int]]) -> list[float]:
    """The 99th percentile of each of PAGES, in milliseconds; `ask` gives the status of an answer."""

    async def timed() -> tuple[int, float]:
        begun = time.monotonic()
        return await ask(), (time.monotonic() - begun) * 1000

    p99s = []
    for _ in range(PAGES):
        answers = await asyncio.gather(*(timed() for _ in range(PAGE)))
        _hold_to_success([status for status, _ in answers])
        p99s.append(_p99([milliseconds for _, milliseconds in answers]))
    return p99s


def _p99(of_page: Sequence[float]) -> float:
    return sorted(of_page)[PAGE * 99 // 100 - 1]


def _hold_to_success(statuses: Sequence[int]) -> None:
    if wrong := [status for status in statuses if status != 200]:
        raise CannotRun(f"{len(wrong)} of {len(statuses)} requests failed: status {wrong[0]}")


def _renewals(result: Result, ours: Server, site: Path, renewals: Sequence[Path], progress: Progress) -> None:
    """The longest time between two answers to a client that connects anew for each, a renewal a second meanwhile."""
    gaps = {}
    for name, pems in (("without a renewal", []), ("while the certificate is renewed", renewals)):
        progress.step(f"the longest wait of a steady client, {name}")
        times: list[float] = []
        over = threading.Event()
        client = threading.Thread(target=_ask_steadily, args=(ours.port, [site, *renewals], times, over))
        client.start()
        for number in range(RENEWALS):
            time.sleep(1)
            if pems:
                shutil.copy2(pems[number] / "site.pem", site / "site.part")
                (site / "site.part").rename(site / "site.pem")
        time.sleep(1)
        over.set()
        client.join()
        gaps[name] = max(after - before for before, after in itertools.pairwise(times)) * 1000
    for name, gap in gaps.items():
        goal = GAP_GOAL if "renewed" in name else None
        result.comparisons.append(
            Comparison(
                f"longest gap between two answers to a client that connects anew for each, {name}",
                Figures((gap,)),
                goal,
                unit="ms",
            )
        )


def _ask_steadily(port: int, trusted: Sequence[Path], times: list[float], over: threading.Event) -> None:
    trust = ssl.create_default_context()
    for site in trusted:
        trust.load_verify_locations(site / "trusted/localhost.pem")
    while not over.is_set():
        connection = http.client.HTTPSConnection("localhost", port, timeout=10, context=trust)
        connection.request("GET", PATH)
        connection.getresponse().read()
        connection.close()
        times.append(time.monotonic())


def _in_turn(names: list[str], number: int) -> list[str]:
    """Another one comes first each time."""
    turn = number % len(names)
    return [*names[turn:], *names[:turn]]
