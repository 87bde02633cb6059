"""What a bench leaves: a table on the terminal, a JSON file for each experiment, and the page of docs/ made of them."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import load
from bench.harness import Comparison, Result
from stack import native
from stack.console import Failure

PACKAGES = ("fastapi", "gunicorn", "uvicorn", "uvloop", "httptools", "prometheus-client")
COLUMNS = ("what", "goal", "median", "90 % interval", "range", "finding")
# docs/measurements.md, up to the first experiment.
HEAD = """# Measurements

What `make bench` found last. `python -m bench --write-docs` wrote this page from the files in `reports/bench/`;
nothing here is written by hand.

Variants are loaded in turn in the same run, and compared round by round: a figure is the median of the rounds' ratios.
Beside it stand the interval that holds the true median with 90 % confidence (under five rounds: the range, with less),
and the lowest and the highest round. A goal is *met* or *missed* where the whole interval says so, and *undecided*
where the bound is inside it. Ratios carry over to other machines; milliseconds, requests/s and CPU times are of this
machine and hour.
"""


def conditions() -> dict[str, str]:
    """What the figures hang on: versions, CPUs, and the generator of the load."""
    found = {"CPUs": str(os.cpu_count()), "machine": platform.machine(), "Python": platform.python_version()}
    found["load from"] = load.generator()
    try:
        found["nginx"] = ".".join(map(str, native.nginx_version(native.nginx())))
    except Failure:
        found["nginx"] = "none"
    return found | {name: version(name) for name in PACKAGES}


def rows(result: Result) -> list[list[str]]:
    """The findings under COLUMNS."""
    return [_row(comparison) for comparison in result.comparisons]


def _row(comparison: Comparison) -> list[str]:
    unit = f" {comparison.unit}" if comparison.unit else ""
    goal = f"{comparison.goal}{unit}" if comparison.goal else ""
    figures = comparison.figures
    interval, whole = (f"{low:.2f} to {high:.2f}" for low, high in (figures.interval, (figures.low, figures.high)))
    return [comparison.name, goal, f"{figures.median:.2f}{unit}", interval, whole, comparison.verdict]


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """For a terminal: columns under each other."""
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip()
                     for line in (head, *lines))  # fmt: skip


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def details(lines: Sequence[Mapping[str, str]]) -> list[tuple[list[str], list[list[str]]]]:
    """The absolute figures, a table for each set of columns. They hold for this machine at that hour only."""
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for line in lines:
        tables.setdefault(tuple(line), []).append(list(line.values()))
    return [(list(head), rows) for head, rows in tables.items()]


def write(folder: Path, name: str, question: str, result: Result) -> None:
    """Leave NAME.json in `folder`."""
    found: dict[str, Any] = {
        "experiment": name,
        "question": question,
        "measured": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "conditions": conditions(),
        "table": rows(result),
        "details": result.details,
        "unavailable": result.unavailable,
        "notes": result.notes,
        "findings": [
            {
                "name": comparison.name,
                "goal": str(comparison.goal) if comparison.goal else None,
                "unit": comparison.unit or "ratio",
                "values": comparison.figures.values,
                "median": comparison.figures.median,
                "interval": comparison.figures.interval,
                "verdict": comparison.verdict,
            }
            for comparison in result.comparisons
        ],
        "rounds": result.rounds,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


def page(folder: Path, names: Sequence[str]) -> str:
    """docs/measurements.md, from the NAME.json of each of `names`. Raises Failure where one has never been run."""
    missing = [name for name in names if not (folder / f"{name}.json").exists()]
    if missing:
        raise Failure(f'no result of {", ".join(missing)} yet: make bench EXPERIMENTS="{" ".join(missing)}"')
    found = [json.loads((folder / f"{name}.json").read_text()) for name in names]
    alike = all(each["conditions"] == found[0]["conditions"] for each in found)
    parts = [HEAD.rstrip()]
    if alike:
        parts.append(_measured_with(found[0]["conditions"]))
    for each in found:
        parts.append(_section(each))
        if not alike:
            parts.append(_measured_with(each["conditions"]))
    return "\n\n".join(parts) + "\n"


def _measured_with(around: Mapping[str, str]) -> str:
    return "Measured with " + ", ".join(f"{name} {value}" for name, value in around.items()) + "."


def _section(found: Mapping[str, Any]) -> str:
    parts = [f"## {found['experiment']}", found["question"], markdown_table(COLUMNS, found["table"])]
    parts += [markdown_table(head, lines) for head, lines in details(found["details"])]
    parts += [f"Not measured: {line}." for line in found["unavailable"]]
    parts += [f"Note: {line}." for line in found["notes"]]
    parts.append(f"`make bench EXPERIMENTS={found['experiment']}`, {found['measured']}.")
    return "\n\n".join(parts)
