"""The knee: the highest rate at which the objectives hold, found by probes of one stack."""

from __future__ import annotations

import contextlib
import http.client
import time
from dataclasses import dataclass, field
from itertools import takewhile
from statistics import median

from bench.capacity import probe, search
from bench.capacity.probe import Objectives, Probe
from bench.capacity.recommend import USUAL, Measured
from bench.harness import Progress
from bench.target import Target

START, FACTOR = 16.0, 2.0
WITHIN, ROUGHLY = 1.05, 1.12  # how near an edge is found; for comparing numbers of workers
SEARCHES = 3
# Each further search looks this far around the finding of the one before.
AROUND = 1.4
USUAL_PROBES = 5
# A stack that was loaded beyond its capacity works off what waits for it, before the next probe.
CALM_SECONDS = 10.0


class TooNoisy(Exception):
    """The same question had different answers; the text says which."""


class NoneHolds(Exception):
    """The objectives hold at no rate; the text says which do not."""


@dataclass
class Trials:
    """Probes of one stack. It keeps them all, and ends the search when its time is over."""

    port: int
    target: Target
    objectives: Objectives
    progress: Progress
    seconds: float
    until: float
    taken: list[Probe] = field(default_factory=list)

    def probe(self, rate: float, seconds: float = 0) -> Probe:
        if time.monotonic() > self.until:
            raise TooNoisy("no two searches have agreed in the time there is")
        self.progress.step(f"{rate:.1f} requests a second")
        # The same arrivals at the first trial of each rate, and others when it is repeated: what differs from search to
        # search is the machine, and not the luck of a draw.
        seed = sum(1 for _ in takewhile(lambda each: each.rate == rate, reversed(self.taken)))
        taken = probe.run(self.port, rate, seconds or self.seconds, self.target.paths, self.objectives, seed)
        self.taken.append(taken)
        if not taken.held:
            self._calm()
        return taken

    def short(self, rate: float) -> bool:
        return self.probe(rate, self.seconds / 2).held

    def holds(self, rate: float) -> bool:
        return self.probe(rate).held

    def _calm(self) -> None:
        """Until some answers in a row come well within the objective for half of them."""
        end = time.monotonic() + CALM_SECONDS
        limit = self.objectives.p50_ms / 2000
        quick = 0
        while quick < 4 and time.monotonic() < end:
            begun = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CALM_SECONDS)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", self.target.paths[0])
                connection.getresponse().read()
            connection.close()
            quick = quick + 1 if time.monotonic() - begun <= limit else 0


def find(trials: Trials) -> tuple[float, list[float]]:
    """The highest rate at which the objectives hold, and what each search for it found.

    Raises TooNoisy where the searches do not agree or the rate cannot be confirmed, NoneHolds where there is none.
    """
    low, high = search.climb(START, FACTOR, search.by_majority(trials.short))
    if not low:
        raise NoneHolds(", ".join(trials.taken[-1].missed))
    holds = search.by_majority(trials.holds)
    findings = [search.bisect(low, high, WITHIN, holds)]
    while len(findings) < SEARCHES:
        begun, around = time.monotonic(), findings[-1]
        findings.append(search.bisect(around / AROUND, around * AROUND, WITHIN, holds))
        took = time.monotonic() - begun
        if search.agreed(findings) and trials.until - time.monotonic() < 2 * took:
            break  # with longer probes there is no time for another
    rate = search.agreed(findings)
    if rate is None:
        raise TooNoisy(f"searches found {', '.join(f'{each:.0f}' for each in findings)} requests/s")
    for _ in range(3):
        if holds(rate):
            return rate, findings
        rate /= WITHIN
    raise TooNoisy(f"{rate * WITHIN:.0f} requests/s held when it was searched for, and not when it was confirmed")


def measured(trials: Trials, workers: int, rate: float) -> Measured:
    """What else a recommendation needs: the knee's probes, and some at the usual load."""
    at_it = [each for each in trials.taken if each.held and rate / WITHIN <= each.rate <= rate * 1.001]
    usual = [trials.probe(USUAL * rate, trials.seconds / 2) for _ in range(USUAL_PROBES)]
    return Measured(
        workers=workers,
        rate=rate,
        under_way=median(each.under_way for each in at_it),
        most_under_way=round(median(each.most_under_way for each in at_it)),
        usual_p99_ms=median(each.p99_ms for each in usual),
    )


def find_roughly(trials: Trials, workers: int, around: float) -> Measured:
    """With few short probes, from a quarter of what another number of workers bears."""
    holds = search.by_majority(trials.holds)
    low, high = search.climb(around / 2, 1.5, holds)
    if not low:
        raise NoneHolds(", ".join(trials.taken[-1].missed))
    rate = search.bisect(low, high, ROUGHLY, holds)
    if not holds(rate):
        rate = max((each.rate for each in trials.taken if each.held and each.rate < rate), default=rate)
    return measured(trials, workers, rate)
