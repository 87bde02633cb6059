"""Pictures of a result as inline SVG, without script: x in per cent, so that they are as wide as their place, and text
stays as large as the page's.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

from bench.findings import figure, parts, sentence
from bench.harness import Comparison
from bench.scale import Scale, scale_of

MARGIN = 0.04  # of the picture's width, left and right of the scale
# What fits into 290 pixels, a phone's, in the page's font; the value stands beside the first bold ones.
LETTERS, BOLD_LETTERS, VALUE_LETTERS = 44, 36, 14
LINE, TRACK, GAP, AXIS = 17, 22, 14, 34  # heights
CURVE_HEIGHT = 240
LABELS = 0.14  # of the width, for those of the milliseconds
# The page has a colour for each.
SERIES = 6


def forest(comparisons: Sequence[Comparison]) -> str:
    """For each comparison the median as a point, its interval as a bar, the range as a line; all to one scale.

    All must have the same unit.
    """
    unit = comparisons[0].unit
    ends = [end for each in comparisons for end in (each.figures.low, each.figures.high)]
    goals = [each.goal.bound for each in comparisons if each.goal]
    scale = scale_of([*ends, *goals, *([] if unit else [1.0])])
    drawn, y = [], 0.0
    for comparison in comparisons:
        words, track = _words(comparison, y)
        y = track + TRACK + GAP
        lines = [_line("grid", _x(scale, value), track, track + TRACK) for value in scale.ticks]
        lines += [] if unit else [_line("one", _x(scale, 1.0), track, track + TRACK)]
        lines += [*_goal(comparison, scale, track), *_marks(comparison, scale, track + TRACK / 2)]
        title = f"<title>{escape(sentence(comparison))}</title>"
        drawn.append(f'<g class="{comparison.verdict}">{title}{"".join([*words, *lines])}</g>')
    drawn += [_text("tick", f"{_x(scale, value):.3f}%", y + 12, f"{value:g}", "middle") for value in scale.ticks]
    drawn.append(_text("axis", "50%", y + AXIS, f"{unit or 'ratio'}{', logarithmic' if scale.log else ''}", "middle"))
    said = " ".join(sentence(comparison) for comparison in comparisons)
    return _svg("forest", y + AXIS + 8, f"Medians, 90 % intervals and ranges. {said}", drawn)


def _words(comparison: Comparison, top: float) -> tuple[list[str], float]:
    """What is compared, with the median at the right; and where the words end."""
    between = parts(comparison)
    what, rest = (between[0], f"{between[1]} to {between[2]}") if between else (comparison.name, "")
    median, verdict = figure(comparison.figures.median), comparison.verdict
    value = f"{median} {comparison.unit}".strip()
    value += f" {verdict}" if comparison.goal or not comparison.unit else ""
    words = [_text("value", "100%", top + LINE, value, "end")]
    wrapped = textwrap.wrap(what, BOLD_LETTERS, initial_indent=" " * VALUE_LETTERS)
    lines = [("what", line.strip()) for line in wrapped]
    lines += [("between", line) for line in textwrap.wrap(rest, LETTERS)]
    words += [_text(name, "0", top + LINE * (number + 1), line) for number, (name, line) in enumerate(lines)]
    return words, top + LINE * len(lines) + 5


def _goal(comparison: Comparison, scale: Scale, track: float) -> list[str]:
    """A line at the bound, with a flag to the side on which it is met."""
    if not comparison.goal:
        return []
    x = _x(scale, comparison.goal.bound)
    point = -5 if comparison.goal.relation == "at most" else 5
    flag = f'<path class="flag" d="M0 0 L{point} 4 L0 8 Z"/>'
    return [
        _line("goal", x, track, track + TRACK),
        f'<svg x="{x:.3f}%" y="{track:g}" width="1" height="8" overflow="visible">{flag}</svg>',
    ]


def _marks(comparison: Comparison, scale: Scale, y: float) -> list[str]:
    figures = comparison.figures
    lowest, low, high, highest = (_x(scale, end) for end in (figures.low, *figures.interval, figures.high))
    width = max(high - low, 0.4)
    return [
        f'<line class="range" x1="{lowest:.3f}%" x2="{highest:.3f}%" y1="{y:g}" y2="{y:g}"/>',
        f'<rect class="interval" x="{low:.3f}%" y="{y - 5:g}" width="{width:.3f}%" height="10" rx="2"/>',
        f'<circle class="median" cx="{_x(scale, figures.median):.3f}%" cy="{y:g}" r="5"/>',
    ]


def curves(title: str, by_variant: Mapping[str, Mapping[float, float]]) -> str:
    """Milliseconds over percentile, both by their logarithms: the tail is what differs."""
    points = {name: sorted((share, ms) for share, ms in curve.items() if ms > 0 and share < 100)
              for name, curve in by_variant.items()}  # fmt: skip
    values = [ms for curve in points.values() for _, ms in curve]
    shares = sorted({share for curve in points.values() for share, _ in curve})
    if len(shares) < 2:
        return ""
    up = Scale(min(values) / 1.15, max(values) * 1.15, log=True)
    across = Scale(_rarity(shares[0]), _rarity(shares[-1]), log=True)
    said = "; ".join(f"{name}: {_listed(curve)}" for name, curve in points.items())
    return _plot(
        f"{title}. {said}",
        {name: [(_rarity(share), ms) for share, ms in curve] for name, curve in points.items()},
        (across, {_rarity(share): f"p{share:g}" for share in shares}),
        (up, {ms: f"{ms:g} ms" if ms < 1000 else f"{ms / 1000:g} s" for ms in up.ticks}),
    )


def growth(title: str, by_tier: Mapping[str, Mapping[float, float]]) -> str:
    """A cost over a size, both by their logarithms: a line that is level costs the same at each size."""
    points = {name: sorted(curve.items()) for name, curve in by_tier.items()}
    sizes = sorted({size for curve in points.values() for size, _ in curve})
    values = [value for curve in points.values() for _, value in curve if value > 0]
    if len(sizes) < 2 or not values:
        return ""
    up = Scale(min(values) / 1.5, max(values) * 1.5, log=True)
    across = Scale(sizes[0], sizes[-1], log=True)
    said = "; ".join(
        f"{name}: {', '.join(f'{figure(value)} at {size:g}' for size, value in curve)}"
        for name, curve in points.items()
    )
    kept = {name: [(size, value) for size, value in curve if value > 0] for name, curve in points.items()}
    ends = {size: f"{size:g}" for size in sizes}
    return _plot(f"{title}. {said}", kept, (across, ends), (up, {value: f"{value:g}" for value in up.ticks}))


Axis = tuple[Scale, Mapping[float, str]]


def _plot(label: str, points: Mapping[str, Sequence[tuple[float, float]]], across: Axis, up: Axis) -> str:
    """Lines through points; of each axis the scale, and the words at its places."""
    top, bottom = 6.0, 6.0 + CURVE_HEIGHT
    drawn = []
    for place, words in up[1].items():
        y = bottom - up[0].at(place) * CURVE_HEIGHT
        drawn.append(f'<line class="grid" x1="{100 * LABELS:g}%" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(_text("tick", "0", y + 4, words))
    for place, words in across[1].items():
        x = _x(across[0], place, LABELS)
        drawn.append(_line("grid", x, top, bottom))
        drawn.append(_text("tick", f"{x:.3f}%", bottom + 16, words, "middle"))
    for number, (name, curve) in enumerate(points.items()):
        at = [(_x(across[0], place, LABELS), bottom - up[0].at(value) * CURVE_HEIGHT) for place, value in curve]
        body = [f'<line x1="{a:.3f}%" y1="{b:.1f}" x2="{c:.3f}%" y2="{d:.1f}"/>' for (a, b), (c, d) in pairwise(at)]
        body += [f'<circle cx="{x:.3f}%" cy="{y:.1f}" r="3.5"/>' for x, y in at]
        drawn.append(f'<g class="curve {series(number)}"><title>{escape(name)}</title>{"".join(body)}</g>')
    return _svg("curves", bottom + 24, label, drawn)


def series(number: int) -> str:
    """The classes of a line of this number: its colour, and when these are used up, its dashes."""
    return f"series{number % SERIES}" + (" dashed" if number // SERIES else "")


def _listed(curve: Sequence[tuple[float, float]]) -> str:
    return ", ".join(f"p{share:g} {figure(ms)} ms" for share, ms in curve)


def _rarity(share: float) -> float:
    """One in how many is slower: each nine takes as much room as the one before."""
    return 1 / (1 - share / 100)


def _x(scale: Scale, value: float, left: float = MARGIN) -> float:
    """In per cent of the width."""
    return 100 * (left + (1 - left - MARGIN) * scale.at(value))


def _line(name: str, x: float, top: float, bottom: float) -> str:
    return f'<line class="{name}" x1="{x:.3f}%" x2="{x:.3f}%" y1="{top:g}" y2="{bottom:g}"/>'


def _text(name: str, x: str, y: float, words: str, anchor: str = "start") -> str:
    return f'<text class="{name}" x="{x}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(name: str, height: float, label: str, drawn: Sequence[str]) -> str:
    return (
        f'<svg class="{name}" role="img" width="100%" height="{height:g}" aria-label="{escape(label)}">'
        f"{''.join(drawn)}</svg>"
    )
