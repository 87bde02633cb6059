"""From figures to places in a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# From here on a linear scale would crowd the small ones together.
LOG_SPAN = 4
MOST_TICKS = 7
SAME = 1.000001  # figures that differ by no more


@dataclass(frozen=True)
class Scale:
    """From figures to shares of the width or height."""

    low: float
    high: float
    log: bool

    def at(self, value: float) -> float:
        low, high, value = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return (value - low) / (high - low)

    @property
    def ticks(self) -> list[float]:
        """Round figures, MOST_TICKS of them at most."""
        if not self.log:
            span = self.high - self.low
            unit = 10.0 ** (math.floor(math.log10(span)) - 1)
            step = next(one * unit for one in (1, 2, 5, 10, 20, 50) if span / (one * unit) < MOST_TICKS)
            first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
            return [step * number for number in range(first, last + 1)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for round_ones in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [one * 10.0**power for power in powers for one in round_ones]
            found = [value for value in found if self.low / SAME <= value <= self.high * SAME]
            if len(found) <= MOST_TICKS:
                return found
        return found[:: math.ceil(len(found) / MOST_TICKS)]


def scale_of(values: Sequence[float]) -> Scale:
    """With room for all of `values`; by their logarithms where the highest is more than LOG_SPAN times the lowest."""
    low, high = min(values), max(values)
    if low > 0 and high / low > LOG_SPAN:
        return Scale(low, high, log=True)
    if low == high:
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    return Scale(low, high, log=False)
