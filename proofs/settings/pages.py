"""docs/settings.md and docs/symptoms.md, written from the table and from what make mutate saw."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from proofs.settings import Setting, Unproven
from proofs.settings.links import link
from proofs.settings.symptoms import SYMPTOMS
from proofs.settings.table import TABLE
from proofs.stack import ROOT

SETTINGS_HEAD = """# Settings

Every setting of this stack, what it does, and what breaks without it. `make mutate` wrote this page: it changes one
setting at a time in a copy of the tree and runs the proofs named here. "Changed" is what it put in place, "seen" what
the proof said then. With the setting as it is, each of these proofs passes.

"""
SYMPTOMS_HEAD = """# Symptoms

From what you see to the setting behind it, and the proof that shows it. `make mutate` wrote this page.
docs/settings.md says what each setting does.

"""
SETTINGS_PAGE = ROOT / "docs/settings.md"
SYMPTOMS_PAGE = ROOT / "docs/symptoms.md"


def committed() -> dict[str, Any]:
    """What the page says was seen of each change that is still in the table, as results of make mutate."""
    page, found = SETTINGS_PAGE.read_text(), {}
    for setting in (each for each in TABLE if isinstance(each, Setting)):
        names, change = re.escape(head(setting)), re.escape(setting.change)
        pattern = rf"^{names}.*\n  Changed: {change}\. Seen: `(.*)`\n  Proof: `(.*)`$"
        if seen := re.search(pattern, page, re.MULTILINE):
            without, proof = seen.groups()
            found[setting.names[0]] = {"verdict": "killed", "without": without, "proof": proof, "tree": "committed"}
    return found


def write(results: dict[str, Any]) -> None:
    """`results` are what is known of each setting, from make mutate and from the page as it was."""
    SETTINGS_PAGE.write_text(settings_page(results))
    SYMPTOMS_PAGE.write_text(symptoms_page())
    print("wrote docs/settings.md and docs/symptoms.md")


def settings_page(results: dict[str, Any]) -> str:
    known = results["settings"]
    changes = [setting for setting in TABLE if isinstance(setting, Setting)]
    tried = [known[setting.names[0]] for setting in changes if setting.names[0] in known]
    verdicts = Counter(found["verdict"] for found in tried)
    unproven = [setting for setting in TABLE if isinstance(setting, Unproven)]
    names = sum(len(setting.names) for setting in TABLE)
    without = sum(len(setting.names) for setting in unproven)
    text = SETTINGS_HEAD + (
        f"{names} settings in {len(TABLE)} entries: {verdicts['killed']} changes were noticed by a proof, "
        f"{verdicts['survived']} went unnoticed, {verdicts['broken']} could not be tried; {without} settings "
        f"({without / names:.1%}) are listed with the reason why they cannot be proved here.\n"
    )
    if len(tried) < len(changes):
        text += f"\n{len(changes) - len(tried)} of the changes were not tried yet.\n"
    trees = Counter(found["tree"] for found in tried)
    if len(trees) > 1:
        text += f"\n{trees.total() - max(trees.values())} of the changes were tried on another commit than the rest.\n"
    section = ""
    for setting in TABLE:
        file = setting.names[0].partition(": ")[0]
        if file != section:
            section = file
            text += f"\n## {file}\n"
        text += f"\n{entry(setting, results)}"
    return text


def entry(setting: Setting | Unproven, results: dict[str, Any]) -> str:
    text = f"{head(setting)}{setting.does} Default: {setting.default}.\n"
    if isinstance(setting, Unproven):
        return text + f"  Not proved here: {setting.reason}\n"
    found = results["settings"].get(setting.names[0])
    text += f"  Changed: {setting.change}. "
    if found is None:
        return text + f"Not tried yet.\n  Proof: `{setting.proofs[0]}`\n"
    if found["verdict"] == "killed":
        text += f"Seen: `{found['without'].replace('`', chr(39))}`\n"
    else:
        text += f"{found['verdict'].capitalize()}.\n"
    return text + f"  Proof: `{found['proof'] or setting.proofs[0]}`\n"


def head(setting: Setting | Unproven) -> str:
    """What its entry begins with."""
    return f"- **{' '.join(map(named, setting.names))}**: "


def named(name: str) -> str:
    """The setting's name, with a link to what its makers say of it."""
    file, _, path = name.partition(": ")
    shown = f"`{path}`" if file != ".env" else f"`{path}` (.env)"
    address = link(name)
    return f"[{shown}]({address})" if address else shown


def symptoms_page() -> str:
    text = SYMPTOMS_HEAD + "| what you see | why | settings | proof |\n| --- | --- | --- | --- |\n"
    for symptom in SYMPTOMS:
        settings = ", ".join(f"`{name.partition(': ')[2]}`" for name in symptom.settings)
        proofs = ", ".join(f"`{proof}`" for proof in symptom.proofs)
        text += f"| {symptom.seen} | {symptom.why} | {settings} | {proofs} |\n"
    return text
