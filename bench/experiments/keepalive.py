"""Uvicorn closes idle connections sooner or later, behind an nginx that keeps them: what is opened, what is lost."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench import harness, load, target
from bench.experiments.proxy import REQUEST
from bench.experiments.servers_app import ANY
from bench.harness import Comparison, Progress, Result, Variant
from bench.load import Request
from bench.losses import Fate, volleys
from bench.processes import Bench
from bench.ratios import Figures, ratios
from bench.servers import SERVERS
from stack.settings import rows

QUESTION = (
    "Uvicorn closes an idle connection after 0, 2, 5 or 75 s, nginx after 60 s, and beside the 75 s after the time in "
    ".env: how many connections are opened, what does a request cost, and how many POSTs are lost at that moment?"
)
ROUNDS = 3
CONNECTIONS = 64
COUNT_SECONDS = 1
# Around the moment when either side closes.
VOLLEY, GAPS = 40, (-0.02, -0.015, -0.01, -0.005, 0.0, 0.005, 0.01, 0.015)

PROXY_SECONDS = 60
ROW = "UPSTREAM_KEEPALIVE_SECONDS"
BASE = 75  # APP_KEEPALIVE_SECONDS of .env
# Of Uvicorn, and of nginx (None: as in .env). All is one server: what differs is this.
VARIANTS = {75: None, 5: PROXY_SECONDS, 2: PROXY_SECONDS, 0: PROXY_SECONDS}


def name(keep_alive: int) -> str:
    """nginx's time is in the table of details: this is a part of sentences."""
    return f"a keep-alive of {keep_alive} s"


def seconds() -> float:
    counting = len(VARIANTS) * ROUNDS * (COUNT_SECONDS + 0.3)
    races = (len(GAPS) + 1) * (5 + 0.7)
    return 12 + harness.seconds(len(VARIANTS), ROUNDS) + counting + races


def run(progress: Progress) -> Result:
    result = Result()
    asked = target.given()
    request = target.asked(REQUEST)
    with ExitStack() as stack:
        variants: dict[int, Variant] = {}
        ports: dict[int, int] = {}
        for keep_alive, proxy in VARIANTS.items():
            progress.step(f"starting Uvicorn with {name(keep_alive)}")
            bench = _bench(keep_alive, proxy, asked.module)
            stack.enter_context(bench.own_folder())
            app = stack.enter_context(bench.other_app(_command(bench, keep_alive)))
            nginx = stack.enter_context(bench.nginx())
            variants[keep_alive] = Variant(name(keep_alive), bench.url, {"app": app, "nginx": nginx})
            ports[keep_alive] = bench.http_port
        found = harness.measure(list(variants.values()), request, ROUNDS, CONNECTIONS, progress)
        opened: dict[str, list[float]] = {each.name: [] for each in variants.values()}
        for number in range(ROUNDS):
            progress.step(f"round {number + 1} of {ROUNDS}: connections that are opened")
            for variant in variants.values():
                opened[variant.name].append(_opened(variant, request))
        progress.step("POSTs as idle connections end, all variants at the same time")
        fates = volleys({ports[each]: _gaps(each) for each in VARIANTS}, VOLLEY, ANY)
    harness.add_rounds(result, request, found)
    _compare(result, found, opened, {name(each): fates[ports[each]] for each in VARIANTS})
    return result


def _bench(keep_alive: int, proxy: int | None, module: str) -> Bench:
    changed = {"WORKER_LISTENERS": "shared", "APP_MODULE": "bench.experiments.servers_app:app"}
    changed["BENCH_APP_MODULE"] = module
    return Bench(f"keepalive-{keep_alive}", **changed, **({ROW: str(proxy)} if proxy else {}))


def _command(bench: Bench, keep_alive: int) -> str:
    """Stock Uvicorn: the stack's own start refuses these values (docs/timeouts.md)."""
    uvicorn = next(server for server in SERVERS if server.package == "uvicorn")
    return uvicorn.line(bench.app_port, int(rows()["WORKERS"]), f"--timeout-keep-alive {keep_alive}")


def _gaps(keep_alive: int) -> list[float]:
    """Silences that end as the first of both closes; a connection that is closed at once has no such moment."""
    closes = min(keep_alive, VARIANTS[keep_alive] or float(rows()[ROW]))
    return [max(0.0, closes + gap) for gap in GAPS]


# --- connections --------------------------------------------------------------------------------------------------


def active_opens(snmp: str) -> int:
    """Of the text of /proc/net/snmp: how many TCP connections were opened since the start, on this whole machine."""
    head, values = (line.split() for line in snmp.splitlines() if line.startswith("Tcp:"))
    return int(values[head.index("ActiveOpens")])


def per_request(opens: int, requests: int, by_the_load: int) -> float:
    """Connections to the app for each request: all that were opened, without the load's own."""
    return max(0, opens - by_the_load) / requests


def _opened(variant: Variant, request: Request) -> float:
    """Under load. What other work on this machine opens meanwhile is in it."""
    before = active_opens(Path("/proc/net/snmp").read_text())
    outcome = load.run(variant.url, request, CONNECTIONS, COUNT_SECONDS)
    opens = active_opens(Path("/proc/net/snmp").read_text()) - before
    return per_request(opens, outcome.requests, CONNECTIONS)


# --- what was found -----------------------------------------------------------------------------------------------


def _compare(
    result: Result,
    found: dict[str, list[harness.Round]],
    opened: dict[str, list[float]],
    fates: dict[str, Fate],
) -> None:
    base, others = name(BASE), [name(each) for each in VARIANTS if each != BASE]
    for other in others:
        cost = harness.cpu_ratio(found[other], found[base], "app")
        result.comparisons.append(Comparison(f"app CPU per request, {other} to {base}", cost))
    for other in others:
        throughput = harness.throughput_ratio(found[other], found[base])
        p99 = ratios([each.p99_ms for each in found[other]], [each.p99_ms for each in found[base]])
        result.comparisons += [
            Comparison(f"throughput, {other} to {base}", throughput),
            Comparison(f"p99, {other} to {base}", p99),
        ]
    for each, taken in opened.items():
        figures = Figures(tuple(taken))
        result.comparisons.append(Comparison(f"new connections for each request with {each}", figures, unit="opened"))
    for each, fate in fates.items():
        share = Figures((100 * fate.lost / fate.sent,))
        result.comparisons.append(Comparison(f"POSTs lost as connections end with {each}", share, unit="%"))
    for keep_alive, proxy in VARIANTS.items():
        each = name(keep_alive)
        a_second = [new * round_.throughput for new, round_ in zip(opened[each], found[each], strict=True)]
        fate = fates[each]
        row = {"Uvicorn": each, "nginx": f"{proxy or rows()[ROW]} s"}
        row |= {"connections opened/request": f"{median(opened[each]):.3f}", "opened/s": f"{median(a_second):.0f}"}
        result.details.append(row | {"lost POSTs": str(fate), "share lost": f"{fate.lost / fate.sent:.1%}"})
    result.rounds["connections opened per request"] = opened
    result.rounds["lost POSTs"] = {each: {"sent": fate.sent, "lost": fate.lost} for each, fate in fates.items()}
    result.notes += [
        f'"0 means never" is a widely copied claim; here {said(median(opened[name(0)]))}',
        "nginx sends a GET again whose connection is just closed, and a POST not",
        "connections are counted by the kernel (ActiveOpens of /proc/net/snmp), with those that other work opens "
        "meanwhile",
    ]


def said(opened: float) -> str:
    """What `opened` connections for each request say of Uvicorn's keep-alive of 0."""
    if opened > 0.5:
        return f"it means at once: {opened:.2f} connections are opened for each request"
    return f"only {opened:.2f} connections are opened for each request under load: see what is lost when it is idle"
