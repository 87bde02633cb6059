"""From one figure a round to a finding: median, range, and whether a goal is met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Verdict = Literal["met", "missed", "undecided", "more", "less"]


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

    def verdict(self, goal: Goal | None) -> Verdict:
        """Met or missed only where every round says so; without a goal, more or less than 1 by the same measure."""
        if goal is None:
            return "less" if self.high < 1 else "more" if self.low > 1 else "undecided"
        each = {goal.holds(value) for value in self.values}
        return "undecided" if len(each) > 1 else "met" if each.pop() else "missed"

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratios(ours: Sequence[float], base: Sequence[float]) -> Figures:
    """`ours` over `base`, round by round: what disturbs a round disturbs both of its halves.

    Raises ValueError where a round has only one half, or where there is nothing to divide by.
    """
    if len(ours) != len(base):
        raise ValueError(f"{len(ours)} rounds against {len(base)}")
    if not all(figure > 0 for figure in base):
        raise ValueError("a round of the base measured nothing")
    return Figures(tuple(a / b for a, b in zip(ours, base, strict=True)))
