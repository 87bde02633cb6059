"""How long the stack takes from the command to the first answer, in each way of running that is there."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from bench import processes, target
from bench.harness import Comparison, Progress, Result
from bench.processes import CannotRun, free_ports
from bench.ratios import Figures, Goal
from stack import compose, native
from stack.settings import ROOT, checked

QUESTION = "How many seconds from `make up`, with everything built, to the first 200?"
ROUNDS = 3
GIVE_UP_SECONDS = 120
POLL_SECONDS = 0.05  # oftener, the asking slows the start down
GOALS = {"native": Goal("at most", 5), "compose": Goal("at most", 10)}
# About how long one start and stop takes, for the time left.
ROUND_SECONDS = {"native": 5, "compose": 12}


def ways() -> list[str]:
    return ["native", "compose"] if compose.engine() else ["native"]


def seconds() -> float:
    return sum(ROUNDS * ROUND_SECONDS[way] for way in ways()) + 10


def run(progress: Progress) -> Result:
    result = Result()
    for way in GOALS:
        if way not in ways():
            result.unavailable.append(f"{way}: no Docker engine answers")
            continue
        with _own_stack(way) as environ:
            if way == "compose":
                progress.step("compose: building the images, not measured")
                _do(["docker", "compose", "build", "--quiet"], environ)
            took = []
            for number in range(ROUNDS):
                progress.step(f"{way}: start {number + 1} of {ROUNDS}")
                took.append(_start(environ))
                progress.step(f"{way}: stop {number + 1} of {ROUNDS}")
                _do(_stack("down"), environ)
        result.comparisons.append(Comparison(f"start to the first 200, {way}", Figures(tuple(took)), GOALS[way], "s"))
        result.rounds[way] = took
    return result


def _stack(command: str) -> list[str]:
    """What the target of that name in the Makefile runs."""
    return [sys.executable, "-m", "stack", command]


@contextlib.contextmanager
def _own_stack(way: str) -> Iterator[dict[str, str]]:
    """The environment of a stack of its own name and ports; whatever became of it is gone at the end."""
    names = ("HTTP_PORT", "LOCUST_UI_PORT", "LOCUST_MASTER_PORT", "LIVE_PORT", "PROMETHEUS_PORT")
    workers = checked()[0].workers
    # The last have one for each worker, after those of nginx's counters and the observer.
    found = free_ports(len(names) + 2 + workers)
    ports = {name: str(port) for name, port in zip(names, found, strict=False)} | {"APP_PORT": str(found[-workers])}
    environ = os.environ | ports | {"WAY": way, "COMPOSE_PROJECT_NAME": f"bench-{os.getpid()}-start"}
    try:
        yield environ
    finally:
        _quiet(_stack("down"), environ)
        with processes.environ(COMPOSE_PROJECT_NAME=environ["COMPOSE_PROJECT_NAME"]):
            shutil.rmtree(native.folder(), ignore_errors=True)
        if way == "compose":
            down = ["down", "--volumes", "--rmi", "local", "--remove-orphans", "--timeout", "5"]
            _quiet([*compose.COMPOSE, *down], environ)


def _start(environ: dict[str, str]) -> float:
    """Seconds from the command to the first 200. Raises CannotRun when it fails."""
    url = f"http://127.0.0.1:{environ['HTTP_PORT']}{target.given().paths[0]}"
    start = time.monotonic()
    command = subprocess.Popen(
        _stack("up"), cwd=ROOT, env=environ, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        while not _first_200(url):
            if command.poll() or time.monotonic() - start > GIVE_UP_SECONDS:
                raise CannotRun(f"no 200 from {url}")
            time.sleep(POLL_SECONDS)
        took = time.monotonic() - start
        output, _ = command.communicate(timeout=GIVE_UP_SECONDS)  # it also waits for what is not measured
        if command.returncode:
            raise CannotRun(output.strip())
        return took
    except CannotRun as failure:
        said = command.communicate()[0] if command.poll() is not None else ""
        raise CannotRun(f"make up, {environ['WAY']}: {failure} {said[-600:]}") from None
    finally:
        if command.poll() is None:
            command.send_signal(signal.SIGINT)  # `up` undoes what it began
            command.wait()


def _first_200(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def _do(command: list[str], environ: dict[str, str]) -> None:
    done = _quiet(command, environ)
    if done.returncode:
        raise CannotRun(f"{' '.join(command)}: exit status {done.returncode}: {(done.stdout + done.stderr)[-600:]}")


def _quiet(command: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, start_new_session=True)
