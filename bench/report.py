"""What a bench leaves: a table on the terminal, and a JSON and a Markdown file for each experiment."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import load
from bench.harness import Comparison, Result
from stack import native
from stack.console import Failure

PACKAGES = ("fastapi", "gunicorn", "uvicorn", "uvloop", "httptools", "prometheus-client")
COLUMNS = ("what", "goal", "measured, median (range)", "finding")


def conditions() -> dict[str, str]:
    """What the figures hang on: versions, CPUs, and the generator of the load."""
    found = {"cpus": str(os.cpu_count()), "python": platform.python_version(), "load from": load.generator()}
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
    return [comparison.name, goal, f"{comparison.figures}{unit}", comparison.verdict]


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """For a terminal: columns under each other."""
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip()
                     for line in (head, *lines))  # fmt: skip


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def details(result: Result) -> list[tuple[list[str], list[list[str]]]]:
    """The absolute figures, a table for each set of columns. They hold for this machine at that hour only."""
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for line in result.details:
        tables.setdefault(tuple(line), []).append(list(line.values()))
    return [(list(head), lines) for head, lines in tables.items()]


def markdown(question: str, result: Result, around: Mapping[str, str]) -> str:
    """A fragment for docs/: the finding, and beneath it what it was taken from."""
    parts = [f"**{question}**", markdown_table(COLUMNS, rows(result))]
    parts += [f"Not measured: {line}." for line in result.unavailable]
    parts += [f"Note: {line}." for line in result.notes]
    for head, lines in details(result):
        parts += ["Medians of the rounds, for this machine only:", markdown_table(head, lines)]
    parts.append("Measured with " + ", ".join(f"{name} {value}" for name, value in around.items()) + ".")
    return "\n\n".join(parts) + "\n"


def write(folder: Path, name: str, question: str, result: Result) -> None:
    """Leave NAME.json and NAME.md in `folder`."""
    around = conditions()
    found: dict[str, Any] = {
        "experiment": name,
        "question": question,
        "conditions": around,
        "findings": [
            {
                "name": comparison.name,
                "goal": str(comparison.goal) if comparison.goal else None,
                "unit": comparison.unit or "ratio",
                "values": comparison.figures.values,
                "median": comparison.figures.median,
                "low": comparison.figures.low,
                "high": comparison.figures.high,
                "verdict": comparison.verdict,
            }
            for comparison in result.comparisons
        ],
        "unavailable": result.unavailable,
        "notes": result.notes,
        "rounds": result.rounds,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    (folder / f"{name}.md").write_text(markdown(question, result, around))
