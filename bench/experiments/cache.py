"""What an answer costs that nginx keeps (CACHE_MB), beside the same answer from the app."""

from __future__ import annotations

from contextlib import ExitStack

from bench import harness
from bench.harness import Comparison, Progress, Result, Variant
from bench.load import Request
from bench.processes import Bench
from bench.ratios import Figures, Goal

QUESTION = (
    "How much more does nginx answer from its cache than the app answers through it, and what is left to the app?"
)
ROUNDS = 6
CONNECTIONS = 64
KEPT, ASKED = "from nginx's cache", "from the app"
REQUEST = Request("GET", "/page", {"Host": "bench.test"})
ROWS = {
    "APP_MODULE": "bench.experiments.cache_app:app",
    "CACHE_MB": "16",
    "CACHE_PATHS": "/page",
    "NGINX_TMP": "200m",
    "STATIC_ROOT": "",
}


def seconds() -> float:
    return 6 + harness.seconds(variants=2, rounds=ROUNDS)


def run(progress: Progress) -> Result:
    progress.step("starting the app and nginx, with the cache and without")
    bench, result = Bench("cache", **ROWS), Result()
    with ExitStack() as stack:
        stack.enter_context(bench.own_folder())
        app = stack.enter_context(bench.app())
        nginx = stack.enter_context(bench.nginx())
        plain, url = stack.enter_context(bench.changed_nginx("plain", {"proxy_cache $stack_cache;": ""}))
        variants = [Variant(KEPT, bench.url, {"app": app, "nginx": nginx}),
                    Variant(ASKED, url, {"app": app, "nginx": plain})]  # fmt: skip
        found = harness.measure(variants, REQUEST, ROUNDS, CONNECTIONS, progress)
    harness.add_rounds(result, REQUEST, found)
    kept, asked = found[KEPT], found[ASKED]
    shares = [mine.cpu_us["app"] / its.cpu_us["app"] for mine, its in zip(kept, asked, strict=True)]
    result.comparisons = [
        Comparison(f"throughput, {KEPT} to {ASKED}", harness.throughput_ratio(kept, asked), Goal("at least", 3)),
        Comparison(f"app CPU per request, {KEPT} to {ASKED}", Figures(tuple(shares)), Goal("at most", 0.02)),
        Comparison(f"nginx CPU per request, {KEPT} to {ASKED}", harness.cpu_ratio(kept, asked, "nginx")),
    ]
    return result
