"""Leaves reports/<time>/: Locust's HTML report and CSV files, summary.json, and two charts of the run over time."""

import csv
import json
import time
from collections.abc import Callable
from datetime import datetime
from math import isnan
from pathlib import Path
from typing import Any

import pygal
from locust.env import Environment
from locust.html import get_html_report
from locust.stats import PERCENTILES_TO_REPORT, RequestStats, StatsCSV
from pygal.style import Style

from loadtest.objectives import Row

SHADES = {"p50": ("0.5", "#4477aa"), "p95": ("0.95", "#ccbb44"), "p99": ("0.99", "#aa3377")}


def new_folder(parent: Path) -> Path:
    """Make and return parent/<local time>. Raises OSError where that cannot be written."""
    name = time.strftime("%Y-%m-%dT%H-%M-%S")
    for suffix in ["", *(f"-{n}" for n in range(2, 100))]:
        try:
            (parent / f"{name}{suffix}").mkdir(parents=True)
            return parent / f"{name}{suffix}"
        except FileExistsError:  # another run started in the same second
            continue
    raise FileExistsError(f"{parent / name} exists a hundred times over")


def write(folder: Path, environment: Environment, summary: dict[str, Any], start: int, seconds: int) -> None:
    """Write all files of a run whose measured time began at `start` (Unix time) and took `seconds`."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    html: str = get_html_report(environment, show_download_link=False)  # type: ignore[no-untyped-call]
    (folder / "report.html").write_text(html, encoding="utf-8")
    tables = StatsCSV(environment, PERCENTILES_TO_REPORT)
    _csv(folder / "requests.csv", tables.requests_csv)
    _csv(folder / "failures.csv", tables.failures_csv)
    _csv(folder / "exceptions.csv", tables.exceptions_csv)
    history = over_time(environment.stats, start, seconds)
    _csv(folder / "history.csv", lambda writer: writer.writerows([history, *zip(*history.values(), strict=True)]))
    chart(folder / "throughput.svg", history, "per second", {"right": "#228833", "failed": "#ee6677"})
    chart(folder / "percentiles.svg", history, "ms", {name: shade for name, (_, shade) in SHADES.items()})


def over_time(stats: RequestStats, start: int, seconds: int) -> dict[str, list[float]]:
    """Columns, one entry a second: right answers and failures in it, and the percentiles of the last few seconds.

    A second in which Locust recorded no percentiles has NaN there, which a chart leaves blank.
    """
    recorded = {_unix(entry["time"]): entry for entry in stats.history}
    columns: dict[str, list[float]] = {name: [] for name in ("second", "right", "failed", *SHADES)}
    for second in range(start, start + seconds):
        failed = stats.total.num_fail_per_sec.get(second, 0)
        columns["second"].append(second - start)
        columns["right"].append(stats.total.num_reqs_per_sec.get(second, 0) - failed)
        columns["failed"].append(failed)
        for name, (percentile, _) in SHADES.items():
            entry = recorded.get(second) if second > start else None  # nothing has been reported in the first one
            columns[name].append(entry[f"response_time_percentile_{percentile}"][1] if entry else float("nan"))
    return columns


def chart(path: Path, history: dict[str, list[float]], unit: str, shades: dict[str, str]) -> None:
    """Draw these columns over the seconds, each in its shade, as SVG."""
    drawing = pygal.XY(
        width=900, height=320, js=[], pretty_print=True, show_dots=False, y_title=unit, include_x_axis=True,
        x_title="seconds since the end of the warm-up", value_formatter=lambda value: f"{value:g}",
        style=Style(colors=tuple(shades.values()), background="white", plot_background="white"),
    )  # fmt: skip
    for name in shades:
        points = zip(history["second"], history[name], strict=True)
        drawing.add(name, [(second, None if isnan(value) else value) for second, value in points])
    path.write_bytes(drawing.render())


def table(rows: list[Row]) -> str:
    """The lines a person reads at the end: objective, measured, wanted, pass or fail."""
    lines = [f"{'objective':<26}{'measured':>12}  {'wanted':<12}result"]
    for row in rows:
        wanted = f"{row.sign} {row.limit:g}{row.unit}"
        lines.append(
            f"{row.objective:<26}{_short(row.measured) + row.unit:>12}  {wanted:<12}{'pass' if row.met else 'FAIL'}"
        )
    return "\n".join(lines)


def _short(number: float) -> str:
    return f"{number:.1f}" if number >= 10 and number % 1 else f"{number:.4g}"


def _unix(timestamp: str) -> int:
    return int(datetime.fromisoformat(timestamp).timestamp())


def _csv(path: Path, write_rows: Callable[[Any], None]) -> None:
    with path.open("w", newline="") as file:
        write_rows(csv.writer(file))
