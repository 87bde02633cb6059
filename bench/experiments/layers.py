"""Where the shell's cost is: each of its parts alone, all of them, and what tutorials put around an app instead."""

from __future__ import annotations

import re
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench import harness, target
from bench.experiments.shell import BARE, CONNECTIONS, REQUESTS, SHELL
from bench.harness import Comparison, Progress, Result, Variant
from bench.processes import Bench, CannotRun

QUESTION = (
    "How much more CPU does a request take with each part of the shell alone around the app, with all of it, and with "
    "the middleware of tutorials (BaseHTTPMiddleware, an instrumentator package, Uvicorn's access log, structlog)?"
)
ROUNDS = 8

TYPICAL = "the tutorials' middleware"
PACKAGES = ("prometheus-fastapi-instrumentator", "structlog")
APPS = "bench.experiments.layers_app"
# By the part of the path that chooses each (layers_app.chosen).
PARTS = {
    "request_id": "the request id alone",
    "deadline": "the deadline alone",
    "metrics": "the metrics alone",
    "log": "the log alone",
    "shell": SHELL,
}


def seconds() -> float:
    return 6 + harness.seconds(len(PARTS) + 2, ROUNDS)


def run(progress: Progress) -> Result:
    result, request = Result(), target.asked(REQUESTS[0])
    with ExitStack() as stack:
        progress.step("starting the app in its layers")
        bench, typical = Bench("layers", WORKERS="1"), Bench("typical", WORKERS="1")
        stack.enter_context(bench.own_folder())
        pid = stack.enter_context(bench.app(f"'{APPS}:chosen()'"))
        of_all = {"bare": BARE} | PARTS
        variants = [Variant(name, f"{bench.app_url}/{part}", {"app": pid}) for part, name in of_all.items()]
        stack.enter_context(typical.own_folder())
        try:
            result.notes.append(_packages())
            pid = stack.enter_context(typical.app(f"--access-logfile - '{APPS}:typical()'"))
        except CannotRun as error:
            reason = re.search(r"Reason: ([^\"]+)", str(error))  # as Gunicorn's master says it, in its log
            result.unavailable.append(f"{TYPICAL}: {reason[1] if reason else error}")
        else:
            variants.append(Variant(TYPICAL, typical.app_url, {"app": pid}))
        found = harness.measure(variants, request, ROUNDS, CONNECTIONS, progress)
        if TYPICAL in found:
            require_lines(typical.folder / "app.log")
    harness.add_rounds(result, request, found)
    for name in PARTS.values():
        harness.add_price(result, name, found[name], found[BARE], "app")
    # The first is the headline.
    for name in sorted(found, key=lambda name: name not in (TYPICAL, SHELL)):
        if name != BARE:
            ratio = harness.cpu_ratio(found[name], found[BARE], "app")
            result.comparisons.append(Comparison(f"app CPU per request, {name} to {BARE}", ratio))
    return result


def _packages() -> str:
    """The versions of what tutorials use. Raises CannotRun where one is not installed."""
    try:
        return f"{TYPICAL}: " + ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    except PackageNotFoundError as error:
        raise CannotRun(f"{error.name} is not installed; uv sync installs it") from None


def require_lines(log: Path) -> None:
    """Raises CannotRun unless both logs have a line for each request: they are part of the cost.

    But for those that were under way at the end of a slice: their clients had gone, and Uvicorn does not log them.
    """
    text = log.read_text()
    access, structured = text.count(' HTTP/1.1" 200'), text.count('"event": "request"')
    if not access or not 0.9 <= access / max(structured, 1) <= 1.1:
        raise CannotRun(f"{TYPICAL}: {access} lines in the access log, {structured} of structlog")
