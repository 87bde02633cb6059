"""The lab's report: one HTML page that needs nothing else, for any width, in light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from bench import pictures, report
from bench.findings import headlines, sentence
from bench.report import Stored

STYLE = (Path(__file__).parent / "lab.css").read_text()
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>What each choice costs</title>
<style>
{style}</style>
</head>
<body>
<main>
"""
FOOT = "</main>\n</body>\n</html>\n"
INTRODUCTION = (
    "Variants were loaded in turn in the same run and compared round by round. Ratios carry over to other machines; "
    "milliseconds, requests/s and CPU times are of this machine and hour."
)
KEY = {
    "point": "median of the rounds",
    "bar": "holds the true median with 90 % confidence (under five rounds: the range)",
    "whisker": "lowest to highest round",
    "unity": "no difference",
    "bound": "goal, with a flag to the side on which it is met",
}


def page(stored: Sequence[Stored], missing: Mapping[str, str]) -> str:
    """The report of what there is; `missing` says of each other experiment why there is nothing."""
    parts = [
        HEAD.format(style=STYLE),
        "<header>\n<h1>What each choice costs</h1>\n",
        f"<p>{escape(INTRODUCTION)}</p>\n",
    ]
    parts.append("</header>\n" + _summary(stored, missing) + _key())
    parts += [_section(each) for each in stored]
    return "".join([*parts, _conditions(stored), FOOT])


def _key() -> str:
    """How the pictures are read."""
    items = "".join(f'<li><span class="{sign}"></span>{escape(said)}</li>' for sign, said in KEY.items())
    return f'<ul class="key">{items}</ul>\n'


def _summary(stored: Sequence[Stored], missing: Mapping[str, str]) -> str:
    """The main finding of each experiment, and what is not there."""
    items = []
    for each in stored:
        name, found = escape(each.experiment), headlines(each.result.comparisons)
        finding = escape(sentence(found[0])) if found else "Nothing could be compared."
        items.append(f'<li><a href="#{name}">{name}</a><span>{finding}</span></li>')
    for gone, why in missing.items():
        items.append(f'<li class="missing"><b>{escape(gone)}</b><span>Not measured: {escape(why)}.</span></li>')
    return f'<nav aria-label="Findings">\n<ul>{"".join(items)}</ul>\n</nav>\n'


def _section(stored: Stored) -> str:
    result = stored.result
    name = escape(stored.experiment)
    found = [sentence(comparison) for comparison in headlines(result.comparisons)]
    parts = [f'<section id="{name}" aria-labelledby="{name}-head">\n<h2 id="{name}-head">{name}</h2>']
    parts.append(f'<p class="question">{escape(stored.question)}</p>')
    parts += [f'<p class="finding">{escape(line)}</p>' for line in found[:1]]
    if found[1:]:
        parts.append(f'<ul class="findings">{"".join(f"<li>{escape(line)}</li>" for line in found[1:])}</ul>')
    by_unit = sorted(result.comparisons, key=lambda comparison: comparison.unit)
    for _, alike in groupby(by_unit, key=lambda comparison: comparison.unit):
        parts.append(f"<figure>{pictures.forest(list(alike))}</figure>")
    for title, curves in result.curves.items():
        parts.append(_curves(f"{title}, median of the rounds by percentile", curves, pictures.curves(title, curves)))
    for title, curves in result.growth.items():
        parts.append(_curves(title, curves, pictures.growth(title, curves)))
    if result.comparisons:
        parts.append(_table("Comparisons", report.COLUMNS, report.rows(result)))
    parts += [_table("On this machine", head, lines) for head, lines in report.details(result.details)]
    parts += [f'<p class="aside"><b>Not measured:</b> {escape(line)}.</p>' for line in result.unavailable]
    parts += [f'<p class="aside"><b>Note:</b> {escape(line)}.</p>' for line in result.notes]
    again = f"<code>{escape(report.command(stored.experiment))}</code>, {escape(stored.measured)}"
    parts.append(f'<p class="when">{again}</p>\n</section>\n')
    return "\n".join(parts)


def _curves(title: str, curves: Mapping[str, Mapping[float, float]], picture: str) -> str:
    names = "".join(
        f'<li><span class="swatch {pictures.series(number)}"></span>{escape(name)}</li>'
        for number, name in enumerate(curves)
    )
    heading = f"{title[:1].upper()}{title[1:]}"
    return picture and f"<figure><figcaption>{escape(heading)}<ul>{names}</ul></figcaption>{picture}</figure>"


def _table(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """In a box that can be scrolled, by keyboard too, so that the page need not be."""
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll" role="region" aria-label="{escape(title)}" tabindex="0">{table}</div>'


def _conditions(stored: Sequence[Stored]) -> str:
    """The machine and the versions: once, or for each experiment where they differ."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for each in stored:
        found.setdefault(tuple(each.conditions.items()), []).append(each.experiment)
    lists = []
    for conditions, names in found.items():
        if len(found) > 1:
            lists.append(f"<h3>{escape(', '.join(names))}</h3>")
        pairs = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in conditions)
        lists.append(f"<dl>{pairs}</dl>")
    return f"<footer>\n<h2>Machine and versions</h2>\n{''.join(lists)}\n</footer>\n" if lists else ""
