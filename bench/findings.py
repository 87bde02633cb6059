"""What an experiment found, in sentences made of its figures."""

from __future__ import annotations

from collections.abc import Sequence

from bench.harness import Comparison
from bench.ratios import Figures


def parts(comparison: Comparison) -> tuple[str, str, str] | None:
    """What was compared, ours, and the base, from a name like "WHAT, OURS to BASE"; None where it is no ratio."""
    what, _, between = comparison.name.partition(", ")
    ours, _, base = between.partition(" to ")
    return (what, ours, base) if base and not comparison.unit else None


def headlines(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Those that have a goal; then the first, and those that say of others what it says."""
    what = [(parts(comparison) or (comparison.name,))[0] for comparison in comparisons]
    with_goals = [comparison for comparison in comparisons if comparison.goal]
    return with_goals + [each for each, its in zip(comparisons, what, strict=True) if not each.goal and its == what[0]]


def sentence(comparison: Comparison) -> str:
    unit = f" {comparison.unit}" if comparison.unit else ""
    if between := parts(comparison):
        what, ours, base = between
        said = f"With {ours}, the {what} is {amount(comparison.figures)} times that with {base}"
    else:
        said = f"{comparison.name[:1].upper()}{comparison.name[1:]}: {amount(comparison.figures)}{unit}"
    verdict, goal = comparison.verdict, f"{comparison.goal}{unit}"
    if comparison.goal is None:
        # Of seconds, unlike of ratios, nobody asks whether they are more than 1.
        end = (
            "" if not between else "; undecided, for 1 is in the interval" if verdict == "undecided" else f": {verdict}"
        )
    elif verdict == "undecided":
        end = f"; whether it is {goal}, the goal, is undecided"
    else:
        end = f"; the goal, {goal}, is {verdict}"
    return f"{said}{end}."


def amount(figures: Figures) -> str:
    low, high = figures.interval
    return f"{figure(figures.median)} ({figure(low)} to {figure(high)})"


def figure(value: float) -> str:
    """Two decimals; of large figures fewer, and of small ones two that tell something."""
    return f"{value:.2f}" if 0.1 <= value < 100 else f"{value:.2g}" if value < 0.1 else f"{value:.0f}"
