"""Where something ceases to hold, from few trials that may each be wrong. Pure: what a trial is, the caller says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import sqrt
from statistics import median

Holds = Callable[[float], bool]

AGREE = 1.1  # two findings of the same edge may be so many times apart
LEAST, MOST = 1.0, 100_000.0


def by_majority(trial: Holds) -> Holds:
    """A trial that fails is repeated, and two of three decide: one bad second is not the edge."""

    def holds(value: float) -> bool:
        return trial(value) or (trial(value) and trial(value))

    return holds


def climb(start: float, factor: float, holds: Holds) -> tuple[float, float]:
    """The last value that held and the first that did not, in steps of `factor` from `start` up, or down from it.

    (0, LEAST) where none holds, and (MOST, MOST) where all do.
    """
    value = start
    if holds(value):
        while value < MOST:
            if not holds(value * factor):
                return value, value * factor
            value *= factor
        return MOST, MOST
    while value > LEAST:
        value = max(LEAST, value / factor)
        if holds(value):
            return value, value * factor
    return 0.0, LEAST


def bisect(low: float, high: float, within: float, holds: Holds) -> float:
    """The highest value at which it held, when the lowest at which it did not is less than `within` times as much.

    `low` is taken to hold and `high` not to; the middle of two values is that of their ratio.
    """
    while high > within * low:
        middle = sqrt(low * high)
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def agreed(findings: Sequence[float]) -> float | None:
    """The median of two findings or more; None where no two are near each other."""
    ordered = sorted(findings)
    near = any(high <= AGREE * low for low, high in pairwise(ordered))
    return median(ordered) if near else None
