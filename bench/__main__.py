"""`make bench`: python -m bench [EXPERIMENT...], or --write-docs for docs/measurements.md from the last results.

`make lab`: python -m bench lab [EXPERIMENT...], all experiments within 50 minutes, and a page with pictures of them.

Exit status 0: every goal is met. 1: one is missed. 3: none is missed, but one is undecided, because the bound is within
the median's confidence interval: run it again when the machine is quiet, shell with ROUNDS=60. 2: an experiment could
not run. 130: stopped by Ctrl-C; what was measured until then is kept.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from types import FrameType, ModuleType

from app.server.settings import SettingsError
from bench import cpu, lab, load, report
from bench.experiments import (
    balance,
    burst,
    cache,
    connections,
    crowd,
    download,
    forks,
    generator,
    growth,
    keepalive,
    layers,
    lifecycle,
    overload,
    proxy,
    servers,
    shell,
    start,
    swarm,
    sync,
    tiers,
    tls,
    watched,
    workers,
)
from bench.harness import Progress, Result
from bench.processes import CannotRun
from stack.console import Failure, say
from stack.settings import ROOT, checked

# Each has a QUESTION, seconds() and run(progress) -> Result. `make lab` runs all of them.
EXPERIMENTS: dict[str, ModuleType] = {
    "shell": shell,
    "layers": layers,
    "proxy": proxy,
    "tiers": tiers,
    "tls": tls,
    "cache": cache,
    "lifecycle": lifecycle,
    "forks": forks,
    "balance": balance,
    "burst": burst,
    "overload": overload,
    "download": download,
    "connections": connections,
    "sync": sync,
    "servers": servers,
    "workers": workers,
    "keepalive": keepalive,
    "start": start,
    "watched": watched,
    "swarm": swarm,
    "growth": growth,
    "crowd": crowd,
    "generator": generator,
}
# What `make bench` runs: those with goals.
BENCH = (
    "shell",
    "proxy",
    "tls",
    "cache",
    "lifecycle",
    "forks",
    "balance",
    "burst",
    "overload",
    "download",
    "start",
    "generator",
    "watched",
    "swarm",
)
REPORTS = ROOT / "reports/bench"
PAGE = ROOT / "reports/lab/index.html"
DOCS = ROOT / "docs/measurements.md"
MUCH = 0.03  # of the CPUs, for work that is none of this
MET, MISSED, UNDECIDED = 0, 1, 3
INTERRUPTED = 130


def status(results: Sequence[Result]) -> int:
    verdicts = {comparison.verdict for result in results for comparison in result.comparisons if comparison.goal}
    return MISSED if "missed" in verdicts else UNDECIDED if "undecided" in verdicts else MET


def run(names: Sequence[str], failed: dict[str, str] | None = None, limits: lab.Limits | None = None) -> int:
    """The exit status. Why an experiment could not run is added to `failed`, also where Ctrl-C ends this."""
    checked()
    expected = {name: EXPERIMENTS[name].seconds() for name in names}
    progress = Progress()
    say(f"{', '.join(names)}: load from {load.prepare()}; a finding is the median of ratios, taken round by round")
    if os.getloadavg()[0] > (os.cpu_count() or 1) / 2:
        say(f"note: other work keeps this machine busy (load {os.getloadavg()[0]:.1f}): ranges will be wide, a goal "
            "that is near may be undecided")  # fmt: skip
    results: dict[str, Result] = {}
    failed = {} if failed is None else failed
    begun = time.monotonic()
    try:
        for number, name in enumerate(names):
            progress.begin(f"{number + 1} of {len(names)}, {name}: ", sum(expected[each] for each in names[number:]))
            try:
                with limits.of_one(expected[name]) if limits else nullcontext():
                    results[name] = _one(name, progress)
            except (CannotRun, Failure) as failure:
                failed[name] = str(failure)
            progress.clear()
    finally:
        progress.clear()
        _show(results, failed, time.monotonic() - begun)
    return 2 if failed else status(list(results.values()))


def _one(name: str, progress: Progress) -> Result:
    experiment = EXPERIMENTS[name]
    others = cpu.Others()
    result: Result = experiment.run(progress)
    # What `start` starts is not its child: it cannot be told from other work.
    if experiment is not start and (share := others.share()) > MUCH:
        result.notes.append(f"meanwhile other work took {share:.0%} of this machine's CPUs")
    report.write(REPORTS, name, experiment.QUESTION, result)
    return result


def _show(results: dict[str, Result], failed: dict[str, str], took: float) -> None:
    for result in results.values():
        for head, lines in report.details(result.details):
            say(f"\n{report.table(head, lines)}")
    if results:
        say(f"\n{report.table(report.COLUMNS, [row for result in results.values() for row in report.rows(result)])}\n")
    for name, result in results.items():
        for line in result.unavailable:
            say(f"not measured: {name}: {line}")
        for line in result.notes:
            say(f"note: {name}: {line}")
    for name, why in failed.items():
        print(f"{name} could not run: {why}", file=sys.stderr)
    if results:
        say(f"{took:.0f} s; each round is in {report.shown(REPORTS)}/")


def run_lab(names: Sequence[str]) -> int:
    """Of all that was ever measured the page is made, also when Ctrl-C ends this."""
    failed: dict[str, str] = {}
    try:
        return run(names, failed, lab.Limits())
    finally:
        say(f"the report: {report.shown(lab.write(REPORTS, PAGE, list(EXPERIMENTS), failed))}")


def write_docs() -> int:
    names = [*BENCH, *(name for name in EXPERIMENTS if name not in BENCH)]
    DOCS.write_text(report.page(REPORTS, names, DOCS.read_text()))
    say(f"{DOCS.relative_to(ROOT)} is written")
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that what was started is stopped


def main() -> int:
    given = sys.argv[1:]
    if given == ["--write-docs"]:
        return write_docs()
    everything = given[:1] == ["lab"]
    names = (given[1:] or list(EXPERIMENTS)) if everything else (given or list(BENCH))
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown:
        print(f"{', '.join(unknown)}: no such experiment; there are {', '.join(EXPERIMENTS)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a script it is ignored
    try:
        return (run_lab if everything else run)(list(dict.fromkeys(names)))
    except (SettingsError, Failure, CannotRun) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; what was started is gone", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
