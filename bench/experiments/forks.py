"""What WORKER_START=fork saves: the memory of a worker, the CPU of its replacement, the time of a reload of many."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench import cpu, memory
from bench.harness import Comparison, Progress, Result
from bench.processes import Bench, CannotRun
from bench.ratios import Goal, ratios

QUESTION = "What do a worker, its replacement and a reload cost when workers are forked from a loaded application?"
ROUNDS = 5
FEW, MANY = 2, 16
REPLACEMENTS = 4
GIVE_UP_SECONDS = 60
STARTS = ("fork", "import")
# As in the proofs, so that a round takes seconds.
ROWS = {
    "UPSTREAM_KEEPALIVE_SECONDS": "1",
    "DRAIN_SECONDS": "2",
    "PROXY_NEXT_UPSTREAM_TRIES": "20",
    "WORKER_MEMORY_MB": "0",
}


def seconds() -> float:
    return ROUNDS * 2 * (3 + 6 + 2 * REPLACEMENTS)


def run(progress: Progress) -> Result:
    result = Result()
    added: dict[str, list[float]] = {start: [] for start in STARTS}
    replaced: dict[str, list[float]] = {start: [] for start in STARTS}
    reload: dict[int, list[float]] = {FEW: [], MANY: []}
    for number in range(ROUNDS):
        for start in STARTS:
            held = {}
            for workers in (FEW, MANY):
                progress.step(f"{workers} workers, {start}, round {number + 1} of {ROUNDS}")
                with _running(start, workers) as (bench, master):
                    _warm(bench, workers)
                    held[workers] = memory.tree_bytes(master)
                    if workers == FEW:
                        replaced[start].append(_cpu_of_a_replacement(bench, master))
                    if start == "fork":
                        reload[workers].append(_seconds_of_a_reload(bench, master))
            added[start].append((held[MANY] - held[FEW]) / (MANY - FEW) / 1e6)
    fork, imported = STARTS
    result.comparisons = [
        Comparison("memory of an added worker (PSS), fork to import", ratios(added[fork], added[imported]),
                   Goal("at most", 0.4)),
        Comparison("CPU of a worker's replacement, fork to import", ratios(replaced[fork], replaced[imported]),
                   Goal("at most", 0.2)),
        Comparison(f"seconds of a reload of forked workers, {MANY} to {FEW}", ratios(reload[MANY], reload[FEW]),
                   Goal("at most", 2)),
    ]  # fmt: skip
    for start in STARTS:
        row = {"MB of an added worker": f"{median(added[start]):.1f}"}
        row["CPU s of a replacement"] = f"{median(replaced[start]):.3f}"
        result.details.append({"WORKER_START": start} | row)
    result.rounds = {"MB of an added worker": added, "CPU seconds of a replacement": replaced}
    result.rounds["seconds of a reload"] = {str(workers): taken for workers, taken in reload.items()}
    return result


@contextmanager
def _running(start: str, workers: int) -> Iterator[tuple[Bench, int]]:
    bench = Bench(f"forks-{start}-{workers}", WORKER_START=start, WORKERS=str(workers), **ROWS)
    with bench.own_folder(), bench.app() as master:
        yield bench, master


def _warm(bench: Bench, workers: int) -> None:
    for slot in range(workers):
        for _ in range(20):
            with urllib.request.urlopen(f"http://127.0.0.1:{bench.app_port + slot}/", timeout=10) as answer:
                answer.read()


def _status(bench: Bench) -> dict[str, object]:
    found: dict[str, object] = json.loads((bench.folder / f"app-{bench.app_port}.status.json").read_text())
    return found


def _wait(what: str, path: Path | None, bench: Bench, generation: int = 0) -> float:
    """Seconds until the process at `path` is gone, or this generation serves."""
    begun = time.monotonic()
    while path.exists() if path else _status(bench)["generation"] != generation:
        if time.monotonic() - begun > GIVE_UP_SECONDS:
            raise CannotRun(f"{what}: not within {GIVE_UP_SECONDS} s")
        time.sleep(0.005)
    return time.monotonic() - begun


def _cpu_of_a_replacement(bench: Bench, master: int) -> float:
    """With the end of the worker that it replaces; an idle stack's own CPU is taken off."""
    time.sleep(1.2)  # one that leaves in its infancy counts as one that does not start
    before, begun = cpu.tree_seconds(master), time.monotonic()
    time.sleep(1)
    idle = (cpu.tree_seconds(master) - before) / (time.monotonic() - begun)
    before, begun = cpu.tree_seconds(master), time.monotonic()
    for _ in range(REPLACEMENTS):
        victims = [worker["pid"] for worker in _status(bench)["workers"] if worker["state"] == "ready"]  # type: ignore
        os.kill(victims[0], signal.SIGTERM)
        _wait("the end of a worker", Path(f"/proc/{victims[0]}"), bench)
    used = cpu.tree_seconds(master) - before - idle * (time.monotonic() - begun)
    return used / REPLACEMENTS


def _seconds_of_a_reload(bench: Bench, master: int) -> float:
    """Until the new generation is complete; the drain after it lasts as long as its row says."""
    generation = int(str(_status(bench)["generation"])) + 1
    os.kill(master, signal.SIGHUP)
    return _wait("a reload", None, bench, generation)
