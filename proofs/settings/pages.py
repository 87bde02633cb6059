"""docs/settings.md, evidence.md, symptoms.md and metrics.md, written from the table and from what make mutate saw."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from typing import Any

from app.server.metrics import METRICS, Metric
from live.metrics import METRICS as LIVE_METRICS
from live.metrics import Metric as LiveMetric
from proofs.settings import Setting, Unproven
from proofs.settings.links import link
from proofs.settings.symptoms import SYMPTOMS, Symptom
from proofs.settings.table import TABLE
from proofs.stack import ROOT

SETTINGS_HEAD = """# Settings

Every setting of this stack: what it does, what it would be without its line, and the proof that fails then.
`make mutate` wrote this page. [Evidence](evidence.md) has what each proof said.

"""
EVIDENCE_HEAD = """# Evidence

`make mutate` wrote this page: it changes one setting at a time in a copy of the tree, and runs the proofs named here.
"Seen" is what the proof said then. With the setting as it is, each of these proofs passes.
[Settings](settings.md) says what each does.

"""
SYMPTOMS_HEAD = """# Symptoms

From what you see to the setting behind it, and the proof that shows it. `make mutate` wrote this page.
[Settings](settings.md) says what each setting does, and [Metrics](metrics.md) what each metric says.

"""
METRICS_HEAD = """# Metrics

What the observer says at `/metrics` ([where it answers](logs-and-metrics.md#metrics)), and what each is good for.
`make mutate` wrote this page, and so does `python -m proofs.mutate --write-docs`.

"""
README = ROOT / "README.md"
SETTINGS_PAGE = ROOT / "docs/settings.md"
EVIDENCE_PAGE = ROOT / "docs/evidence.md"
SYMPTOMS_PAGE = ROOT / "docs/symptoms.md"
LIVE_METRICS_HEAD = """
## nginx and the live service

What `curl 127.0.0.1:8090/metrics` (`LIVE_PORT`) says besides, in one place with the metrics above of every replica.
There they have a label `replica` ([live](live.md)).

"""
METRICS_PAGE = ROOT / "docs/metrics.md"


def committed() -> dict[str, Any]:
    """What the page says was seen of each change that is still in the table, as results of make mutate."""
    page, found = EVIDENCE_PAGE.read_text(), {}
    for setting in (each for each in TABLE if isinstance(each, Setting)):
        beginning = re.escape(f"- {names(setting)}: {setting.change}. Seen: ")
        if seen := re.search(rf"^{beginning}`(.*)`\n  Proof: `(.*)`$", page, re.MULTILINE):
            without, proof = seen.groups()
            found[setting.names[0]] = {"verdict": "killed", "without": without, "proof": proof, "tree": "committed"}
    return found


def write(results: dict[str, Any]) -> None:
    """`results` are what is known of each setting, from make mutate and from the page as it was."""
    SETTINGS_PAGE.write_text(SETTINGS_HEAD + summary(results) + parts(row, TABLE_HEAD))
    EVIDENCE_PAGE.write_text(EVIDENCE_HEAD + parts(lambda setting: entry(setting, results)).lstrip())
    SYMPTOMS_PAGE.write_text(symptoms_page())
    METRICS_PAGE.write_text(metrics_page())
    line = f"| {seen_to_fail(results)} | settings, each with a test that was seen to fail without it"
    README.write_text(re.sub(r"^\| \d+ \| settings, [^(]* (?=\()", f"{line} ", README.read_text(), flags=re.MULTILINE))
    print("wrote docs/settings.md, docs/evidence.md, docs/symptoms.md and docs/metrics.md, and README's line on them")


def seen_to_fail(results: dict[str, Any]) -> int:
    """The settings of whose change a proof took notice."""
    known = results["settings"]
    return sum(
        len(setting.names)
        for setting in TABLE
        if isinstance(setting, Setting) and known.get(setting.names[0], {}).get("verdict") == "killed"
    )


def summary(results: dict[str, Any]) -> str:
    known = results["settings"]
    changes = [setting for setting in TABLE if isinstance(setting, Setting)]
    tried = [known[setting.names[0]] for setting in changes if setting.names[0] in known]
    verdicts = Counter(found["verdict"] for found in tried)
    unproven = [setting for setting in TABLE if isinstance(setting, Unproven)]
    count = sum(len(setting.names) for setting in TABLE)
    without = sum(len(setting.names) for setting in unproven)
    text = (
        f"{count} settings in {len(TABLE)} entries. A proof was seen to fail without {seen_to_fail(results)} of them: "
        f"{verdicts['killed']} changes were noticed, {verdicts['survived']} went unnoticed, {verdicts['broken']} could "
        f"not be tried; {without} settings "
        f"({without / count:.1%}) are listed with the reason why they cannot be proved here.\n"
    )
    if len(tried) < len(changes):
        text += f"\n{len(changes) - len(tried)} of the changes were not tried yet.\n"
    trees = Counter(found["tree"] for found in tried)
    if len(trees) > 1:
        text += f"\n{trees.total() - max(trees.values())} of the changes were tried on another commit than the rest.\n"
    return text


TABLE_HEAD = "| setting | what it does | default | proof |\n| --- | --- | --- | --- |\n"


def parts(write_one: Callable[[Setting | Unproven], str], begins_with: str = "") -> str:
    """The settings of each file in a part of their own."""
    text = ""
    for file, settings in groupby(TABLE, lambda setting: setting.names[0].partition(": ")[0]):
        text += f"\n## {file}\n\n{begins_with}" + "".join(map(write_one, settings))
    return text


def row(setting: Setting | Unproven) -> str:
    proof = f"none: {setting.reason}" if isinstance(setting, Unproven) else f"`{setting.proofs[0]}`"
    cells = (names(setting), setting.does, setting.default, proof)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def entry(setting: Setting | Unproven, results: dict[str, Any]) -> str:
    """What was seen of it; nothing where nothing can be."""
    if isinstance(setting, Unproven):
        return ""
    text = f"- {names(setting)}: {setting.change}. "
    found = results["settings"].get(setting.names[0])
    if found is None:
        return text + f"Not tried yet.\n  Proof: `{setting.proofs[0]}`\n"
    if found["verdict"] == "killed":
        text += f"Seen: `{found['without'].replace('`', chr(39))}`\n"
    else:
        text += f"{found['verdict'].capitalize()}.\n"
    return text + f"  Proof: `{found['proof'] or setting.proofs[0]}`\n"


def names(setting: Setting | Unproven) -> str:
    return " ".join(map(named, setting.names))


def named(name: str) -> str:
    """The setting's name, with a link to what its makers say of it."""
    file, _, path = name.partition(": ")
    shown = f"`{path}`" if file != ".env" else f"`{path}` (.env)"
    address = link(name)
    return f"[{shown}]({address})" if address else shown


def symptoms_page() -> str:
    text = SYMPTOMS_HEAD + "| what you see | why | settings | metrics | proof |\n| --- | --- | --- | --- | --- |\n"
    for symptom in SYMPTOMS:
        settings = ", ".join(f"`{name.partition(': ')[2]}`" for name in symptom.settings)
        proofs = ", ".join(f"`{proof}`" for proof in symptom.proofs)
        metrics = ", ".join(f"`{metric}`" for metric in symptom.metrics)
        text += f"| {symptom.seen} | {symptom.why} | {settings} | {metrics} | {proofs} |\n"
    return text


def metrics_page() -> str:
    head = "| metric | type | labels | what it says | the symptoms it is for |\n" + "| --- " * 5 + "|\n"
    text = METRICS_HEAD + head + "".join(map(metric_row, METRICS))
    return text + LIVE_METRICS_HEAD + head + "".join(map(metric_row, LIVE_METRICS))


def metric_row(metric: Metric | LiveMetric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    seen = "; ".join(symptom.seen for symptom in SYMPTOMS if metric.family in families(symptom))
    return f"| `{metric.family}` | {metric.kind} | {labels} | {metric.help} | {seen} |\n"


def families(symptom: Symptom) -> set[str]:
    """The metrics that it names, without their labels."""
    return {metric.partition("{")[0] for metric in symptom.metrics}
