"""`async def`, `def`, and the mistake: what a handler that waits does to its own throughput, and to all others."""

from __future__ import annotations

import multiprocessing
import signal
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from statistics import median

from bench import harness, open_loop
from bench.experiments.sync_app import FAST, SLOW
from bench.harness import Comparison, Progress, Result, Variant
from bench.load import Request
from bench.open_loop import curve, percentile, poisson
from bench.processes import Bench
from bench.ratios import ratios

QUESTION = (
    "A handler waits 20 ms, in one worker, for 64 clients: awaiting (async def), in the thread pool (def), or blocking "
    "(time.sleep in async def). How many requests a second is that, and how long does a fast request to the same "
    "worker take?"
)
ROUNDS = 4
CONNECTIONS = 64
# The bystander: so few requests that they are no load.
RATE = 30
SETTLE_SECONDS, SECONDS = 1.0, 5.0
AWAITING, THREADED, BLOCKING = "async def that awaits", "def in the thread pool", "async def that blocks"
APPS = {AWAITING: "awaiting", THREADED: "threaded", BLOCKING: "blocking"}
PER_SECOND, FAST_MS = "requests/s", "ms of the fast"


def seconds() -> float:
    # Where the loop is blocked, the last answers come some turns of it later, of 64 times 20 ms each.
    return 8 + ROUNDS * (len(APPS) * (SETTLE_SECONDS + SECONDS + 1) + 2)


def run(progress: Progress) -> Result:
    result = Result()
    per_second: dict[str, list[float]] = {name: [] for name in APPS}
    taken: dict[str, list[list[float]]] = {name: [] for name in APPS}
    with ExitStack() as stack:
        # In a process of its own: the bystander's latency would be the load's own otherwise.
        spawn = multiprocessing.get_context("spawn")
        load = stack.enter_context(
            ProcessPoolExecutor(1, spawn, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
        )
        variants = []
        for name, attribute in APPS.items():
            progress.step(f"starting the app with {name}")
            module = f"bench.experiments.sync_app:{attribute}"
            bench = Bench(f"sync-{attribute}", WORKERS="1", APP_MODULE=module)
            stack.enter_context(bench.own_folder())
            variants.append(Variant(name, bench.app_url, {"app": stack.enter_context(bench.app())}))
        for path in (FAST, SLOW):
            harness.require_same_answer(variants, Request("GET", path))
        for number in range(ROUNDS):
            turn = number % len(variants)
            for variant in [*variants[turn:], *variants[:turn]]:
                progress.step(f"round {number + 1} of {ROUNDS}, {variant.name}")
                done, fast = _round(load, variant, number)
                per_second[variant.name].append(done)
                taken[variant.name].append(fast)
    p99 = {name: [percentile(fast, 0.99) for fast in rounds] for name, rounds in taken.items()}
    for name in (THREADED, BLOCKING):
        for what, of in (("throughput", per_second), ("p99 of a fast request beside it", p99)):
            result.comparisons.append(Comparison(f"{what}, {name} to {AWAITING}", ratios(of[name], of[AWAITING])))
    for name in APPS:
        columns = {PER_SECOND: median(per_second[name])}
        for share in (0.5, 0.99):
            columns[f"p{share * 100:g} {FAST_MS}"] = median(percentile(each, share) for each in taken[name])
        result.details.append({"variant": name} | {column: f"{value:.3g}" for column, value in columns.items()})
    result.curves["latency of a fast request beside it"] = {
        name: harness.middle([curve(each) for each in rounds]) for name, rounds in taken.items()
    }
    result.rounds = {
        name: [{PER_SECOND: done, f"p99 {FAST_MS}": ms} for done, ms in zip(per_second[name], p99[name], strict=True)]
        for name in APPS
    }
    return result


def _round(load: Executor, variant: Variant, seed: int) -> tuple[float, list[float]]:
    """Requests a second of the slow, and the milliseconds of each of the fast meanwhile."""
    port = int(variant.url.rpartition(":")[2])
    length = 2 * SETTLE_SECONDS + SECONDS
    closed = load.submit(open_loop.capacity, port, SLOW, SLOW, 0.5, CONNECTIONS, length)
    time.sleep(SETTLE_SECONDS)  # the connections of the load are made
    fast = open_loop.run(port, poisson(RATE, SECONDS, FAST, FAST, 0.0, seed))[FAST]
    return closed.result(), fast
