"""What a listening socket for each worker is worth where a few requests are slow: to those that are fast."""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median

from bench import harness, open_loop
from bench.capacity.probe import Objectives
from bench.capacity.search import bisect, by_majority
from bench.harness import Comparison, Progress, Result
from bench.open_loop import percentile
from bench.processes import Bench
from bench.ratios import Goal, ratios
from stack.settings import checked

QUESTION = (
    "One request in 20 takes 100 ms of CPU, requests arrive at 60 % of the highest rate at which the objectives of "
    ".env hold, 4 workers: how long do the fast ones take, with a socket for each worker against one for all?"
)
ROUNDS = 7
SECONDS = 7.0  # in half of it, chance alone decides whether slow requests meet on all workers
# Of each round: the first connections are made, and counted not.
SETTLE_SECONDS = 0.5
WORKERS = 4
SLOW_SHARE = 0.05
UTILISATION = 0.6
# What a closed loop gets out of the stack, measured before each round, for a machine that other work shares has less to
# give at one time than at another. At that rate an open loop would wait for ever: of it the stack can bear a share,
# which is found once, between these two.
SATURATED_SECONDS = 2.0
SATURATED_CONNECTIONS = 32
SHARES = (0.4, 1.0)
SHARE_SECONDS = 5.0
WITHIN, MOST_STEPS_DOWN = 1.07, 3
GOALS = {0.5: None, 0.9: Goal("at most", 0.2), 0.99: Goal("at most", 1.0)}

OURS, SHARED = "a socket for each worker, least_conn", "one shared socket"
FAST, SLOW = "/", "/slow"


def seconds() -> float:
    finding = 11 * (SATURATED_SECONDS + SHARE_SECONDS + 0.5)
    return 8 + finding + ROUNDS * (SATURATED_SECONDS + 2 * (SETTLE_SECONDS + SECONDS + 0.5))


def run(progress: Progress) -> Result:
    result = Result()
    found: dict[str, list[dict[str, float]]] = {OURS: [], SHARED: []}
    curves: dict[str, list[dict[float, float]]] = {OURS: [], SHARED: []}
    with ExitStack() as stack:
        ports = {}
        for name, listeners in ((OURS, "per-worker"), (SHARED, "shared")):
            progress.step(f"starting the app with {name}")
            bench = Bench(
                f"balance-{listeners}",
                WORKERS=str(WORKERS),
                WORKER_LISTENERS=listeners,
                APP_MODULE="bench.experiments.mixed_app:app",
            )
            stack.enter_context(bench.own_folder())
            stack.enter_context(bench.app())
            stack.enter_context(bench.nginx())
            ports[name] = bench.http_port
            _saturated(bench.http_port)  # not used: it warms up
        share = _bearable_share(ports[OURS], progress)
        for number in range(ROUNDS):
            progress.step(f"round {number + 1} of {ROUNDS}, how much the machine has to give")
            rate = UTILISATION * share * _saturated(ports[OURS])
            order = [OURS, SHARED] if number % 2 else [SHARED, OURS]
            for name in order:
                progress.step(f"round {number + 1} of {ROUNDS}, {name}")
                columns, curve = _round(ports[name], rate, seed=number)
                found[name].append(columns)
                curves[name].append(curve)
    for quantile, goal in GOALS.items():
        name = f"p{quantile * 100:g}"
        ratio = ratios([each[f"{name} ms"] for each in found[OURS]], [each[f"{name} ms"] for each in found[SHARED]])
        result.comparisons.append(Comparison(f"{name} of the fast requests, {OURS} to {SHARED}", ratio, goal))
    for name, rounds in found.items():
        medians = {column: f"{median(each[column] for each in rounds):.3g}" for column in rounds[0]}
        result.details.append({"variant": name, "of what saturates it": f"{UTILISATION * share:.0%}"} | medians)
    result.curves["latency of the fast requests"] = {name: harness.middle(rounds) for name, rounds in curves.items()}
    result.rounds = dict(found)
    return result


def _saturated(port: int) -> float:
    return open_loop.capacity(port, FAST, SLOW, SLOW_SHARE, SATURATED_CONNECTIONS, SATURATED_SECONDS)


def _bearable_share(port: int, progress: Progress) -> float:
    """The highest share of what saturates the stack at which the objectives hold."""
    objectives = Objectives.of(checked()[0])

    def holds(share: float) -> bool:
        progress.step(f"do the objectives hold at {share:.0%} of what saturates the stack?")
        arrivals = open_loop.poisson(share * _saturated(port), SHARE_SECONDS, FAST, SLOW, SLOW_SHARE, seed=0)
        taken = open_loop.run(port, arrivals)
        return not objectives.missed([latency for each in taken.values() for latency in each], error_share=0.0)

    likely = by_majority(holds)
    share = bisect(*SHARES, within=WITHIN, holds=likely)
    # One lucky probe is not yet a rate that holds: it is confirmed, as make capacity does.
    for _ in range(MOST_STEPS_DOWN):
        if likely(share) and likely(share):
            break
        share /= WITHIN
    return share


def _round(port: int, rate: float, seed: int) -> tuple[dict[str, float], dict[float, float]]:
    """What the fast ones and the slow ones took, and the curve of the fast ones.

    Both variants get the same arrivals in the same round.
    """
    arrivals = open_loop.poisson(rate, SETTLE_SECONDS + SECONDS, FAST, SLOW, SLOW_SHARE, seed)
    taken = open_loop.run(port, arrivals)
    settling = sum(arrival.due < SETTLE_SECONDS and arrival.path == FAST for arrival in arrivals)
    fast = taken[FAST][settling:]
    columns = {"requests/s": rate} | {f"p{share * 100:g} ms": percentile(fast, share) for share in GOALS}
    return columns | {"p50 ms of the slow": percentile(taken[SLOW], 0.5)}, open_loop.curve(fast)
