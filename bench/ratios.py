"""From one figure a round to a finding: the median, how sure it is, and whether a goal is met.

Not the range decides: with more rounds it only grows, and on a shared machine one bad round in many is certain. It is
the median's confidence interval by order statistics: for 8 rounds from the second lowest to the second highest, for 11
from the third. It supposes nothing of how the rounds are distributed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from typing import Literal

Verdict = Literal["met", "missed", "undecided", "more", "less"]
CONFIDENCE = 0.9


@dataclass(frozen=True)
class Goal:
    """What a figure must be; the bound itself is good enough."""

    relation: Literal["at most", "at least"]
    bound: float

    def holds(self, figure: float) -> bool:
        return figure <= self.bound if self.relation == "at most" else figure >= self.bound

    def __str__(self) -> str:
        return f"{self.relation} {self.bound:g}"


@dataclass(frozen=True)
class Figures:
    """One figure from each round: ratios of two variants in the same round, or seconds."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("no rounds")

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """Holds the true median with CONFIDENCE at least; the range, where there are too few rounds (under 5)."""
        ordered = sorted(self.values)
        rounds, cut = len(ordered), 0
        while 2 * (cut + 2) <= rounds and _coverage(rounds, cut + 1) >= CONFIDENCE:
            cut += 1
        return ordered[cut], ordered[-1 - cut]

    def verdict(self, goal: Goal | None) -> Verdict:
        """Met or missed only where the whole interval says so; without a goal, more or less than 1 in the same way."""
        low, high = self.interval
        if goal is None:
            return "less" if high < 1 else "more" if low > 1 else "undecided"
        ends = goal.holds(low), goal.holds(high)
        return "undecided" if ends[0] != ends[1] else "met" if ends[0] else "missed"


def _coverage(rounds: int, cut: int) -> float:
    """How probably the median is in what is left when the `cut` lowest and the `cut` highest rounds are cut off."""
    return 1.0 - 2 * sum(comb(rounds, n) for n in range(cut + 1)) / 2.0**rounds


def ratios(ours: Sequence[float], base: Sequence[float]) -> Figures:
    """`ours` over `base`, round by round: what disturbs a round disturbs both of its halves.

    Raises ValueError where a round has only one half, or where there is nothing to divide by.
    """
    if len(ours) != len(base):
        raise ValueError(f"{len(ours)} rounds against {len(base)}")
    if not all(figure > 0 for figure in base):
        raise ValueError("a round of the base measured nothing")
    return Figures(tuple(a / b for a, b in zip(ours, base, strict=True)))
