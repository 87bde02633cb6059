"""What a burst of new connections meets: a stack that has just started, another event loop, another way to accept."""

from __future__ import annotations

import time
from contextlib import ExitStack
from statistics import median

from bench import burst_load, harness, load
from bench.experiments.proxy import REQUEST
from bench.harness import Comparison, Progress, Result
from bench.open_loop import curve, percentile
from bench.processes import Bench
from bench.ratios import Goal, ratios

QUESTION = (
    "256 connections are opened at once, and each asks again as soon as it is answered: how long do their first "
    "requests take (p99) on a stack that no request has reached yet, and on one that is warm?"
)
ROUNDS = 24  # a burst varies by a third, and the two loops differ by less
CONNECTIONS = 256
# The load of a burst goes on for so long, or until each connection has had its first answer.
BURST_SECONDS = 0.5
WARM_BURSTS = 3
WARM_UP_SECONDS = 2
REST_SECONDS = 0.3
START_SECONDS = 1.5  # of a stack, and its stop

OURS, ASYNCIO, LOOP_ACCEPTS = "uvloop, all accepted at once", "asyncio", "uvloop, its own server accepts"
WORKER_CLASSES = {OURS: "", ASYNCIO: "bench.workers.AsyncioWorker", LOOP_ACCEPTS: "bench.workers.LoopAcceptsWorker"}
# What differs more shows in fewer rounds: in every so many of them.
EVERY = {OURS: 1, ASYNCIO: 1, LOOP_ACCEPTS: 6}
WARM_EVERY = 3
WHAT = "the first requests"
COLD_TO_WARM, TO_ASYNCIO = Goal("at most", 1.5), Goal("at most", 1.0)


def seconds() -> float:
    once = BURST_SECONDS + REST_SECONDS
    cold = sum(len(range(0, ROUNDS, every)) for every in EVERY.values()) * (START_SECONDS + once)
    return cold + len(range(0, ROUNDS, WARM_EVERY)) * (WARM_UP_SECONDS + WARM_BURSTS * once)


def run(progress: Progress) -> Result:
    result = Result()
    cold: dict[str, list[float]] = {name: [] for name in WORKER_CLASSES}
    warm: list[float] = []
    curves: dict[str, list[dict[float, float]]] = {}
    for number in range(ROUNDS):
        names = [name for name in WORKER_CLASSES if number % EVERY[name] == 0]
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            progress.step(f"round {number + 1} of {ROUNDS}: {name}")
            with ExitStack() as stack:
                bench = Bench("burst")
                stack.enter_context(bench.own_folder())
                stack.enter_context(bench.app(f"--worker-class {cls}" if (cls := WORKER_CLASSES[name]) else ""))
                stack.enter_context(bench.nginx())
                taken = _burst(bench)
                cold[name].append(percentile(taken, 0.99))
                curves.setdefault(f"{name}, cold", []).append(curve(taken))
                if name == OURS and number % WARM_EVERY == 0:
                    load.run(bench.url, REQUEST, CONNECTIONS // 4, WARM_UP_SECONDS)
                    bursts = [_burst(bench) for _ in range(WARM_BURSTS)]
                    warm.append(median(percentile(taken, 0.99) for taken in bursts))
                    curves.setdefault(f"{name}, warm", []).append(harness.middle([curve(taken) for taken in bursts]))
    ours = cold[OURS]
    what = f"p99 of {WHAT} when cold"
    result.comparisons = [
        Comparison(f"p99 of {WHAT}, a cold stack to a warm one", ratios(ours[::WARM_EVERY], warm), COLD_TO_WARM),
        Comparison(f"{what}, uvloop to asyncio", ratios(ours, cold[ASYNCIO]), TO_ASYNCIO),
        Comparison(
            f"{what}, accepting all at once to uvloop's own server",
            ratios(ours[:: EVERY[LOOP_ACCEPTS]], cold[LOOP_ACCEPTS]),
        ),
    ]
    result.curves[f"latency of {WHAT}"] = {name: harness.middle(taken) for name, taken in curves.items()}
    result.rounds = {f"{name}, cold": taken for name, taken in cold.items()} | {f"{OURS}, warm": warm}
    result.details = [{"variant": name, "p99 ms": f"{median(taken):.0f}"} for name, taken in result.rounds.items()]
    return result


def _burst(bench: Bench) -> list[float]:
    """Milliseconds to the first answer on each connection."""
    time.sleep(REST_SECONDS)  # the end of the start, or of the burst before, is not part of this one
    return burst_load.first_answers(bench.http_port, CONNECTIONS, BURST_SECONDS)
