"""What draining, recycling and a socket for each worker cost: the stack's worker and master against the stock ones."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from functools import partial
from statistics import median

from bench import cpu, harness, target
from bench.experiments.proxy import REQUEST
from bench.harness import Comparison, Progress, Result, Variant
from bench.processes import Bench
from bench.ratios import Goal, ratios
from stack.settings import rows

QUESTION = (
    "How much more CPU does a request take with the worker that drains, is recycled and has a socket of its own, than "
    "with Uvicorn's worker under Gunicorn's own master on a shared socket?"
)
ROUNDS = 11
CONNECTIONS = 64
REPLACEMENTS = 3
# The CPU time of one replacement is complete when a stack that nobody loads has been quiet for so long.
QUIET_SECONDS = 0.75
GOAL = Goal("at most", 1.03)

OURS, STOCK = "this worker and master", "UvicornWorker, shared socket"


def seconds() -> float:
    return harness.seconds_anew(variants=2, rounds=ROUNDS) + 2 * harness.START_SECONDS + 2 * REPLACEMENTS * 3


def run(progress: Progress) -> Result:
    result, request = Result(), target.asked(REQUEST)
    starts = [partial(_started, name=name) for name in (OURS, STOCK)]
    (found,) = harness.measure_anew(starts, [request], ROUNDS, CONNECTIONS, progress)
    workers = int(rows()["WORKERS"])
    replacing: dict[str, list[float]] = {OURS: [], STOCK: []}
    with ExitStack() as stack:
        progress.step("starting both")
        variants = [start(stack) for start in starts]
        for number in range(REPLACEMENTS):
            for variant in variants:
                progress.step(f"replacing the workers, {number + 1} of {REPLACEMENTS}, {variant.name}")
                replacing[variant.name].append(_replace(variant.tiers["app"]) / workers)
    harness.add_rounds(result, request, found)
    result.rounds["CPU seconds of one replacement"] = replacing
    result.comparisons = [
        Comparison(
            f"app CPU per request, {OURS} to {STOCK}", harness.cpu_ratio(found[OURS], found[STOCK], "app"), GOAL
        ),
        Comparison(f"CPU of one worker's replacement, {OURS} to {STOCK}", ratios(replacing[OURS], replacing[STOCK])),
    ]
    for name, taken in replacing.items():
        row = {"variant": name, "CPU s of one replacement": f"{median(taken):.2f}"}
        if mean := int(rows()["MAX_REQUESTS"]) + int(rows()["MAX_REQUESTS_JITTER"]) / 2:
            row["us/request, with MAX_REQUESTS as it is"] = f"{median(taken) / mean * 1e6:.1f}"
        result.details.append(row)
    return result


def _started(stack: ExitStack, name: str) -> Variant:
    listeners = "per-worker" if name == OURS else "shared"
    recycling = {row: rows()[row] for row in ("MAX_REQUESTS", "MAX_REQUESTS_JITTER")}
    bench = Bench(f"lifecycle-{listeners}", WORKER_LISTENERS=listeners, **recycling)
    stack.enter_context(bench.own_folder())
    app = stack.enter_context(bench.app() if name == OURS else bench.stock_app("bench.workers.StockWorker"))
    return Variant(name, bench.url, {"app": app, "nginx": stack.enter_context(bench.nginx())})


def _replace(master: int) -> float:
    """CPU seconds that it takes to replace all workers."""
    before = last = cpu.tree_seconds(master)
    os.kill(master, signal.SIGHUP)
    quiet_since = time.monotonic()
    begun = quiet_since
    while time.monotonic() - max(quiet_since, begun + 1) < QUIET_SECONDS:
        time.sleep(0.1)
        now = cpu.tree_seconds(master)
        if now - last > cpu.TICK_SECONDS:  # idle workers look at the clock now and then
            quiet_since = time.monotonic()
        last = now
    return last - before
