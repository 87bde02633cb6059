"""How many workers: throughput, latency and memory by their number; and what preloading the app saves."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from bench import harness, memory, open_loop, target
from bench.experiments.proxy import REQUEST
from bench.harness import Comparison, Progress, Result, Round, Variant
from bench.load import Request
from bench.open_loop import curve, percentile, poisson
from bench.processes import Bench, CannotRun
from bench.ratios import ratios
from bench.servers import fill_in
from stack import native
from stack.settings import ROOT, rows

QUESTION = (
    "How many workers are right for an app whose handlers do not block: throughput, p99 at 70 % of what each number "
    "can do, and memory; and how much memory does preloading the app save?"
)
COUNTS = (1, 2, 3, 4, 8)
ROUNDS = 3
CONNECTIONS = 64
# Of the p99: a closed loop says how much there is to give, an open one asks for a share of it.
USUAL_ROUNDS = 4
CAPACITY_CONNECTIONS, CAPACITY_SECONDS = 32, 0.8
SHARE, OPEN_SECONDS, SETTLE_SECONDS = 0.7, 1.5, 0.5

# So much less than the best throughput is as good: fewer workers need less memory.
AS_GOOD = 0.95
# So much more than the lowest p99 of those that are as good is not.
MUCH_MORE = 1.5

PRELOADED, NOT = "preload", "none"
# The stack's own worker cannot be forked from a master that has the app: the shell's counters belong to one process.
STOCK = (
    "{bin}/gunicorn --config {root}/app/server/gunicorn.conf.py --worker-class bench.workers.StockWorker "
    "--workers {workers} {preload} {app}"
)
PRELOAD_WORKERS = 4


@dataclass(frozen=True)
class Measured:
    """Of one number of workers, the medians: requests/s, p99 in ms at the usual load (None: not measured), MB."""

    throughput: float
    p99_ms: float | None
    mb: float


def counts() -> list[int]:
    """The numbers that are tried; 2n+1, the rule for synchronous workers, is one of them where it is not larger."""
    return sorted({*COUNTS, *([rule()] if rule() <= max(COUNTS) else [])})


def cpus() -> int:
    return len(os.sched_getaffinity(0))


def rule() -> int:
    return 2 * cpus() + 1


def name(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def seconds() -> float:
    number = len(counts())
    starts = 1.2 * sum(counts()) / cpus() + number + 2 * (2 + PRELOAD_WORKERS / cpus())
    usual = number * USUAL_ROUNDS * (CAPACITY_SECONDS + OPEN_SECONDS + SETTLE_SECONDS + 0.5)
    stops = 1.0 * (number + 1)
    return starts + harness.seconds(number, ROUNDS) + usual + harness.seconds(2, ROUNDS) + stops


def run(progress: Progress) -> Result:
    result = Result()
    request = target.asked(REQUEST)
    base = name(int(rows()["WORKERS"]) if int(rows()["WORKERS"]) in counts() else 1)
    with ExitStack() as stack:
        variants, ports = [], {}
        for count in counts():
            progress.step(f"starting {name(count)}")
            bench = _bench(count)
            stack.enter_context(bench.own_folder())
            tiers = {"app": stack.enter_context(bench.app()), "nginx": stack.enter_context(bench.nginx())}
            variants.append(Variant(name(count), bench.url, tiers))
            ports[name(count)] = bench.http_port
        found = harness.measure(variants, request, ROUNDS, CONNECTIONS, progress)
        held = {each.name: [_megabytes(each)] for each in variants}
        usual, failed = _usual(ports, request.path, progress)
        for each in variants:
            held[each.name].append(_megabytes(each))
    harness.add_rounds(result, request, found)
    if failed:
        result.notes.append(f"rounds of the p99 at {SHARE * 100:g} % that were left out: {'; '.join(failed)}")
    if not usual[base]:
        result.unavailable.append(f"p99 at {SHARE * 100:g} % of what each number can do: {failed[-1]}")
    _compare(result, base, found, usual, held)
    _preload(result, request, progress)
    return result


def _megabytes(variant: Variant) -> float:
    return memory.tree_bytes(variant.tiers["app"]) / 1e6


def _bench(count: int) -> Bench:
    # The timeout budget's: so many workers need shorter tries, and more of them.
    tries = max(int(rows()["PROXY_NEXT_UPSTREAM_TRIES"]), count + 1)
    most = int(rows()["PROXY_NEXT_UPSTREAM_TIMEOUT_MS"]) // (count + 1)
    connect = min(int(rows()["PROXY_CONNECT_TIMEOUT_MS"]), most)
    changed = {"PROXY_CONNECT_TIMEOUT_MS": str(connect), "PROXY_NEXT_UPSTREAM_TRIES": str(tries)}
    # A moment in which the machine is busy with other work must show as a wait, not as a refusal.
    unlimited = {"APP_MAX_REQUESTS_IN_FLIGHT": "0"}
    return Bench(f"workers-{count}", WORKERS=str(count), WORKER_MEMORY_MB="0", **changed, **unlimited)


# --- the usual load -----------------------------------------------------------------------------------------------


def _usual(
    ports: Mapping[str, int], path: str, progress: Progress
) -> tuple[dict[str, list[dict[float, float]]], list[str]]:
    """The curve of the latency at SHARE of what each can do, round by round; and why some rounds came to nothing.

    A round in which any of them fails is left out of all: ratios are of rounds.
    """
    found: dict[str, list[dict[float, float]]] = {each: [] for each in ports}
    failed = []
    for number in range(USUAL_ROUNDS):
        turn = number % len(ports)
        order = [*list(ports)[turn:], *list(ports)[:turn]]
        curves = {}
        try:
            for each in order:
                progress.step(f"{SHARE * 100:g} % of what it can do: round {number + 1} of {USUAL_ROUNDS}, {each}")
                curves[each] = _at_share(ports[each], path, number)
        except CannotRun as why:
            failed.append(f"round {number + 1}, {each}: {why}")
            continue
        for each, taken in curves.items():
            found[each].append(taken)
    return found, failed


def _at_share(port: int, path: str, seed: int) -> dict[float, float]:
    can = open_loop.capacity(port, path, path, 0.5, CAPACITY_CONNECTIONS, CAPACITY_SECONDS)
    arrivals = poisson(SHARE * can, SETTLE_SECONDS + OPEN_SECONDS, path, path, 0.0, seed)
    settling = sum(arrival.due < SETTLE_SECONDS for arrival in arrivals)
    taken = open_loop.run(port, arrivals)[path][settling:]
    return curve(taken) | {99.0: percentile(taken, 0.99)}


# --- what was found -----------------------------------------------------------------------------------------------


def _compare(
    result: Result,
    base: str,
    found: Mapping[str, Sequence[Round]],
    usual: Mapping[str, Sequence[Mapping[float, float]]],
    held: Mapping[str, Sequence[float]],
) -> None:
    others = [each for each in found if each != base]
    for each in others:
        throughput = harness.throughput_ratio(found[each], found[base])
        result.comparisons.append(Comparison(f"throughput, {each} to {base}", throughput))
    for each in others:
        if usual[base]:
            p99 = ratios(*([taken[99.0] for taken in usual[one]] for one in (each, base)))
            result.comparisons.append(Comparison(f"p99 at {SHARE * 100:g} % load, {each} to {base}", p99))
        result.comparisons.append(Comparison(f"memory of the app, {each} to {base}", ratios(held[each], held[base])))
    numbers = dict(zip(counts(), found, strict=True))
    measured = {
        count: Measured(
            median(each.throughput for each in found[one]),
            median(taken[99.0] for taken in usual[one]) if usual[one] else None,
            median(held[one]),
        )
        for count, one in numbers.items()
    }
    for count, one in numbers.items():
        its = measured[count]
        row = {"variant": one, "MB (PSS)": f"{its.mb:.0f}", "MB/added worker": f"{added_mb(measured, count):.0f}"}
        row[f"p99 ms at {SHARE * 100:g} %"] = "" if its.p99_ms is None else f"{its.p99_ms:.3g}"
        result.details.append(row)
    if usual[base]:
        title = f"latency at {SHARE * 100:g} % of what each number of workers can do"
        result.curves[title] = {each: harness.middle(rounds) for each, rounds in usual.items()}
    result.rounds["latency at the usual load"] = dict(usual)
    result.rounds["memory MB"] = dict(held)
    best = recommended(measured)
    result.notes += [
        f"recommended here: WORKERS={best}: {why(measured, best)}",
        about_the_rule(measured, best, rule()),
        "the load and nginx share these CPUs with the workers; where they have their own, one worker for each CPU "
        "that is left",
    ]


def added_mb(measured: Mapping[int, Measured], count: int) -> float:
    """What each worker adds to the memory, from the next lower number to this one; 0 for the lowest."""
    lower = max((each for each in measured if each < count), default=count)
    return (measured[count].mb - measured[lower].mb) / (count - lower) if count > lower else 0.0


def recommended(measured: Mapping[int, Measured]) -> int:
    """The fewest that do as much as the best, and whose p99 is not much more than that of others that do."""
    most = max(its.throughput for its in measured.values())
    good = {count: its for count, its in measured.items() if its.throughput >= AS_GOOD * most}
    waits = [its.p99_ms for its in good.values() if its.p99_ms is not None]
    lowest = min(waits, default=0.0)
    return min(count for count, its in good.items() if its.p99_ms is None or its.p99_ms <= MUCH_MORE * lowest)


def why(measured: Mapping[int, Measured], best: int) -> str:
    most = max(measured, key=lambda count: measured[count].throughput)
    share = measured[best].throughput / measured[most].throughput
    if best == most:
        return "the highest throughput of all"
    return f"{share * 100:.0f} % of the highest throughput ({name(most)}), with fewer to keep in memory"


def about_the_rule(measured: Mapping[int, Measured], best: int, rule: int) -> str:
    """Whether 2n+1 is right here, and why."""
    if rule not in measured:
        return f"2n+1 is {name(rule)} here, more than were tried"
    ours, its = measured[best], measured[rule]
    said = f"2n+1, {name(rule)} here, has {its.throughput / ours.throughput:.2f} times the throughput of {name(best)}"
    if ours.p99_ms and its.p99_ms:
        said += f", {its.p99_ms / ours.p99_ms:.2f} times the p99"
    said += f" and {its.mb / ours.mb:.2f} times the memory"
    if rule == best:
        return f"{said}: it is right here, though it was made for synchronous workers"
    if its.throughput > ours.throughput / AS_GOOD:
        return f"{said}: more requests, for those that can bear what they wait"
    return (
        f"{said}: the rule is for synchronous workers, of which most wait for input and output; an asynchronous one "
        "goes on with other requests meanwhile, so that more of them than CPUs only take turns"
    )


# --- preload ------------------------------------------------------------------------------------------------------


def _preload(result: Result, request: Request, progress: Progress) -> None:
    """Gunicorn's own master and Uvicorn's worker, with the bare app loaded before the fork and after it."""
    held: dict[str, list[float]] = {}
    with ExitStack() as stack:
        variants = []
        for each, option in ((PRELOADED, "--preload"), (NOT, "")):
            progress.step(f"{PRELOAD_WORKERS} workers of Gunicorn's own master, preload: {each}")
            bench = Bench(f"workers-preload-{each}", WORKER_LISTENERS="shared")
            stack.enter_context(bench.own_folder())
            values = {"bin": str(native.BIN), "root": str(ROOT), "workers": str(PRELOAD_WORKERS), "preload": option}
            app = stack.enter_context(
                bench.other_app(fill_in(STOCK, values | {"app": shlex.quote(target.given().module)}))
            )
            variants.append(Variant(each, bench.url, {"app": app, "nginx": stack.enter_context(bench.nginx())}))
        for variant in variants:
            held[variant.name] = [_megabytes(variant)]
        found = harness.measure(variants, request, ROUNDS, CONNECTIONS, progress)
        for variant in variants:
            held[variant.name].append(_megabytes(variant))
    result.comparisons += [
        Comparison(
            f"memory of {PRELOAD_WORKERS} stock workers, {PRELOADED} to {NOT}", ratios(held[PRELOADED], held[NOT])
        ),
        Comparison(
            f"throughput of {PRELOAD_WORKERS} stock workers, {PRELOADED} to {NOT}",
            harness.throughput_ratio(found[PRELOADED], found[NOT]),
        ),
    ]
    for each, megabytes in held.items():
        result.details.append({"stock workers": each, "MB (PSS)": f"{median(megabytes):.0f}"})
    result.rounds["memory MB, stock workers"] = held
    result.unavailable.append(
        "preload with the stack's own worker and master: the shell's counters belong to one process, and a reload must "
        "load new code; measured with Gunicorn's own master, Uvicorn's worker and the app without the shell instead"
    )
