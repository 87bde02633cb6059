"""Which ASGI server: the stack's own worker and master against others, with the same app, shell and nginx."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import harness, memory, target
from bench.experiments.proxy import REQUEST
from bench.experiments.servers_app import ANY, BLOCK, BLOCK_SECONDS, WAIT, WAIT_SECONDS
from bench.harness import Comparison, Progress, Result, Variant, answer
from bench.load import Request
from bench.losses import LONG_SECONDS, Client, Fate, during, idle_seconds, volleys
from bench.processes import Bench, CannotRun
from bench.ratios import ratios
from bench.servers import SERVERS, Server
from stack.settings import rows

QUESTION = (
    "What does another ASGI server cost or save with the same app, shell and nginx, and which loses requests when idle "
    "connections end, workers are replaced, it stops, or a worker stands still?"
)
ROUNDS = 3
CONNECTIONS = 64
# Idle connections: nginx closes them first where the server has not by then.
VOLLEY, GAPS = 40, (-0.015, -0.01, -0.005, 0.0, 0.005, 0.01)
RATE, BLOCK_RATE = 150.0, 50.0  # of each server; a blocked loop is tried on all at once
SETTLE_SECONDS = 0.7
RELOAD_SECONDS = 12.0  # the longest that is waited for the last old worker
IN_FLIGHT = 10

OURS = "this worker"
KEEP_ALIVE, LONGER, RELOAD, STOP, BLOCKED, WAITED = (
    "default keep-alive", "longest keep-alive", "workers replaced", "stop", "a loop blocked",
    f"waited over {LONG_SECONDS:g} s then",
)  # fmt: skip
CHECKS = (KEEP_ALIVE, LONGER, RELOAD, STOP, BLOCKED)
NONE_TO_SET = "as before"  # it has no such option, or its default is above nginx's


def seconds() -> float:
    there = 1 + sum(server.why_not() is None for server in SERVERS)
    starts = 2.0 * (there + sum(bool(server.longest) for server in SERVERS))
    races = 7 + (len(GAPS) + 1) * 5.3
    return starts + harness.seconds(there, ROUNDS) + races + there * 6 + 9


@dataclass
class Running:
    """A server that serves: its stack, and the pid at its root."""

    name: str
    bench: Bench
    app: int
    nginx: int
    checks: dict[str, str] = field(default_factory=dict)

    @property
    def variant(self) -> Variant:
        return Variant(self.name, self.bench.url, {"app": self.app, "nginx": self.nginx})


def run(progress: Progress) -> Result:
    result = Result()
    request = target.asked(REQUEST)
    with ExitStack() as stack:
        progress.step(f"starting {OURS}")
        running = [_ours(stack)]
        as_they_are: dict[str, Running] = {}
        for server in SERVERS:
            progress.step(f"starting {server.name}")
            try:
                one = _start(stack, server, server.longest)
                _require_alike(one, running[0], request)
                if server.longest:
                    as_they_are[server.name] = _start(stack, server, "")
                running.append(one)
            except CannotRun as why:
                result.unavailable.append(f"{server.name}: {why}")
        held = {one.name: [_megabytes(one)] for one in running}
        found = harness.measure([one.variant for one in running], request, ROUNDS, CONNECTIONS, progress)
        for one in running:
            held[one.name].append(_megabytes(one))
        _keep_alive(running, as_they_are, progress)
        for one in running:
            held[one.name].append(_megabytes(one))
        for one in running:
            progress.step(f"{one.name}: its workers are replaced")
            one.checks[RELOAD] = _reload(one)
        progress.step("a worker of each blocks its loop")
        _block(running)
        progress.step("all stop with requests under way")
        _stop(running)
    harness.add_rounds(result, request, found)
    _compare(result, running, found, held)
    return result


def _ours(stack: ExitStack) -> Running:
    bench = _bench(stack, "ours", "per-worker")
    return Running(OURS, bench, stack.enter_context(bench.app()), stack.enter_context(bench.nginx()))


def _start(stack: ExitStack, server: Server, options: str) -> Running:
    """Raises CannotRun where it cannot be had, or does not answer."""
    if why := server.why_not():
        raise CannotRun(why)
    folder = f"{server.package}-{'set' if options else 'default'}"
    # What fails must not run on; what runs ends with `stack`.
    with ExitStack() as own:
        bench = _bench(own, folder, "shared")
        app = own.enter_context(bench.other_app(server.line(bench.app_port, int(rows()["WORKERS"]), options)))
        started = Running(server.name, bench, app, own.enter_context(bench.nginx()))
        stack.push(own.pop_all())
    return started


def _bench(stack: ExitStack, name: str, listeners: str) -> Bench:
    bench = Bench(
        f"servers-{name}",
        WORKER_LISTENERS=listeners,
        APP_MODULE="bench.experiments.servers_app:app",
        BENCH_APP_MODULE=target.given().module,
    )
    stack.enter_context(bench.own_folder())
    return bench


def _megabytes(one: Running) -> float:
    return memory.tree_bytes(one.app) / 1e6


def _require_alike(one: Running, ours: Running, request: Request) -> None:
    given, expected = answer(one.bench.url, request), answer(ours.bench.url, request)
    if given != expected:
        raise CannotRun(f"{request}: it answered {given}, but {OURS} answered {expected}")


# --- what loses requests ------------------------------------------------------------------------------------------


def _keep_alive(running: Sequence[Running], as_they_are: dict[str, Running], progress: Progress) -> None:
    """POSTs on idle connections to each, at the very moment when the server or nginx closes them."""
    proxy_closes = float(rows()["UPSTREAM_KEEPALIVE_SECONDS"])
    all_of_them = [*running, *as_they_are.values()]
    progress.step(f"after how long each closes an idle connection, up to {proxy_closes + 1:g} s")
    ends = idle_seconds([one.bench.app_port for one in all_of_them], ANY, proxy_closes + 1)
    ends = {one.bench.http_port: ends[one.bench.app_port] for one in all_of_them}
    gaps = {port: [min(end or proxy_closes, proxy_closes) + gap for gap in GAPS] for port, end in ends.items()}
    progress.step("POSTs as idle connections end, all servers at the same time")
    fates = volleys(gaps, VOLLEY, ANY)
    for one in running:
        default = as_they_are.get(one.name, one)
        one.checks[KEEP_ALIVE] = _race(fates[default.bench.http_port], ends[default.bench.http_port], proxy_closes)
        own = default is one
        one.checks[LONGER] = NONE_TO_SET if own else _race(fates[one.bench.http_port], None, proxy_closes)


def _race(fate: Fate, end: float | None, proxy_closes: float) -> str:
    closes = f"closes after {end:.1f} s" if end is not None else f"keeps them over nginx's {proxy_closes:g} s"
    return f"{fate}, {closes}"


def _reload(one: Running) -> str:
    """HUP, under load, until the last old worker is gone."""
    before = set(workers_of(one.app))
    late: list[bool] = []

    async def event(_: Client) -> None:
        await asyncio.sleep(SETTLE_SECONDS)
        os.kill(one.app, signal.SIGHUP)
        begun = time.monotonic()
        while before & set(workers_of(one.app)):
            if time.monotonic() - begun > RELOAD_SECONDS:
                late.append(True)
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(2 * SETTLE_SECONDS)

    fate = during({one.bench.http_port: event}, RATE, ANY)[one.bench.http_port]
    return f"{fate}, not all replaced in {RELOAD_SECONDS:g} s" if late else str(fate)


def workers_of(root: int) -> list[int]:
    """The pids of a server's workers: what is below it, without the helper of Python's multiprocessing."""
    found = []
    for pid in Path(f"/proc/{root}/task/{root}/children").read_text().split():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if command and b"resource_tracker" not in command:  # empty while it becomes another program
                found.append(int(pid))
        except OSError:  # it ended meanwhile
            continue
    return found


def _block(running: Sequence[Running]) -> None:
    """One handler keeps a worker's loop: what becomes of the other requests, and how many wait for it."""
    blocking = {one.bench.http_port: Client(one.bench.http_port) for one in running}

    async def event(client: Client) -> None:
        await asyncio.gather(*(client.send(path=ANY) for _ in range(VOLLEY)))  # nginx has connections to all workers
        await asyncio.sleep(SETTLE_SECONDS)
        await blocking[client.port].send("GET", BLOCK)
        await asyncio.sleep(SETTLE_SECONDS)
        blocking[client.port].close()

    fates = during(dict.fromkeys(blocking, event), BLOCK_RATE, ANY)
    for one in running:
        fate, its = fates[one.bench.http_port], blocking[one.bench.http_port].fate
        one.checks[WAITED] = str(fate.waited)
        one.checks[BLOCKED] = str(Fate(fate.sent + its.sent, fate.why + its.why))


def _stop(running: Sequence[Running]) -> None:
    """TERM to the servers while requests are under way. What comes later finds nobody, and is not counted."""
    masters = {one.bench.http_port: one.app for one in running}

    async def event(client: Client) -> None:
        asked = [asyncio.create_task(client.send("POST", WAIT)) for _ in range(IN_FLIGHT)]
        await asyncio.sleep(WAIT_SECONDS / 3)
        os.kill(masters[client.port], signal.SIGTERM)
        await asyncio.gather(*asked)

    fates = during(dict.fromkeys(masters, event), 0, ANY)
    for one in running:
        one.checks[STOP] = str(fates[one.bench.http_port])


# --- what was found -----------------------------------------------------------------------------------------------


def _compare(
    result: Result,
    running: Sequence[Running],
    found: dict[str, list[harness.Round]],
    held: dict[str, list[float]],
) -> None:
    mine, others = found[OURS], [one.name for one in running if one.name != OURS]
    for name in others:
        throughput = harness.throughput_ratio(mine, found[name])
        result.comparisons.append(Comparison(f"throughput, {OURS} to {name}", throughput))
    for name in others:
        p99 = ratios([each.p99_ms for each in mine], [each.p99_ms for each in found[name]])
        result.comparisons += [
            Comparison(f"app CPU per request, {OURS} to {name}", harness.cpu_ratio(mine, found[name], "app")),
            Comparison(f"p99, {OURS} to {name}", p99),
            Comparison(f"memory of the app, {OURS} to {name}", ratios(held[OURS], held[name])),
        ]
    for one in running:
        row = {"variant": one.name, "MB (PSS)": f"{median(held[one.name]):.0f}"}
        result.details.append(row | {check: one.checks[check] for check in (*CHECKS, WAITED)})
    result.rounds["memory MB"] = held
    result.rounds["lost"] = {one.name: one.checks for one in running}
    result.notes += notes(running)


def notes(running: Sequence[Running]) -> list[str]:
    whole = [one.name for one in running if all(survived(one.checks[check]) for check in CHECKS)]
    return [
        f"no request lost in any of the checks: {', '.join(whole) or 'none'}; one run of each, and a race is won by "
        "chance: a count of 0 is no proof (make zero-loss runs them longer for the stack)",
        "the drain, the replacement that stands before a worker leaves, and the socket for each worker are the stack's "
        "own worker and master alone; the shell around the app is the same for all",
        f"a blocked loop stands still for {BLOCK_SECONDS:g} s; requests wait for it that nginx sends on connections to "
        "it, and behind one socket nginx cannot tell the workers apart",
        "the throughput and latency of each are with its longest keep-alive; Daphne has neither workers nor the ASGI "
        "lifespan: bench/several.py runs as many of it on one socket, and replaces them",
    ]


def survived(fate: str) -> bool:
    return fate == NONE_TO_SET or (fate.startswith("0 of ") and "not all replaced" not in fate)
