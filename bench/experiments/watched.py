"""What the observer, the live service and nginx's lines for it take, while a page watches and Prometheus scrapes."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench import cpu, harness, memory, target
from bench.experiments.proxy import REQUEST
from bench.harness import Comparison, Progress, Result, Variant
from bench.processes import Bench, CannotRun
from bench.ratios import Figures, Goal

QUESTION = (
    "What do the observer and the live service take while a page watches, all metrics are scraped each second, and 100 "
    "requests come in a second? And what do the lines for them cost nginx under full load?"
)
ROUNDS = 3
ROUND_SECONDS = 4.0
REQUESTS_IN_A_SECOND = 100
COUNTED, UNCOUNTED = "the live page's counts", "none"
COUNTS = " count buffer=16k flush=250ms;"  # how the line ends that writes them
NGINX_ROUNDS = 16
CONNECTIONS = 64
GOALS = {"MB": Goal("at most", 40), "CPU": Goal("at most", 2), "nginx": Goal("at most", 1.05)}


def seconds() -> float:
    return ROUNDS * ROUND_SECONDS + 5 + harness.seconds_anew(variants=2, rounds=NGINX_ROUNDS)


def run(progress: Progress) -> Result:
    result = Result()
    with ExitStack() as stack:
        progress.step("starting app, nginx and the live service")
        bench = Bench("watched")
        stack.enter_context(bench.own_folder())
        app = stack.enter_context(bench.app())
        observer = _observer(app)
        stack.enter_context(bench.nginx())
        live = stack.enter_context(bench.live())
        for repeated in (_scrape(bench), _watch(bench)):
            stack.enter_context(_repeating(repeated))
        _both(result, progress, bench, observer, live)
        _lines(result, progress, bench, app)
    return result


def _both(result: Result, progress: Progress, bench: Bench, observer: int, live: int) -> None:
    with _repeating(_load(bench)):
        time.sleep(2)  # until all have begun
        held, used = [], []
        for number in range(ROUNDS):
            progress.step(f"round {number + 1} of {ROUNDS}")
            before, begun = [cpu.tree_seconds(pid) for pid in (observer, live)], time.monotonic()
            time.sleep(ROUND_SECONDS)
            took = time.monotonic() - begun
            shares = [
                100 * (cpu.tree_seconds(pid) - was) / took for pid, was in zip((observer, live), before, strict=True)
            ]
            megabytes = [memory.tree_bytes(pid) / 1e6 for pid in (observer, live)]
            held.append(sum(megabytes))
            used.append(sum(shares))
            for name, mb, share in zip(("the observer", "the live service"), megabytes, shares, strict=True):
                row = {"round": str(number + 1), "process": name, "MB (PSS)": f"{mb:.1f}", "% of a CPU": f"{share:.2f}"}
                result.details.append(row)
    result.comparisons.append(Comparison("memory (PSS) of both together", Figures(tuple(held)), GOALS["MB"], "MB"))
    result.comparisons.append(Comparison("CPU of both together", Figures(tuple(used)), GOALS["CPU"], "% of a CPU"))
    result.rounds = {"MB": held, "% of a CPU": used}


def _lines(result: Result, progress: Progress, bench: Bench, app: int) -> None:
    """nginx that writes a line for each request, which the live service reads meanwhile, and nginx that writes none."""
    line = f"access_log {bench.environ['NGINX_COUNTS']}{COUNTS}"
    changes: dict[str, dict[str, str]] = {COUNTED: {}, UNCOUNTED: {line: ""}}

    def started(stack: ExitStack, name: str) -> Variant:
        nginx, url = stack.enter_context(bench.changed_nginx(name.split()[-1], changes[name]))
        return Variant(name, url, {"app": app, "nginx": nginx})

    request = target.asked(REQUEST)
    starts = [partial(started, name=name) for name in changes]
    (found,) = harness.measure_anew(starts, [request], NGINX_ROUNDS, CONNECTIONS, progress)
    harness.add_rounds(result, request, found)
    costs = harness.cpu_ratio(found[COUNTED], found[UNCOUNTED], "nginx")
    result.comparisons.append(Comparison(f"nginx CPU per request, {COUNTED} to {UNCOUNTED}", costs, GOALS["nginx"]))
    harness.add_price(result, COUNTED, found[COUNTED], found[UNCOUNTED], "nginx")


def _observer(master: int) -> int:
    """The pid of this master's observer."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        for child in Path(f"/proc/{master}/task/{master}/children").read_text().split():
            if "app.server.observer" in Path(f"/proc/{child}/cmdline").read_text():
                return int(child)
        time.sleep(0.1)
    raise CannotRun("the master has started no observer")


def _load(bench: Bench) -> Iterator[float]:
    """A request at each step, by one connection. It gives the seconds to the next."""
    connection = http.client.HTTPConnection("127.0.0.1", bench.http_port)
    while True:
        connection.request("GET", target.given().paths[0])
        connection.getresponse().read()
        yield 1 / REQUESTS_IN_A_SECOND


def _scrape(bench: Bench) -> Iterator[float]:
    while True:
        with urllib.request.urlopen(f"{bench.live_url}/metrics", timeout=10) as answer:
            answer.read()
        yield 1


def _watch(bench: Bench) -> Iterator[float]:
    with urllib.request.urlopen(f"{bench.live_url}/events", timeout=10) as page:
        while page.readline():
            yield 0


@contextmanager
def _repeating(steps: Iterator[float]) -> Iterator[None]:
    """Take the steps in a thread. Raises CannotRun where one failed."""
    over = threading.Event()
    failed: list[Exception] = []

    def repeat() -> None:
        try:
            for pause in steps:
                if over.wait(pause):
                    return
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(15)
    if failed:
        raise CannotRun(f"what watches has failed: {failed[0]}")
