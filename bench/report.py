"""What a bench leaves: tables on the terminal, a JSON file for each experiment, and the page of docs/ made of them."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import load
from bench.findings import figure, headlines, sentence
from bench.harness import Comparison, Result
from bench.ratios import Figures, Goal
from stack import native
from stack.console import Failure
from stack.settings import ROOT
from stack.settings import rows as rows_of_env

PACKAGES = ("fastapi", "gunicorn", "uvicorn", "uvloop", "httptools")
SECTIONS = re.MULTILINE | re.DOTALL
COLUMNS = ("what", "goal", "median", "90 % interval", "range", "finding")
# docs/measurements.md, up to the first experiment.
HEAD = """# Measurements

What `make bench` and `make lab` found last. `python -m bench --write-docs` wrote this page from the files in
`reports/bench/`, and kept what it had of an experiment that has none there; nothing is written by hand. `make lab`
leaves the same with pictures in `reports/lab/`.

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
    found["app"] = rows_of_env()["APP_MODULE"]
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
    ends = (figures.interval, (figures.low, figures.high))
    interval, whole = (f"{figure(low)} to {figure(high)}" for low, high in ends)
    verdict = comparison.verdict if comparison.goal or not unit else ""  # more or less than 1 is asked of ratios alone
    return [comparison.name, goal, f"{figure(figures.median)}{unit}", interval, whole, verdict]


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
        "headlines": [sentence(comparison) for comparison in headlines(result.comparisons)],
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
        "curves": result.curves,
        "growth": result.growth,
        "rounds": result.rounds,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


@dataclass(frozen=True)
class Stored:
    """A result, read from its file, and what it hangs on."""

    experiment: str
    question: str
    measured: str
    conditions: Mapping[str, str]
    result: Result


def shown(path: Path) -> str:
    """As a person in the folder of the repository would write it."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def read(folder: Path, names: Sequence[str]) -> list[Stored]:
    """What `write` left in `folder` of each of `names`; nothing of those that were never run."""
    files = [folder / f"{name}.json" for name in names]
    return [_stored(json.loads(file.read_text())) for file in files if file.exists()]


def _stored(found: Mapping[str, Any]) -> Stored:
    result = Result(
        comparisons=[_comparison(each) for each in found["findings"]],
        details=found["details"],
        rounds=found["rounds"],
        curves=_numbers(found.get("curves", {})),  # an older file has none
        growth=_numbers(found.get("growth", {})),
        unavailable=found["unavailable"],
        notes=found["notes"],
    )
    return Stored(found["experiment"], found["question"], found["measured"], found["conditions"], result)


def _numbers(found: Mapping[str, Any]) -> dict[str, dict[str, dict[float, float]]]:
    """Keys are text in JSON."""
    return {
        title: {name: {float(at): value for at, value in curve.items()} for name, curve in curves.items()}
        for title, curves in found.items()
    }


def _comparison(found: Mapping[str, Any]) -> Comparison:
    goal = None
    if found["goal"]:
        relation, bound = found["goal"].rsplit(" ", 1)
        goal = Goal(relation, float(bound))
    return Comparison(found["name"], Figures(tuple(found["values"])), goal, found["unit"].replace("ratio", ""))


def page(folder: Path, names: Sequence[str], before: str) -> str:
    """docs/measurements.md: what is in `folder` of the experiments, and of the others what the page had before."""
    sections = {found[1]: found[0].strip() for found in re.finditer(r"^## (\S+)\n.*?(?=^## |\Z)", before, SECTIONS)}
    sections |= {each.experiment: _section(each) for each in read(folder, names)}
    found = [name for name in names if name in sections]
    first = [f"- [{name}](#{name}): {re.findall(r'^- (.*)$', sections[name], re.MULTILINE)[0]}" for name in found]
    return "\n\n".join([HEAD.rstrip(), "In short:", "\n".join(first), *(sections[name] for name in found)]) + "\n"


def command(name: str) -> str:
    """What measures it again."""
    return f"make bench EXPERIMENTS={name}"


def _section(stored: Stored) -> str:
    result = stored.result
    parts = [f"## {stored.experiment}", stored.question]
    parts.append("\n".join(f"- {sentence(comparison)}" for comparison in headlines(result.comparisons)))
    parts.append(markdown_table(COLUMNS, rows(result)))
    parts += [markdown_table(head, lines) for head, lines in details(result.details)]
    parts += [f"Not measured: {line}." for line in result.unavailable]
    parts += [f"Note: {line}." for line in result.notes]
    conditions = ", ".join(f"{name} {value}" for name, value in stored.conditions.items())
    parts.append(f"`{command(stored.experiment)}`, {stored.measured}, with {conditions}.")
    return "\n\n".join(parts)
