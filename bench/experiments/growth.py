"""What a request costs as the stack grows: servers, workers, routes, headers. Clients that stay: experiment crowd."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from statistics import median

from bench import harness, memory, open_loop, queues
from bench.harness import Comparison, Progress, Result, Round, Variant
from bench.load import Request
from bench.processes import Bench, CannotRun
from bench.ratios import Figures, Goal, ratios

QUESTION = "What does a request cost, as servers, workers, routes and headers grow?"
ROUNDS = 3
CONNECTIONS = 64
SERVERS = (2, 20, 200, 2000)
WORKERS = (1, 4, 16, 64)
ROUTES = (1, 100, 1000)
HEADER_BYTES = (100, 1000, 4000, 8000)
HELD = (1, 4, 16)
SIMULATED = (1, 4, 16, 64, 250, 1000)
HOLD_MS, LOAD, QUEUE_SECONDS = 20.0, 0.8, 8
# Of the list of SERVERS, in nginx's shared memory; and what it is by the rows of one worker.
ZONE, ROW_ZONE = "zone app 16m;", "zone app 264k;"
# The budget's, for as many workers.
MANY = {"PROXY_NEXT_UPSTREAM_TRIES": "100", "PROXY_CONNECT_TIMEOUT_MS": "60"}
GET = Request("GET", "/", {"Host": "bench.test"})
ROWS = {
    "APP_MODULE": "bench.experiments.growth_app:app",
    "WORKERS": "1",
    "APP_REPLICAS": "1",
    "WORKER_MEMORY_MB": "0",
    "CACHE_MB": "0",
    "APP_MAX_REQUESTS_IN_FLIGHT": "20000",
    "NGINX_WORKERS": "1",
    "CLIENT_KEEPALIVE_SECONDS": "600",
    "APP_KEEPALIVE_SECONDS": "600",
    "CLIENT_MAX_HEADER_BYTES": "16384",
}


def seconds() -> float:
    return 200


def run(progress: Progress) -> Result:
    result = Result()
    for part in (_servers, _routes, _headers, _queues, _workers):
        try:
            part(result, progress)
        except CannotRun as failure:
            result.unavailable.append(f"{part.__name__.strip('_')}: {failure}")
    return result


def keep(result: Result, what: str, unit: str, name: str, by_size: dict[int, float]) -> None:
    """A line of a picture, and its points."""
    result.growth.setdefault(f"{unit} by {what}", {})[name] = {float(size): value for size, value in by_size.items()}


def add_rows(result: Result, what: str, found: dict[int, dict[str, float]]) -> None:
    for size, values in found.items():
        row = {what: str(size)} | {
            name: f"{value:.3g}" if value < 100 else f"{value:.0f}" for name, value in values.items()
        }
        result.details.append(row)


def _tiers(rounds: Sequence[Round]) -> dict[str, float]:
    return {f"{tier} CPU us/request": median(each.cpu_us[tier] for each in rounds) for tier in rounds[0].cpu_us}


# --- servers in nginx's list ---------------------------------------------------------------------------------------


def _servers(result: Result, progress: Progress) -> None:
    """All of them are the same worker, by other addresses of loopback: what differs is the list."""
    bench = Bench("servers", **ROWS)
    bench.environ["APP_HOST"] = "0.0.0.0"
    with ExitStack() as stack:
        stack.enter_context(bench.own_folder())
        stack.enter_context(bench.app())
        port = bench.app_port
        one = f"server 127.0.0.1:{port} max_conns=20000 max_fails=0;"
        variants, ways = [], [(count, "least_conn;", "") for count in SERVERS]
        ways.append((SERVERS[-1], "random two least_conn;", ", random two"))
        for count, balance, name in ways:
            servers = "\n".join(one.replace("127.0.0.1", f"127.1.{n // 250}.{n % 250 + 1}") for n in range(count))
            changes = {
                one: servers,
                ROW_ZONE: ZONE,
                "least_conn;": balance,
                "keepalive 128;": f"keepalive {max(128, 2 * count)};",
            }
            pid, url = stack.enter_context(bench.changed_nginx(f"list{count}{name[-3:]}", changes))
            variants.append(Variant(f"{count} servers{name}", url, {"nginx": pid}))
        count = SERVERS[-1]
        servers = "\n".join(one.replace("127.0.0.1", f"127.1.{n // 250}.{n % 250 + 1}") for n in range(count))
        pid, url = stack.enter_context(bench.changed_nginx("few", {one: servers, ROW_ZONE: ZONE}))
        variants.append(Variant(f"{count} servers, 128 kept connections", url, {"nginx": pid}))
        found = harness.measure(variants, GET, ROUNDS, CONNECTIONS, progress)
    result.rounds["servers"] = {name: [asdict(each) for each in rounds] for name, rounds in found.items()}
    by_size = {count: median(r.cpu_us["nginx"] for r in found[f"{count} servers"]) for count in SERVERS}
    keep(result, "servers in nginx's list", "CPU us/request", "nginx", by_size)
    for name, rounds in found.items():
        result.details.append(
            {"nginx's list": name, "nginx CPU us/request": f"{_tiers(rounds)['nginx CPU us/request']:.3g}"}
        )
    base = found[f"{SERVERS[0]} servers"]
    for name in list(found)[len(SERVERS) - 1 :]:
        # Which is what such a list gets (nginx/40-upstream.sh).
        goal = Goal("at most", 1.5) if name.endswith("random two") else None
        result.comparisons.append(
            Comparison(
                f"nginx CPU per request, {name} to {SERVERS[0]}", harness.cpu_ratio(found[name], base, "nginx"), goal
            )
        )


# --- routes, headers ------------------------------------------------------------------------------------------------


def _routes(result: Result, progress: Progress) -> None:
    with ExitStack() as stack:
        variants = []
        for count in ROUTES:
            bench = Bench(f"routes{count}", **ROWS)
            bench.environ["GROWTH_ROUTES"] = str(count)
            stack.enter_context(bench.own_folder())
            variants.append(Variant(f"{count} routes", bench.app_url, {"app": stack.enter_context(bench.app())}))
        found = harness.measure(variants, GET, ROUNDS, CONNECTIONS, progress)
    values = {count: _tiers(found[f"{count} routes"]) for count in ROUTES}
    add_rows(result, "routes before the one that is asked", values)
    keep(result, "routes", "CPU us/request", "app", {n: each["app CPU us/request"] for n, each in values.items()})
    figures = harness.cpu_ratio(found[f"{ROUTES[-1]} routes"], found[f"{ROUTES[0]} routes"], "app")
    result.comparisons.append(Comparison(f"app CPU per request, {ROUTES[-1]} routes to {ROUTES[0]}", figures))


def _headers(result: Result, progress: Progress) -> None:
    bench, found = Bench("headers", **ROWS), {}
    with ExitStack() as stack:
        stack.enter_context(bench.own_folder())
        tiers = {"app": stack.enter_context(bench.app()), "nginx": stack.enter_context(bench.nginx())}
        for size in HEADER_BYTES:
            lines = {f"X-Header-{n}": "x" * 85 for n in range(size // 100)}
            request = Request("GET", "/", {"Host": "bench.test"} | lines)
            variant = Variant(f"{size} bytes of headers", bench.url, tiers)
            found[size] = harness.measure([variant], request, ROUNDS, CONNECTIONS, progress)[variant.name]
    values = {size: _tiers(rounds) for size, rounds in found.items()}
    add_rows(result, "bytes of headers", values)
    for tier in ("app", "nginx"):
        by_size = {size: each[f"{tier} CPU us/request"] for size, each in values.items()}
        keep(result, "bytes of headers", "CPU us/request", tier, by_size)


# --- queues, measured and simulated ---------------------------------------------------------------------------------


def _queues(result: Result, progress: Progress) -> None:
    """Workers whose event loop is held for HOLD_MS a request, at 80 % of what all can do; and more than fit in here."""
    measured, simulated = {}, {}
    for count in HELD:
        progress.step(f"{count} workers, as full as 80 %")
        with ExitStack() as stack:
            bench = Bench(f"held{count}", **ROWS | MANY | {"WORKERS": str(count)})
            stack.enter_context(bench.own_folder())
            stack.enter_context(bench.app())
            stack.enter_context(bench.nginx())
            alone = open_loop.run(bench.http_port, [open_loop.Arrival(n / 20, "/hold") for n in range(40)])["/hold"]
            rate = LOAD * count * 1000 / HOLD_MS
            arrivals = open_loop.poisson(rate, QUEUE_SECONDS, "/hold", "/hold", 0.0, count)
            measured[count] = open_loop.percentile(open_loop.run(bench.http_port, arrivals)["/hold"], 0.9)
        own = median(alone) - HOLD_MS  # what nginx and the rest of the worker take, and the machine when it wakes up
        simulated[count] = open_loop.percentile(queues.waits(count, LOAD, [HOLD_MS], 20_000), 0.9) + own
    progress.step("simulating 1 to 1000 replicas")
    for count in SIMULATED:
        simulated[count] = simulated.get(count) or open_loop.percentile(
            queues.waits(count, LOAD, [HOLD_MS], max(6000, 20 * count)), 0.9
        )
    for count in sorted(simulated):
        row = {"workers, 80 % full": str(count), "p90 ms, simulated": f"{simulated[count]:.3g}"}
        row["p90 ms, measured"] = f"{measured[count]:.3g}" if count in measured else ""
        result.details.append(row)
    keep(result, "workers, each 80 % full", "p90 ms", "measured", measured)
    keep(result, "workers, each 80 % full", "p90 ms", "simulated", dict(sorted(simulated.items())))
    shares = Figures(tuple(measured[count] / simulated[count] for count in HELD))
    result.comparisons.append(Comparison("p90 of a queue, measured to simulated", shares))


# --- workers --------------------------------------------------------------------------------------------------------


def _workers(result: Result, progress: Progress) -> None:
    values: dict[int, dict[str, float]] = {}
    base: list[Round] = []
    for count in WORKERS:
        progress.step(f"{count} workers")
        with ExitStack() as stack:
            bench = Bench(f"workers{count}", **ROWS | MANY | {"WORKERS": str(count)})
            stack.enter_context(bench.own_folder())
            begun = time.monotonic()
            app = stack.enter_context(bench.app())
            started = time.monotonic() - begun
            nginx = stack.enter_context(bench.nginx())
            variant = Variant(f"{count} workers", bench.url, {"app": app, "nginx": nginx})
            rounds = harness.measure([variant], GET, ROUNDS, CONNECTIONS, progress)[variant.name]
            held = memory.tree_bytes(app) / count / 1e6
        base = base or rounds
        values[count] = {
            "s to start": started,
            "MB each": held,
            "requests/s": median(each.throughput for each in rounds),
            **_tiers(rounds),
        }
        last = rounds
    add_rows(result, "workers", values)
    for tier in ("app", "nginx"):
        by_size = {n: each[f"{tier} CPU us/request"] for n, each in values.items()}
        keep(result, "workers", "CPU us/request", tier, by_size)
        figures = ratios([each.cpu_us[tier] for each in last], [each.cpu_us[tier] for each in base])
        result.comparisons.append(Comparison(f"{tier} CPU per request, {WORKERS[-1]} workers to {WORKERS[0]}", figures))
