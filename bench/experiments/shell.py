"""What the production shell costs: the app inside it, against the bare app under the same worker class."""

from __future__ import annotations

import json
import os
import shlex
from contextlib import ExitStack
from functools import partial

from bench import harness, target
from bench.harness import Comparison, Progress, Result, Variant
from bench.load import Request
from bench.processes import Bench, CannotRun
from bench.ratios import Goal

QUESTION = "How much more CPU does a request take with the whole shell around the app?"
ROUNDS = 18  # or as many as the variable ROUNDS says: with 60, in 15 minutes, a goal that is near is decided
# One worker, so that the load has a CPU of its own; these keep it busy.
CONNECTIONS = 32
GOALS = {"GET": Goal("at most", 1.12), "POST": Goal("at most", 1.08)}

# As nginx hands a request on.
FROM_NGINX = {
    "Host": "bench.test",
    "X-Request-ID": "0123456789abcdef0123456789abcdef",
    "X-Forwarded-For": "192.0.2.1",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Host": "bench.test",
}
ORDER = {
    "customer": {"name": "Ada Example", "email": "ada@example.com", "address": "1 Example Street, 12345 Example"},
    "lines": [{"sku": f"sku-{number}", "quantity": number + 1, "unit_price_cents": 1999} for number in range(10)],
    "note": "Please leave it with the neighbours. " * 8,
}
REQUESTS = (
    Request("GET", "/", FROM_NGINX),
    Request("POST", "/orders", FROM_NGINX | {"Content-Type": "application/json"}, json.dumps(ORDER), keyed=True),
)
DEMO = "app.demo.main:app"
SHELL, BARE = "the whole shell", "the bare app"


def requests() -> list[Request]:
    """Those that the app knows: an app of your own knows the first of PATHS."""
    own = target.given().module != DEMO
    return [target.asked(request) for request in REQUESTS[:1]] if own else list(REQUESTS)


def rounds() -> int:
    """Raises CannotRun where the variable is no number of them."""
    text = os.environ.get("ROUNDS", str(ROUNDS))
    if not text.isdecimal() or not int(text):
        raise CannotRun(f"ROUNDS={text}: it must be a whole number from 1 on, such as 60")
    return int(text)


def seconds() -> float:
    return harness.seconds_anew(variants=2, rounds=rounds(), requests=len(requests()))


def run(progress: Progress) -> Result:
    pairs = rounds()
    result = Result(notes=[f"{pairs} pairs of new processes (ROUNDS={pairs})"])
    starts = [partial(_started, name=name) for name in (SHELL, BARE)]
    of_all = harness.measure_anew(starts, requests(), pairs, CONNECTIONS, progress)
    for request, found in zip(requests(), of_all, strict=True):
        harness.add_rounds(result, request, found)
        ratio = harness.cpu_ratio(found[SHELL], found[BARE], "app")
        result.comparisons.append(
            Comparison(f"app CPU of a {request}, {SHELL} to {BARE}", ratio, GOALS[request.method])
        )
    return result


def _started(stack: ExitStack, name: str) -> Variant:
    bench = Bench(name.replace(" ", "-"), WORKERS="1")
    stack.enter_context(bench.own_folder())
    pid = stack.enter_context(bench.app(shlex.quote(bench.environ["APP_MODULE"]) if name == BARE else ""))
    return Variant(name, bench.app_url, {"app": pid})
