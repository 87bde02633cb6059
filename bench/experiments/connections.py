"""What ten thousand idle clients cost: in memory, and those that ask something, through nginx and without it."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from bench import harness, idle_load, memory, open_loop
from bench.experiments.proxy import REQUEST
from bench.harness import Comparison, Progress, Result, Variant
from bench.open_loop import curve, percentile, poisson
from bench.processes import Bench, CannotRun
from bench.ratios import Figures, ratios

QUESTION = (
    "10,000 clients have had an answer and keep their connections open: how much memory is that, and how long does "
    "a client that asks something wait beside them, with nginx in front and straight on the app server?"
)
IDLE = 10_000
LEAST = 500  # fewer tell nothing
ROUNDS = 3
# The active client: an open loop, far from what one worker can do.
RATE = 200
SECONDS, SETTLE_SECONDS = 2.5, 0.5
ROWS = {
    "WORKERS": "1",
    "WORKER_MEMORY_MB": "0",  # a worker with so many connections would be replaced for it
    "NGINX_WORKER_CONNECTIONS": "12288",  # one of nginx's workers may get them all
    # None is closed before the end of the round.
    "CLIENT_KEEPALIVE_SECONDS": "600",
    "APP_KEEPALIVE_SECONDS": "600",
}
NGINX, STRAIGHT = "nginx in front", "the app server alone"
WITH, WITHOUT = "idle clients", "none"


@dataclass(frozen=True)
class Round:
    """Bytes of memory of what holds the connections, before and with them; and what the active client waited."""

    before: int
    holding: int
    taken: dict[str, list[float]]


def seconds() -> float:
    return ROUNDS * 2 * (5 + 4 + 2 * (SETTLE_SECONDS + SECONDS + 0.5))


def run(progress: Progress) -> Result:
    result = Result()
    idle = idle_load.allow(IDLE)
    if idle < LEAST:
        raise CannotRun(f"this machine allows {idle} connections of one process (ulimit -n); it takes {LEAST}")
    if idle < IDLE:
        result.notes.append(f"this machine allows {idle} idle clients (ulimit -n), not {IDLE}")
    found: dict[str, list[Round]] = {NGINX: [], STRAIGHT: []}
    for number in range(ROUNDS):
        for name in (NGINX, STRAIGHT) if number % 2 else (STRAIGHT, NGINX):
            progress.step(f"round {number + 1} of {ROUNDS}, {name}: {idle} idle clients")
            found[name].append(_round(name, idle, number))
    result.notes.append("what the kernel keeps for the connections, their sockets' buffers, is not in the memory")
    result.comparisons = comparisons(found, idle)
    for name, rounds in found.items():
        for beside in (WITH, WITHOUT):
            taken = [each.taken[beside] for each in rounds]
            held = [each.holding if beside == WITH else each.before for each in rounds]
            row = {f"p{share * 100:g} ms": f"{median(percentile(each, share) for each in taken):.3g}"
                   for share in (0.5, 0.99)}  # fmt: skip
            result.details.append({"variant": name, "beside": beside, "MB": f"{median(held) / 1e6:.1f}"} | row)
            curves = result.curves.setdefault("latency of an active client", {})
            curves[f"{name}, {beside}"] = harness.middle([curve(each) for each in taken])
    result.rounds = {
        name: [
            {"bytes before": each.before, "bytes": each.holding}
            | {f"p99 ms, {beside}": percentile(taken, 0.99) for beside, taken in each.taken.items()}
            for each in rounds
        ]
        for name, rounds in found.items()
    }
    return result


def _round(name: str, idle: int, number: int) -> Round:
    """One app, and nginx, with nothing left in them from the round before: neither gives memory back to the system."""
    with ExitStack() as stack:
        bench = Bench("connections", **ROWS)
        stack.enter_context(bench.own_folder())
        holder = stack.enter_context(bench.app())
        url, port = bench.app_url, int(bench.environ["APP_PORT"])
        if name == NGINX:
            holder, url, port = stack.enter_context(bench.nginx()), bench.url, bench.http_port
        harness.require_same_answer([Variant(name, url, {}), Variant(STRAIGHT, bench.app_url, {})], REQUEST)
        _active(port, number)  # not used: it warms up
        before = memory.tree_bytes(holder)
        taken = {} if number % 2 else {WITHOUT: _active(port, number)}
        with idle_load.held(port, idle):
            time.sleep(SETTLE_SECONDS)  # what opening them has left to do is not part of it
            holding = memory.tree_bytes(holder)
            taken[WITH] = _active(port, number)
        if WITHOUT not in taken:
            time.sleep(SETTLE_SECONDS)
            taken[WITHOUT] = _active(port, number)
    return Round(before, holding, taken)


def _active(port: int, seed: int) -> list[float]:
    arrivals = poisson(RATE, SETTLE_SECONDS + SECONDS, REQUEST.path, REQUEST.path, 0.0, seed)
    settling = sum(arrival.due < SETTLE_SECONDS for arrival in arrivals)
    return open_loop.run(port, arrivals)[REQUEST.path][settling:]


def comparisons(found: dict[str, list[Round]], idle: int) -> list[Comparison]:
    """What `found` says; the first is the one for the headline."""
    each_of = {name: [(each.holding - each.before) / idle / 1000 for each in rounds] for name, rounds in found.items()}
    lines = [Comparison(f"memory of an idle client, {NGINX} to {STRAIGHT}", ratios(each_of[NGINX], each_of[STRAIGHT]))]
    for name, kilobytes in each_of.items():
        lines.append(Comparison(f"memory of an idle client with {name}", Figures(tuple(kilobytes)), unit="kB"))
    for name, rounds in found.items():
        for share in (0.5, 0.99):
            beside, alone = ([percentile(each.taken[which], share) for each in rounds] for which in (WITH, WITHOUT))
            what = f"p{share * 100:g} of an active client with {name}"
            lines.append(Comparison(f"{what}, {WITH} to {WITHOUT}", ratios(beside, alone)))
    return lines
