"""`make mutate`: change one setting at a time in a copy of the tree, and see a proof fail.

ONLY=name runs those settings whose name holds it. What was found is kept in reports/mutate/, so that a run that was
interrupted goes on where it stopped; it starts over when a file of the tree has changed. A run in which every change
was noticed writes docs/settings.md, evidence.md and symptoms.md; of settings that it did not try, they keep what they
have.
Exit status 1 when a change went unnoticed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from proofs.settings import Setting, pages
from proofs.settings.inventory import inventory
from proofs.settings.table import TABLE, faults
from proofs.stack import ROOT, patched_copy, tree_files

REPORTS = ROOT / "reports/mutate"
RESULTS = REPORTS / "results.json"
# A proof that hangs has noticed nothing.
SECONDS = 300
NO_MATTER = ("docs/", "bench/", "tests/bench/", "examples/")
Found = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutate", description=__doc__)
    parser.add_argument("only", nargs="?", default="", help="part of a setting's name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write-docs", action="store_true", help="write the pages from what is known")
    arguments = parser.parse_args()
    # In the background of a script SIGINT is ignored, here and in all that is started from here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if wrong := faults(inventory()):
        print("\n".join(wrong), file=sys.stderr)
        return 2
    chosen = [s for s in TABLE if isinstance(s, Setting) and any(arguments.only in name for name in s.names)]
    if not chosen:
        print(f"ONLY={arguments.only}: no setting's name holds that; make mutate lists them all", file=sys.stderr)
        return 2
    if arguments.write_docs:
        return write_docs(load())
    tree = digest()
    results = load()
    again = chosen if arguments.only else [s for s in chosen if not is_known(results["settings"], s.names[0], tree)]
    if len(again) < len(chosen):
        print(f"{len(chosen) - len(again)} of {len(chosen)} are known from a run before", flush=True)
    proofs = sorted({proof for setting in again for proof in setting.proofs})
    baseline([proof for proof in proofs if not is_known(results["with"], proof, tree)], results, tree)
    lock, begun = threading.Lock(), time.monotonic()
    with ThreadPoolExecutor(arguments.jobs) as threads:
        futures = {threads.submit(mutate, setting): setting for setting in in_turn(again)}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                setting, found = futures[future], future.result()
                left = (time.monotonic() - begun) / number * (len(futures) - number)
                print(f"{number} of {len(futures)}, {left / 60:.0f} min left: {found['verdict']:8} {setting.names[0]} "
                      f"-> {setting.change}: {found['without']}", flush=True)  # fmt: skip
                with lock:
                    results["settings"][setting.names[0]] = found | {"tree": tree}
                    save(results)
        except KeyboardInterrupt:
            threads.shutdown(cancel_futures=True)
            print("interrupted; make mutate goes on from here", file=sys.stderr)
            return 130
    return report(chosen, results)


def write_docs(results: Found) -> int:
    """The pages, from what was seen of each change: now, in a run before, or on the committed page."""
    results["settings"] = pages.committed() | results["settings"]
    pages.write(results)
    return 0


def in_turn(settings: list[Setting]) -> list[Setting]:
    """Those whose proofs need containers and those that need none by turns: side by side they wait for other things."""
    compose = [s for s in settings if needs_engine(s)]
    native = [s for s in settings if not needs_engine(s)]
    mixed = []
    while compose or native:
        for part in (compose, native):
            if part:
                mixed.append(part.pop(0))
    return mixed


def needs_engine(setting: Setting) -> bool:
    return any(word in proof for proof in setting.proofs for word in ("compose", "containers", "swarm"))


def digest() -> str:
    """Of the files of the tree, but for those that no proof depends on."""
    whole = hashlib.sha256()
    for name in sorted(tree_files()):
        if not name.startswith(NO_MATTER) and not name.endswith(".md"):
            whole.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
    return whole.hexdigest()[:16]


def load() -> Found:
    """What is known: of each setting, and of each proof without a change; each with the tree that it was seen on."""
    try:
        found: Found = json.loads(RESULTS.read_text())
    except (OSError, ValueError):
        found = {}
    return {"with": {}, "settings": {}} | found


def is_known(found: Found, name: str, tree: str) -> bool:
    return name in found and found[name]["tree"] == tree


def save(results: Found) -> None:
    REPORTS.mkdir(parents=True, exist_ok=True)
    part = RESULTS.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1))
    part.replace(RESULTS)


def baseline(proofs: list[str], results: Found, tree: str) -> None:
    """Run the proofs on the tree as it is. Exits when one fails: a proof that always fails notices nothing."""
    if not proofs:
        return
    print(f"{len(proofs)} proofs, on the tree as it is", flush=True)
    cases, output = pytest(ROOT, proofs, "--numprocesses", "2", "--dist", "loadgroup", seconds=3600)
    results["with"] |= {case["id"]: {"tree": tree} for case in cases if case["verdict"] == "passed"}
    save(results)
    bad = [f"{case['id']}: {case['verdict']}: {case['message']}" for case in cases if case["verdict"] != "passed"]
    if bad or not cases:
        sys.exit("\n".join(bad) or output)


def mutate(setting: Setting) -> Found:
    """Make the change in a copy, run the proofs there, say what was seen."""
    begun = time.monotonic()
    copy = patched_copy(setting.patches)
    try:
        cases, output = pytest(copy, setting.proofs, "--exitfirst", seconds=SECONDS)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    seconds = round(time.monotonic() - begun, 1)
    noticed = [case for case in cases if case["verdict"] == "failed"]
    not_started = [case for case in cases if case["verdict"] == "error"]
    if setting.breaks_start and not_started:
        noticed = noticed or not_started
    elif not_started and not noticed:
        verdict, proof, without = "broken", not_started[0]["id"], not_started[0]["message"]
    elif not cases or any(case["verdict"] == "skipped" for case in cases):
        verdict, proof, without = "broken", "", (output.strip().splitlines() or ["pytest said nothing"])[-1]
    else:
        verdict, proof, without = "survived", "", "all its proofs pass"
    if noticed:
        verdict, proof, without = "killed", noticed[0]["id"], noticed[0]["message"]
    return {"verdict": verdict, "proof": proof, "without": without, "seconds": seconds}


def pytest(root: Path, proofs: Sequence[str], *options: str, seconds: float) -> tuple[list[Found], str]:
    """What became of each test, and the whole output."""
    report = Path(tempfile.gettempdir()) / f"mutate-{os.getpid()}-{threading.get_ident()}.xml"
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *options, *proofs],
        env=os.environ | {"REQUIRE_DOCKER": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest's fixtures stop what they started
        output = _last_words(process)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        _last_words(process)
        raise
    cases = []
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            kinds = {child.tag: child for child in case if child.tag in ("failure", "error", "skipped")}
            kind = next(iter(kinds), "")
            verdict = {"failure": "failed", "error": "error", "skipped": "skipped", "": "passed"}[kind]
            message = in_short(kinds[kind].get("message") or kinds[kind].text or "") if kind else ""
            path = (case.get("classname") or "").replace(".", "/") + ".py"
            cases.append({"id": f"{path}::{case.get('name')}", "verdict": verdict, "message": message})
        report.unlink()
    return cases, output


def _last_words(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=120)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


def in_short(message: str) -> str:
    """What a failed assertion says, in one line."""
    text = next((line.strip() for line in message.splitlines() if line.strip()), "")
    text = re.sub(r'^failed on setup with "|\s*\[\+\d+ more lines.*|"$', "", text)
    text = re.sub(r"^(AssertionError: |assert )+", "", text)
    text = re.sub(r"127\.0\.0\.1:\d{5}", "127.0.0.1:PORT", text)
    return text if len(text) <= 160 else text[:157] + "..."


def report(chosen: list[Setting], results: Found) -> int:
    found = [results["settings"][setting.names[0]] for setting in chosen]
    counts = Counter(each["verdict"] for each in found)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in ("killed", "survived", "broken")))
    if counts["killed"] < len(found):
        return 1
    return write_docs(results)


if __name__ == "__main__":
    sys.exit(main())
