"""What a listening socket for each worker is worth where a few requests are slow: to those that are fast."""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median

from bench import open_loop
from bench.harness import Comparison, Progress, Result
from bench.open_loop import percentile
from bench.processes import Bench
from bench.ratios import Goal, ratios

QUESTION = (
    "One request in 20 takes 100 ms of CPU, requests arrive at 60 % of the rate that the stack can bear, 4 workers: "
    "how long do the fast ones take, with a socket for each worker against one for all?"
)
ROUNDS = 8
SECONDS = 4.5
# Of each round: the first connections are made, and counted not.
SETTLE_SECONDS = 0.5
WORKERS = 4
SLOW_SHARE = 0.05
UTILISATION = 0.6
# Before each round, for a machine that other work shares has less to give at one time than at another.
CAPACITY_SECONDS = 2.0
CAPACITY_CONNECTIONS = 32
GOALS = {0.5: None, 0.9: Goal("at most", 0.2), 0.99: Goal("at most", 1.0)}

OURS, SHARED = "a socket for each worker, least_conn", "one shared socket"
FAST, SLOW = "/", "/slow"


def seconds() -> float:
    return 8 + ROUNDS * (CAPACITY_SECONDS + 2 * (SETTLE_SECONDS + SECONDS + 0.5))


def run(progress: Progress) -> Result:
    result = Result()
    found: dict[str, list[dict[str, float]]] = {OURS: [], SHARED: []}
    with ExitStack() as stack:
        ports = {}
        for name, listeners in ((OURS, "per-worker"), (SHARED, "shared")):
            progress.step(f"starting the app with {name}")
            bench = Bench(
                f"balance-{listeners}",
                WORKERS=str(WORKERS),
                WORKER_LISTENERS=listeners,
                PROXY_CONNECT_TIMEOUT_MS="400",  # the timeout budget's: so many workers need shorter tries
                APP_MODULE="bench.experiments.mixed_app:app",
            )
            stack.enter_context(bench.own_folder())
            stack.enter_context(bench.app())
            stack.enter_context(bench.nginx())
            ports[name] = bench.http_port
            _capacity(bench.http_port)  # not used: it warms up
        for number in range(ROUNDS):
            progress.step(f"round {number + 1} of {ROUNDS}, how much the stack can bear")
            rate = UTILISATION * _capacity(ports[OURS])
            order = [OURS, SHARED] if number % 2 else [SHARED, OURS]
            for name in order:
                progress.step(f"round {number + 1} of {ROUNDS}, {name}")
                found[name].append(_round(ports[name], rate, seed=number))
    for share, goal in GOALS.items():
        name = f"p{share * 100:g}"
        ratio = ratios([each[f"{name} ms"] for each in found[OURS]], [each[f"{name} ms"] for each in found[SHARED]])
        result.comparisons.append(Comparison(f"{name} of the fast requests, {OURS} to {SHARED}", ratio, goal))
    for name, rounds in found.items():
        medians = {column: f"{median(each[column] for each in rounds):.3g}" for column in rounds[0]}
        result.details.append({"variant": name} | medians)
    result.rounds = dict(found)
    return result


def _capacity(port: int) -> float:
    return open_loop.capacity(port, FAST, SLOW, SLOW_SHARE, CAPACITY_CONNECTIONS, CAPACITY_SECONDS)


def _round(port: int, rate: float, seed: int) -> dict[str, float]:
    """What the fast ones and the slow ones took. Both variants get the same arrivals in the same round."""
    arrivals = open_loop.poisson(rate, SETTLE_SECONDS + SECONDS, FAST, SLOW, SLOW_SHARE, seed)
    taken = open_loop.run(port, arrivals)
    settling = sum(arrival.due < SETTLE_SECONDS and arrival.path == FAST for arrival in arrivals)
    fast = taken[FAST][settling:]
    columns = {"requests/s": rate} | {f"p{share * 100:g} ms": percentile(fast, share) for share in GOALS}
    return columns | {"p50 ms of the slow": percentile(taken[SLOW], 0.5)}
