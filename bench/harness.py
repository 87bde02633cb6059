"""Variants side by side: loaded in turn in one run, only one at a time, and compared round by round.

A round loads each variant in SLICES short slices, A B B A: what slows the machine down for a second, or drifts
over many, is in both sides of the ratio.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from bench import cpu, load
from bench.load import Request
from bench.processes import CannotRun
from bench.ratios import Figures, Goal, Verdict, ratios

SLICES = 2
SLICE_SECONDS = 1
WARM_UP_SECONDS, NEW_WARM_UP_SECONDS = 2, 1
START_SECONDS = 1.6  # of an app and nginx, and their stop
# What may differ in the same answer: which process gave it.
OWN_TO_A_PROCESS = ("pid",)


@dataclass(frozen=True)
class Variant:
    """Something to load: its URL, and for each tier ("app", "nginx") the pid at the root of its processes."""

    name: str
    url: str
    tiers: Mapping[str, int]


@dataclass(frozen=True)
class Round:
    """One variant under load for one round. `cpu_us` is the CPU time of each tier per request; `latency_ms` is by
    percentile.
    """

    throughput: float
    cpu_us: Mapping[str, float]
    latency_ms: Mapping[float, float]
    generator_busy: float

    @property
    def p99_ms(self) -> float:
        return self.latency_ms[99.0]


@dataclass(frozen=True)
class Comparison:
    """One figure of a result: what was compared, round by round, and what it had to be.

    `name` is "WHAT, OURS to BASE", from which sentences are made; a figure that is no ratio has a unit and any name.
    """

    name: str
    figures: Figures
    goal: Goal | None = None
    unit: str = ""

    @property
    def verdict(self) -> Verdict:
        return self.figures.verdict(self.goal)


@dataclass
class Result:
    """What an experiment found. `unavailable` says what could not be had, and why.

    `curves` are pictures of latency: title, variant, percentile, milliseconds; `growth` of a cost: title ("UNIT by
    WHAT"), tier, size, cost.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    details: list[dict[str, str]] = field(default_factory=list)
    rounds: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, dict[str, dict[float, float]]] = field(default_factory=dict)
    growth: dict[str, dict[str, dict[float, float]]] = field(default_factory=dict)
    unavailable: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Progress:
    """What runs, and about how long all of it will take still."""

    def __init__(self, total_seconds: float = 0) -> None:
        self.prefix = ""  # to each step
        self.begin("", total_seconds)

    def begin(self, what: str, seconds: float) -> None:
        """From here on it is `what` that runs; it and all after it take about so long."""
        self._what = what
        self._end = time.monotonic() + seconds

    def step(self, text: str) -> None:
        minutes, seconds = divmod(round(max(self._end - time.monotonic(), 0)), 60)
        line = f"about {minutes}:{seconds:02} left  {self._what}{self.prefix}{text}"
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def answer(url: str, request: Request) -> tuple[int, Any]:
    """Status and body of one answer, without what is the process's own. Raises CannotRun where there is none."""
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
    headers = dict(request.headers) | ({"Idempotency-Key": "the-same-for-all"} if request.keyed else {})
    try:
        connection.request(request.method, address.path + request.path, request.body or None, headers)
        response = connection.getresponse()
        body: Any = response.read()
    except OSError as error:
        raise CannotRun(f"{request} at {url}: {error}") from None
    finally:
        connection.close()
    if response.getheader("content-type", "").startswith("application/json"):
        body = json.loads(body)
        if isinstance(body, dict):
            body = {name: value for name, value in body.items() if name not in OWN_TO_A_PROCESS}
    return response.status, body


def require_same_answer(variants: Sequence[Variant], request: Request) -> None:
    """Raises CannotRun unless all variants answer alike, and with success: otherwise their costs do not compare."""
    first, *others = [(variant.name, answer(variant.url, request)) for variant in variants]
    if not 200 <= first[1][0] < 300:
        raise CannotRun(f"{request}: {first[0]} answered {first[1]}")
    for name, given in others:
        if given != first[1]:
            raise CannotRun(f"{request}: {name} answered {given}, but {first[0]} answered {first[1]}")


Start = Callable[[ExitStack], Variant]


def measure_anew(
    starts: Sequence[Start], requests: Sequence[Request], rounds: int, connections: int, progress: Progress
) -> list[dict[str, list[Round]]]:
    """As `measure`, for each of `requests`, but each round has processes of its own, started by `starts` and stopped
    with its ExitStack.

    For goals within a few percent: two processes of the same program differ by up to 4 % in their CPU per request for
    as long as they live, and with one of each that difference would be in every round.
    """
    found: list[dict[str, list[Round]]] = [{} for _ in requests]
    for number in range(rounds):
        progress.prefix = f"round {number + 1} of {rounds}, "
        with ExitStack() as stack:
            progress.step("starting new processes")
            variants = [start(stack) for start in (starts if number % 2 else reversed(starts))]
            for request, its in zip(requests, found, strict=True):
                taken = measure(variants, request, 1, connections, progress, NEW_WARM_UP_SECONDS)
                for name, one in taken.items():
                    its.setdefault(name, []).extend(one)
    progress.prefix = ""
    return found


def measure(
    variants: Sequence[Variant],
    request: Request,
    rounds: int,
    connections: int,
    progress: Progress,
    warm_up_seconds: float = WARM_UP_SECONDS,
) -> dict[str, list[Round]]:
    """Load each variant once in each round; the rounds of each by its name. All must answer alike first."""
    require_same_answer(variants, request)
    for variant in variants:
        progress.step(f"{request}, {variant.name}: warming up")
        load.run(variant.url, request, connections, warm_up_seconds)
    found: dict[str, list[Round]] = {variant.name: [] for variant in variants}
    for number in range(rounds):
        turn = number % len(variants)  # another one comes first each time
        order = [*variants[turn:], *variants[:turn]]
        slices: dict[str, list[Slice]] = {variant.name: [] for variant in variants}
        for _ in range(SLICES):
            for variant in order:
                counted = f"round {number + 1} of {rounds}, " if rounds > 1 else ""
                progress.step(f"{request}: {counted}{variant.name}")
                slices[variant.name].append(_slice(variant, request, connections))
            order.reverse()
        for name, taken in slices.items():
            found[name].append(_together(taken))
    return found


def seconds(variants: int, rounds: int) -> float:
    """About how long `measure` takes."""
    return variants * (WARM_UP_SECONDS + rounds * SLICES * (SLICE_SECONDS + 0.1))


def seconds_anew(variants: int, rounds: int, requests: int = 1) -> float:
    """About how long `measure_anew` takes."""
    return rounds * variants * (START_SECONDS + requests * (NEW_WARM_UP_SECONDS + SLICES * (SLICE_SECONDS + 0.1)))


Slice = tuple[load.Outcome, dict[str, float]]


def _slice(variant: Variant, request: Request, connections: int) -> Slice:
    """What the load saw, and the CPU seconds of each tier meanwhile."""
    before = {tier: cpu.tree_seconds(pid) for tier, pid in variant.tiers.items()}
    outcome = load.run(variant.url, request, connections, SLICE_SECONDS)
    return outcome, {tier: cpu.tree_seconds(pid) - before[tier] for tier, pid in variant.tiers.items()}


def _together(slices: Sequence[Slice]) -> Round:
    requests = sum(outcome.requests for outcome, _ in slices)
    elapsed = sum(outcome.seconds for outcome, _ in slices)
    return Round(
        throughput=requests / elapsed,
        cpu_us={tier: sum(used[tier] for _, used in slices) / requests * 1e6 for tier in slices[0][1]},
        latency_ms=middle([outcome.latency_ms for outcome, _ in slices]),
        generator_busy=sum(outcome.busy * outcome.seconds for outcome, _ in slices) / elapsed,
    )


def middle(latencies: Sequence[Mapping[float, float]]) -> dict[float, float]:
    """The median of what was measured several times, for each percentile that all have: a curve of Result."""
    common = [percentile for percentile in latencies[0] if all(percentile in each for each in latencies)]
    return {percentile: median(each[percentile] for each in latencies) for percentile in common}


def cpu_ratio(ours: Sequence[Round], base: Sequence[Round], tier: str) -> Figures:
    """CPU per request of a tier, ours over the base's."""
    return ratios([each.cpu_us[tier] for each in ours], [each.cpu_us[tier] for each in base])


def throughput_ratio(ours: Sequence[Round], base: Sequence[Round]) -> Figures:
    return ratios([each.throughput for each in ours], [each.throughput for each in base])


def add_price(result: Result, promise: str, with_it: Sequence[Round], without: Sequence[Round], *tiers: str) -> None:
    """A row of the table that says what each promise costs: CPU of `tiers` per request, with it and without it."""
    costs = [[sum(each.cpu_us.get(tier, 0) for tier in tiers) for each in rounds] for rounds in (with_it, without)]
    figures = Figures(tuple(a - b for a, b in zip(*costs, strict=True)))
    low, high = figures.interval
    share = ratios(*costs).median - 1
    row = {"its price": promise, "CPU us/request": f"{figures.median:.1f}", "90 % interval": f"{low:.1f} to {high:.1f}"}
    result.details.append(row | {"of what is without it": f"{share:+.0%}", "in": " and ".join(tiers)})


def add_rounds(result: Result, request: Request, found: Mapping[str, Sequence[Round]]) -> None:
    """Keep the rounds: medians for the table of details, all of it for the file; say where the load was the limit."""
    for name, rounds in found.items():
        busy = median(each.generator_busy for each in rounds)
        columns = {"requests/s": median(each.throughput for each in rounds)}
        for tier in rounds[0].cpu_us:
            columns[f"{tier} CPU us/request"] = median(each.cpu_us[tier] for each in rounds)
        columns |= {"p99 ms": median(each.p99_ms for each in rounds), "load's CPUs": busy}
        row = {key: f"{value:.3g}" if value < 100 else f"{value:.0f}" for key, value in columns.items()}
        result.details.append({"request": str(request), "variant": name} | row)
        if busy > load.SATURATED:
            result.notes.append(
                f"{request}, {name}: {load.generator()} itself took {busy:.0%} of a CPU, so the throughput is its own; "
                "CPU per request is not touched by that"
            )
    result.curves[f"latency of {request}"] = {
        name: middle([each.latency_ms for each in rounds]) for name, rounds in found.items()
    }
    result.rounds[str(request)] = {name: [asdict(each) for each in rounds] for name, rounds in found.items()}
