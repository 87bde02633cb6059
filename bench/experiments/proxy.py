"""What the proxy's configuration is worth: the stack's own, against the one of the tutorials, before the same app."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from bench import harness, target
from bench.harness import Comparison, Progress, Result, Variant
from bench.load import Request
from bench.processes import Bench
from bench.ratios import Goal

QUESTION = "How much more does the same app answer through this nginx configuration than through a tutorial's?"
ROUNDS = 8
CONNECTIONS = 64
GOAL = Goal("at least", 1.4)

TUTORIAL = Path(__file__).parent / "tutorial.conf.template"
OURS, THEIRS = "this configuration", "the tutorial's"
# The app echoes both: without them each proxy would hand on an answer of its own.
REQUEST = Request("GET", "/", {"Host": "bench.test", "X-Request-ID": "0123456789abcdef0123456789abcdef"})


def seconds() -> float:
    return 6 + harness.seconds(variants=2, rounds=ROUNDS)


def run(progress: Progress) -> Result:
    progress.step("starting the app and the proxy, twice")
    bench = Bench("ours")
    # A tutorial's one address reaches all workers through the one socket that they share.
    other = Bench("tutorial", WORKER_LISTENERS="shared")
    result, request = Result(), target.asked(REQUEST)
    with ExitStack() as stack:
        for each in (bench, other):
            stack.enter_context(each.own_folder())
        ours = {"app": stack.enter_context(bench.app()), "nginx": stack.enter_context(bench.nginx())}
        app = stack.enter_context(other.app())
        nginx, url = stack.enter_context(other.other_nginx(TUTORIAL))
        variants = [Variant(OURS, bench.url, ours), Variant(THEIRS, url, {"app": app, "nginx": nginx})]
        found = harness.measure(variants, request, ROUNDS, CONNECTIONS, progress)
    harness.add_rounds(result, request, found)
    mine, base = found[OURS], found[THEIRS]
    result.comparisons = [
        Comparison(f"throughput, {OURS} to {THEIRS}", harness.throughput_ratio(mine, base), GOAL),
        Comparison(f"app CPU per request, {OURS} to {THEIRS}", harness.cpu_ratio(mine, base, "app")),
        Comparison(f"nginx CPU per request, {OURS} to {THEIRS}", harness.cpu_ratio(mine, base, "nginx")),
    ]
    return result
