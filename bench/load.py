"""The load: a closed loop of connections that each wait for their answer, from wrk, or from Locust where wrk is not to
be had.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import CannotRun
from stack import debian
from stack.console import Failure
from stack.settings import ROOT

SATURATED = 0.9  # of the CPU time its threads could have
# Of the latency; what is asked of either generator.
PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True)
class Request:
    """What is sent, again and again. `keyed` gives each one an Idempotency-Key of its own."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    keyed: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Outcome:
    """What came of one run of load. `latency_ms` is by percentile; `busy` is the share of the CPU time that the
    generator could have used.
    """

    requests: int
    seconds: float
    errors: int
    latency_ms: Mapping[float, float]
    busy: float

    @property
    def p99_ms(self) -> float:
        return self.latency_ms[99.0]


def generator() -> str:
    """The name of what makes the load here."""
    return "wrk" if shutil.which("wrk") else "Locust"


def prepare() -> str:
    """Install wrk where that is possible: it leaves the stack more of the CPU than Locust. Says what makes the load."""
    if generator() == "wrk":
        return "wrk"
    if not debian.can_install():
        return "Locust (wrk is not installed, and would leave the stack more of the CPU: sudo apt-get install wrk)"
    try:
        debian.install("wrk")
    except Failure as failure:
        return f"Locust ({failure})"
    return generator()


def run(url: str, request: Request, connections: int, seconds: float) -> Outcome:
    """Load `url` for so long. Raises CannotRun when the generator fails, or when any request does."""
    prefix = uuid.uuid4().hex[:12] if request.keyed else ""
    with tempfile.NamedTemporaryFile("w", suffix=".body") as body:
        body.write(request.body)
        body.flush()
        percentiles = ",".join(f"{each:g}" for each in PERCENTILES)
        headers = [f"{name}: {value}" for name, value in request.headers.items()]
        arguments = [request.method, body.name if request.body else "", prefix, percentiles, *headers]
        target = url + request.path
        if generator() == "wrk":
            # It calls an answer that takes over 2 s an error, if not told otherwise: here it is a slow answer.
            times = (f"-d{seconds:.0f}s", "--timeout", "15s")
            load = ["wrk", "-t1", f"-c{connections}", *times, "-s", str(ROOT / "bench/load.lua"), target]
            command = [*load, "--", *arguments]
        else:
            command = [sys.executable, "-m", "bench.locust_load", target, str(connections), str(seconds), *arguments]
        done, cpu_seconds = _run(command, give_up_after=seconds + 20)
    try:
        found = json.loads(done.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise CannotRun(f"{generator()} gave no result: {done.strip()[-300:]}") from None
    if found["errors"] or not found["requests"]:
        raise CannotRun(f"{request} at {url}: {found['errors']} of {found['requests']} requests failed")
    found["latency_ms"] = {float(percentile): ms for percentile, ms in found["latency_ms"].items()}
    return Outcome(**found, busy=cpu_seconds / found["seconds"])


def _run(command: list[str], give_up_after: float) -> tuple[str, float]:
    """The output of `command`, and the CPU seconds it took."""
    before = os.times()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=give_up_after)
    except subprocess.TimeoutExpired:
        raise CannotRun(f"{Path(command[0]).name} did not end within {give_up_after:g} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    after = os.times()
    used = (after.children_user + after.children_system) - (before.children_user + before.children_system)
    return output, used
