"""What `make capacity` leaves: a table with a curve on the terminal, and capacity.svg and capacity.json in reports/."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

from bench.capacity.probe import Objectives, Probe
from bench.capacity.recommend import Recommendation
from bench.report import table
from bench.scale import Scale

BAR = 28  # characters
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 420, 64, 24, 48, 48
COLOURS = {"p50": "#2a7f62", "p95": "#c77c11", "p99": "#b3261e"}


def curve(probes: Sequence[Probe], knee: float | None) -> str:
    """A line for each probe, by rate, with the p99 as a bar whose length is its logarithm."""
    ordered = sorted(probes, key=lambda probe: probe.rate)
    longest = max(probe.p99_ms for probe in ordered)
    lines = []
    for probe in ordered:
        length = ceil(BAR * log10(1 + probe.p99_ms) / log10(1 + longest))
        lines.append(
            [
                f"{probe.rate:.1f}", f"{probe.p50_ms:.1f}", f"{probe.p95_ms:.1f}", f"{probe.p99_ms:.1f}",
                f"{probe.error_share:.2%}", f"{probe.under_way:.1f}", "#" * length,
                ", ".join(probe.missed) or ("holds" if knee is None or probe.rate != knee else "holds: the knee"),
            ]
        )  # fmt: skip
    head = ["requests/s", "p50 ms", "p95 ms", "p99 ms", "failed", "under way", "p99, logarithmic", "objectives"]
    return table(head, lines)


def rows_to_paste(recommendations: Sequence[Recommendation]) -> str:
    """The rows as they go into .env, each with its reason, and what stands there now where that differs."""
    parts = []
    for each in recommendations:
        now = f" (now {each.now})" if each.changes else ""
        parts.append(f"# {each.why}{now}\n{each.row}={each.value}")
    return "\n".join(parts)


def svg(probes: Sequence[Probe], knee: float | None, objectives: Objectives, title: str) -> str:
    """Percentiles over the arrival rate, milliseconds on a logarithmic axis; a hollow mark is a probe that missed."""
    ordered = sorted(probes, key=lambda probe: probe.rate)
    top = 10 ** ceil(log10(max(10.0, objectives.p99_ms, *(probe.p99_ms for probe in ordered))))
    low = 10 ** floor(log10(max(0.1, min(probe.p50_ms for probe in ordered))))
    right = ordered[-1].rate * 1.03

    across, up = Scale(0, right, log=False), Scale(low, top, log=True)

    def x(rate: float) -> float:
        return LEFT + across.at(rate) * (WIDTH - LEFT - RIGHT)

    def y(ms: float) -> float:
        return HEIGHT - BOTTOM - up.at(max(ms, low)) * (HEIGHT - TOP - BOTTOM)

    parts = [_text(LEFT, 20, title, size=14)]
    for ms in up.ticks:
        parts.append(_line(LEFT, y(ms), WIDTH - RIGHT, y(ms), "#ddd"))
        parts.append(_text(LEFT - 6, y(ms) + 4, f"{ms:g} ms", anchor="end"))
    for rate in across.ticks:
        parts.append(_text(x(rate), HEIGHT - BOTTOM + 18, f"{rate:g}", anchor="middle"))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 10, "requests a second", anchor="end"))
    for name, limit in (("p50", objectives.p50_ms), ("p95", objectives.p95_ms), ("p99", objectives.p99_ms)):
        colour = COLOURS[name]
        parts.append(_line(LEFT, y(limit), WIDTH - RIGHT, y(limit), colour, 'stroke-dasharray="4 4"'))
        parts.append(_text(LEFT + 6, y(limit) - 4, f"{name} at most {limit:g} ms", colour=colour))
        points = [(x(probe.rate), y(getattr(probe, f"{name}_ms")), probe) for probe in ordered]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for px, py, probe in points:
            fill = colour if probe.held else "white"
            said = escape(f"{probe.rate:.1f}/s: {name} {getattr(probe, f'{name}_ms'):.1f} ms; "
                          f"{', '.join(probe.missed) or 'objectives hold'}")  # fmt: skip
            parts.append(
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{fill}" stroke="{colour}">'
                f"<title>{said}</title></circle>"
            )
    if knee is not None:
        parts.append(_line(x(knee), TOP - 8, x(knee), HEIGHT - BOTTOM, "#333"))
        parts.append(_text(x(knee) - 6, TOP - 12, f"the knee: {knee:.0f}/s", anchor="end"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{chr(10).join(parts)}\n</svg>\n'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" {more}/>'


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 12, colour: str = "#333") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-family="sans-serif" font-size="{size}" '
        f'fill="{colour}">{escape(words)}</text>'
    )


def write(folder: Path, picture: str, found: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "capacity.svg").write_text(picture)
    (folder / "capacity.json").write_text(json.dumps(found, indent=2) + "\n")


def as_json(probes: Sequence[Probe]) -> list[dict[str, Any]]:
    return [asdict(probe) | {"held": probe.held} for probe in probes]
