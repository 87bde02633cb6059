"""The headless run from settings to exit status: check the target, load it, compare with the objectives, report."""

import logging
import os
import platform
import ssl
import sys
import time
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, HTTPSHandler, ProxyHandler, build_opener

import locust
from locust.env import Environment
from locust.stats import RequestStats

from loadtest import report, tls
from loadtest.base import BaseUser, ModuleError, users
from loadtest.generator import advice, requests_of_one
from loadtest.load import CouldNotRun, Load
from loadtest.objectives import COULD_NOT_RUN, Measured, evaluate, verdict
from loadtest.settings import Settings, SettingsError, read

BOTTLENECK = (
    "WARNING: the load generator was the bottleneck, so these figures are its own and not the server's.\n"
    "Raise LOADTEST_PROCESSES, give it more CPU, or ask for less load."
)


def main(reports: Path) -> int:
    """Run once as the environment says, leave the report in a new folder of `reports`, return the exit status."""
    try:
        settings = read(os.environ)
        closed, rate = users(settings.module)
        check_answers(settings.target)
        check_requests(closed, settings)
        return run(settings, rate if settings.shape == "rate" else closed, report.new_folder(reports))
    except (SettingsError, ModuleError, CouldNotRun) as error:
        message = str(error)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        message = f"cannot write the report: {error}"
    print("\n".join(f"loadtest: {line}" for line in message.splitlines()), file=sys.stderr)
    return COULD_NOT_RUN


class NoRedirect(HTTPRedirectHandler):
    """Makes a redirect an HTTPError, as any other status."""

    def redirect_request(self, *_: object) -> None:
        return None


def check_answers(target: str) -> None:
    """Raises CouldNotRun unless the target answers with anything but a server error, and its certificate is right."""
    https = [HTTPSHandler(context=tls.context())] if target.startswith("https:") else []
    try:
        build_opener(ProxyHandler({}), NoRedirect, *https).open(f"{target}/", timeout=5).close()
    except HTTPError as error:
        if error.code >= 500:
            raise CouldNotRun(f"{target} answers with status {error.code}: see `make ps` and `make logs`") from None
    except (OSError, HTTPException) as error:
        if isinstance(why := getattr(error, "reason", None), ssl.SSLCertVerificationError):
            raise CouldNotRun(
                f"{target}: a visitor of {tls.context().name} does not trust the certificate: {why.verify_message}; it "
                "must have that name, the first of SERVER_NAMES, and be a public CA's or in TLS_FOLDER/trusted"
            ) from None
        raise CouldNotRun(f"{target} does not answer ({getattr(error, 'reason', error)}): try `make up`") from None


def check_requests(user: type[BaseUser], settings: Settings) -> None:
    """Send each task's requests once. Raises CouldNotRun, a line for each that the app does not know: 4xx, but for 429.

    All other failures are figures of the run.
    """
    wrong: list[str] = []

    def note(request_type: str, name: str, exception: object, response: Any = None, **_: Any) -> None:
        status = getattr(response, "status_code", 0)
        if exception and 400 <= status < 500 and status != 429:
            wrong.append(f"{request_type} {name}: {exception}")

    environment = Environment(user_classes=[user])
    environment.events.request.add_listener(note)  # type: ignore[no-untyped-call]
    user.host = settings.target
    visitor = user(environment)
    for task in dict.fromkeys(task for task in user.tasks if not isinstance(task, type)):  # a nested TaskSet is a class
        try:
            task(visitor)  # type: ignore[operator]
        except Exception as error:
            wrong.append(f"{getattr(task, '__name__', task)}: {type(error).__name__}: {error}")
    if wrong:
        remedy = "are not those of this app: correct them, or let `make users` write loadtest/users.py anew"
        if settings.module == "loadtest.demo":
            remedy = "are the demo's: `make users` writes some for your app into loadtest/users.py"
        wrong.append(f"LOADTEST_MODULE={settings.module}: its requests {remedy}")
        raise CouldNotRun("\n".join(dict.fromkeys(wrong)))


def run(settings: Settings, user: type[BaseUser], folder: Path) -> int:
    """Run the load, write the report into `folder`, print table and verdict, return the exit status."""
    logging.basicConfig(filename=folder / "locust.log", level=logging.INFO, format="%(asctime)s %(message)s")
    load = Load(settings, user, folder / "locust.log")
    problems: list[str] = []
    try:
        load.start_users()
        load.warm_up()
        load.measure()
    except CouldNotRun as error:
        problems.append(str(error))
    seconds = min(int(time.time()) - load.begin, settings.seconds) if load.begin else 0
    try:
        load.stop(hurry=bool(problems))
    except CouldNotRun as error:
        problems = problems or [str(error)]
    for raised in load.master.exceptions.values():
        problems.append(f"a user's task raised {raised['msg']!r} {raised['count']} times, see exceptions.csv")

    measured = figures(load.environment.stats, load.begin, seconds)
    rows = evaluate(measured, settings.objectives)
    bottleneck = any(process.saturated() for process in load.usage)
    of_one = requests_of_one(load.usage[1:], measured.rps)
    status, line = verdict(measured, rows, problems, bottleneck)
    if load.signals:
        status = 128 + load.signals[0]
    summary = {
        "exit_status": status,
        "verdict": line,
        "objectives": [asdict(row) for row in rows],
        "measured": asdict(measured),
        "generator": {
            "bottleneck": bottleneck,
            "requests_per_second_of_one_process": of_one,
            "processes": [process.summary() for process in load.usage],
        },
        "settings": asdict(settings),
        "versions": {"locust": locust.__version__, "python": platform.python_version()},
    }
    report.write(folder, load.environment, summary, load.begin, seconds)
    print(f"\n{report.table(rows)}\n\n{line}" if measured.requests else f"\n{line}")
    for failure in sorted(load.environment.stats.errors.values(), key=lambda kind: -kind.occurrences)[:5]:
        print(f"  {failure.occurrences} failures: {failure.to_name()}")
    if of_one:
        print(advice(of_one, settings.rate if settings.shape == "rate" else 0))
    if bottleneck:
        print("\n".join([BOTTLENECK, *(f"  {process}" for process in load.usage)]))
    print(f"report: {folder.parent.name}/{folder.name}")  # in a container the rest of the path is not the caller's
    return status


def figures(stats: RequestStats, begin: int, seconds: int) -> Measured:
    """What `seconds` from `begin` (Unix time) on gave; all zero when not even one second was measured.

    The rates count those whole seconds; requests and percentiles also the answers still under way at their end.
    """
    total = stats.total if seconds else RequestStats().total
    window = range(begin, begin + seconds)
    answers = sum(total.num_reqs_per_sec.get(second, 0) for second in window)
    failures = sum(total.num_fail_per_sec.get(second, 0) for second in window)
    return Measured(
        requests=total.num_requests,
        failures=total.num_failures,
        seconds=seconds,
        p50_ms=total.get_response_time_percentile(0.5),
        p95_ms=total.get_response_time_percentile(0.95),
        p99_ms=total.get_response_time_percentile(0.99),
        rps=answers / max(seconds, 1),
        goodput=(answers - failures) / max(seconds, 1),
    )
