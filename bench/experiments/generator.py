"""What one Locust process sends with this stack's users, beside a bare FastHttpUser."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack

from bench.harness import Comparison, Progress, Result
from bench.processes import Bench, CannotRun
from bench.ratios import Figures, Goal, ratios
from stack.settings import ROOT

QUESTION = "How many requests does a CPU second of one Locust process send, with this stack's users and with bare ones?"
ROUNDS = 8
SLICE_SECONDS = 2
OURS, BARE = "this stack's user", "a bare FastHttpUser"
KINDS = {OURS: "ours", BARE: "bare"}


def seconds() -> float:
    return 5 + ROUNDS * 2 * (SLICE_SECONDS + 2)


def run(progress: Progress) -> Result:
    bench, result = Bench("generator", APP_MODULE="app.demo.main:app"), Result()
    found: dict[str, list[float]] = {OURS: [], BARE: []}
    with ExitStack() as stack:
        stack.enter_context(bench.own_folder())
        stack.enter_context(bench.app())
        stack.enter_context(bench.nginx())
        for number in range(ROUNDS):
            for name in (OURS, BARE) if number % 2 else (BARE, OURS):
                progress.step(f"round {number + 1} of {ROUNDS}, {name}")
                found[name].append(_sent(bench.url, KINDS[name]))
    result.rounds = {"requests in a CPU second": found}
    both, goal = ratios(found[OURS], found[BARE]), Goal("at least", 0.9)
    result.comparisons = [
        Comparison(f"requests in a CPU second, {OURS} to {BARE}", both, goal),
        *(Comparison(f"of one process, {name}", Figures(tuple(each)), unit="requests in a CPU second")
          for name, each in found.items()),
    ]  # fmt: skip
    return result


def _sent(url: str, kind: str) -> float:
    command = [sys.executable, "-m", "bench.generator_load", url, kind, str(SLICE_SECONDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    try:
        outcome = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise CannotRun(f"Locust gave no result: {done.stderr.strip()[-300:]}") from None
    if outcome["failures"] or not outcome["requests"]:
        raise CannotRun(f"{outcome['failures']} of {outcome['requests']} requests failed")
    sent: float = outcome["requests"] / outcome["cpu_seconds"]
    return sent
