"""What a stack does at three times its capacity, with a bound of requests under way in each worker and without."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from bench import open_loop, overload_load
from bench.experiments.overload_app import AWAITING, BLOCKING
from bench.harness import Comparison, Progress, Result
from bench.open_loop import Arrival, percentile, poisson
from bench.overload_load import Outcome
from bench.processes import Bench
from bench.ratios import Figures, Goal, ratios

QUESTION = (
    "Requests arrive at three times the rate that the stack can bear: what does it still do, with "
    "APP_MAX_REQUESTS_IN_FLIGHT and without? Once with handlers that wait for one of 5 connections to a database "
    "(50 ms), once with handlers that block their worker (10 ms)."
)
WORKERS = 2
ROUNDS = 2
CAPACITY_CONNECTIONS, CAPACITY_SECONDS = 24, 1.5
USUAL, OVERLOAD = 0.7, 3.0  # of the capacity
# Of each round: the usual load, the overload, the usual load again.
BEFORE_SECONDS, OVERLOAD_SECONDS, AFTER_SECONDS = 2.5, 3.5, 5.5
# Of the overload: nginx opens its connections to the app, and these requests are counted apart.
SETTLE_SECONDS = 1.0
# A later answer is of no use to anybody.
USEFUL_MS = 1000
# The rule that .env has for APP_MAX_REQUESTS_IN_FLIGHT.
LEAST_LIMIT = 4
# Back to normal: from then on, of the requests of each such window 95 % get 200 within twice the usual p99.
WINDOW_SECONDS, NORMAL_SHARE, NORMAL_FACTOR = 0.5, 0.95, 2.0

WITH, WITHOUT = "with the limit", "without"
IN_TIME, CAPACITY, USUAL_P99, P99, REFUSALS, ANSWERED, BACK = (
    "in time/s", "capacity/s", "p99 ms at 70 %", "p99 ms", "p99 ms of refusals", "answered", "back after s"
)  # fmt: skip
# What is compared, the columns that it is the ratio of (or the one), the unit, and what it must be with the limit.
CLAIMS = [
    ("answers within 1 s to capacity", IN_TIME, CAPACITY, "", Goal("at least", 0.9)),
    ("p99 of the accepted to p99 at 70 % load", P99, USUAL_P99, "", Goal("at most", 2.0)),
    ("p99 of the refusals to p99 at 70 % load", REFUSALS, USUAL_P99, "", Goal("at most", 1.0)),
    ("share that got 200 or 503", ANSWERED, "", "", Goal("at least", 1.0)),
    ("back to normal", BACK, "", "s", Goal("at most", 5.0)),
]
Row = dict[str, float]


def seconds() -> float:
    once = BEFORE_SECONDS + OVERLOAD_SECONDS + AFTER_SECONDS
    return 2 * (11 + ROUNDS * CAPACITY_SECONDS + (ROUNDS + 1) * once)


def run(progress: Progress) -> Result:
    result = Result()
    for path in (AWAITING, BLOCKING):
        _workload(path, result, progress)
    return result


def _workload(path: str, result: Result, progress: Progress) -> None:
    name = path.removeprefix("/")
    found: dict[str, list[Row]] = {WITH: [], WITHOUT: []}
    with ExitStack() as stack:
        progress.step(f"{name}: starting the app {WITHOUT}")
        without = _Stack(stack, f"overload-{name}-without", 0)
        progress.step(f"{name}: its capacity and its p99 at {USUAL:.0%} of it, for the limit")
        capacity = _capacity(without, path)
        usual = overload_load.run(without.bench.http_port, _arrivals(path, [(USUAL * capacity, BEFORE_SECONDS)], 0))
        p99 = percentile([outcome.ms for outcome in usual], 0.99)
        limit = max(LEAST_LIMIT, round(p99 / 1000 * capacity / WORKERS))
        progress.step(f"{name}: starting the app with a limit of {limit}")
        limited = _Stack(stack, f"overload-{name}-with", limit)
        for number in range(ROUNDS):
            capacity = _capacity(without, path)
            progress.step(f"{name}: round {number + 1} of {ROUNDS}, {WITH}")
            found[WITH].append(_round(limited, path, capacity, number))
        # Once, and last: what has piled up would be in the next round.
        progress.step(f"{name}: the same load, {WITHOUT}")
        found[WITHOUT].append(_round(without, path, capacity, number))
    result.comparisons += _comparisons(name, found[WITH], found[WITHOUT])
    for variant, rows in found.items():
        columns = {column: f"{median(row[column] for row in rows):.3g}" for column in rows[0]}
        given = str(limit if variant == WITH else 0)
        result.details.append({"handlers": name, "variant": variant, "limit": given} | columns)
    result.rounds[name] = found


def _comparisons(name: str, limited: Sequence[Row], without: Sequence[Row]) -> Iterator[Comparison]:
    for what, column, base, unit, goal in CLAIMS:
        for variant, rows in ((WITH, limited), (WITHOUT, without)):
            if variant == WITH or column != REFUSALS:
                ours = [row[column] for row in rows]
                figures = ratios(ours, [row[base] for row in rows]) if base else Figures(tuple(ours))
                held = goal if variant == WITH else None
                yield Comparison(f"{name} handlers {variant}: {what}", figures, held, unit)


class _Stack:
    """An app and its nginx, running until `stack` closes."""

    def __init__(self, stack: ExitStack, name: str, limit: int) -> None:
        self.bench = Bench(
            name,
            WORKERS=str(WORKERS),
            APP_MODULE="bench.experiments.overload_app:app",
            APP_MAX_REQUESTS_IN_FLIGHT=str(limit),
        )
        stack.enter_context(self.bench.own_folder())
        self.tiers = {"app": stack.enter_context(self.bench.app()), "nginx": stack.enter_context(self.bench.nginx())}


def _capacity(one: _Stack, path: str) -> float:
    return open_loop.capacity(one.bench.http_port, path, path, 0.5, CAPACITY_CONNECTIONS, CAPACITY_SECONDS)


def _arrivals(path: str, phases: Sequence[tuple[float, float]], seed: int) -> list[Arrival]:
    """One phase after the other, each of so many requests a second for so many seconds."""
    arrivals, begin = [], 0.0
    for rate, length in phases:
        arrivals += [Arrival(begin + each.due, path) for each in poisson(rate, length, path, path, 0.0, seed)]
        begin += length
    return arrivals


def _round(one: _Stack, path: str, capacity: float, seed: int) -> Row:
    usual = USUAL * capacity
    phases = [(usual, BEFORE_SECONDS), (OVERLOAD * capacity, OVERLOAD_SECONDS), (usual, AFTER_SECONDS)]
    with peaks(one.tiers) as highest:
        outcomes = overload_load.run(one.bench.http_port, _arrivals(path, phases, seed))
    return figures(outcomes, capacity) | highest


def figures(outcomes: Sequence[Outcome], capacity: float) -> Row:
    begin, end = BEFORE_SECONDS, BEFORE_SECONDS + OVERLOAD_SECONDS
    settled = begin + SETTLE_SECONDS
    under = [each for each in outcomes if settled <= each.due < end]
    served = [each for each in outcomes if each.status == 200]
    usual = [each.ms for each in outcomes if each.due < begin]
    back = back_after([each for each in outcomes if each.due >= end], end, NORMAL_FACTOR * _p99(usual))
    usual += [each.ms for each in outcomes if each.due >= end + back]
    return {
        CAPACITY: capacity,
        IN_TIME: sum(settled <= each.end < end and each.ms <= USEFUL_MS for each in served) / (end - settled),
        ANSWERED: sum(each.status in (200, 503) for each in under) / len(under),
        USUAL_P99: _p99(usual),
        P99: _p99(each.ms for each in served if settled <= each.due < end),
        f"{P99} in the first second": _p99(each.ms for each in served if begin <= each.due < settled),
        REFUSALS: _p99(each.ms for each in under if each.status == 503),
        BACK: back,
    }


def _p99(values: Iterable[float]) -> float:
    return percentile(list(values) or [0.0], 0.99)


def back_after(outcomes: Sequence[Outcome], begin: float, normal_ms: float) -> float:
    """Seconds from `begin` to the first window from which on all are normal."""
    windows: dict[int, list[bool]] = {}
    for each in outcomes:
        good = each.status == 200 and each.ms <= normal_ms
        windows.setdefault(int((each.due - begin) / WINDOW_SECONDS), []).append(good)
    bad = [number for number, good in windows.items() if sum(good) < NORMAL_SHARE * len(good)]
    return (max(bad, default=-1) + 1) * WINDOW_SECONDS


@contextmanager
def peaks(tiers: dict[str, int]) -> Iterator[Row]:
    """Of each tier the most memory of all its processes and the most descriptors of one; filled in at the end."""
    found: Row = {}
    ending = threading.Event()

    def watch() -> None:
        while not ending.wait(0.25):
            for tier, master in tiers.items():
                used = [_used(pid) for pid in _tree(master)]
                for column, now in (("MB", sum(rss for rss, _ in used)), ("descriptors", max(fds for _, fds in used))):
                    found[f"{tier} {column}"] = max(found.get(f"{tier} {column}", 0), now)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ending.set()
        thread.join()


def _tree(master: int) -> list[int]:
    return [master, *map(int, Path(f"/proc/{master}/task/{master}/children").read_text().split())]


def _used(pid: int) -> tuple[float, int]:
    """Megabytes in memory, and open descriptors. Nothing of a process that is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0, 0
