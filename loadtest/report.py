"""Leaves reports/<time>/: Locust's HTML report and CSV files, summary.json, and a chart of the run over time."""

import csv
import json
import os
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from locust.env import Environment
from locust.html import get_html_report
from locust.stats import PERCENTILES_TO_REPORT, RequestStats, StatsCSV

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
    chart(folder / "history.svg", history)


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


def chart(path: Path, history: dict[str, list[float]]) -> None:
    """Draw throughput above, percentiles below, as SVG."""
    with tempfile.TemporaryDirectory() as cache:
        # Matplotlib writes a font cache, which a user without a home cannot. NumPy starts a thread for each CPU of the
        # host, which on a large one is more than the container's limit of processes.
        os.environ |= {"MPLCONFIGDIR": cache, "OPENBLAS_NUM_THREADS": "1"}
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        above.plot(history["second"], history["right"], label="right answers", color="#228833")
        above.plot(history["second"], history["failed"], label="failures", color="#ee6677")
        above.set_ylabel("per second")
        for name, (_, shade) in SHADES.items():
            below.plot(history["second"], history[name], label=name, color=shade)
        below.set_ylabel("response time, ms")
        below.set_xlabel("seconds since the end of the warm-up")
        for axes in (above, below):
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.legend()
        figure.savefig(path, format="svg")


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
