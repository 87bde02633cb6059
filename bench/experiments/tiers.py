"""What stands around the app: nothing but its server, a tutorial's nginx, the stack's own, and one thing changed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from bench import harness, target
from bench.experiments.proxy import REQUEST, TUTORIAL
from bench.harness import Comparison, Progress, Result, Round, Variant
from bench.processes import Bench, CannotRun
from bench.ratios import Goal, ratios
from bench.servers import SERVERS

QUESTION = (
    "How much does the same app answer, and at what CPU, bare under uvicorn --workers, in the shell with no proxy, "
    "through a tutorial's nginx, and through the stack's own: as it is, over Unix sockets, and with another access log?"
)
ROUNDS = 8
CONNECTIONS = 64

OURS, STRAIGHT, THEIRS = "this configuration", "no proxy", "the tutorial's"
BARE = "uvicorn --workers"  # what a user would run instead
NO_SHELL = "no proxy, no shell"
ONE_SOCKET = "one socket for all workers"
# Of the issue that asked for production at the price of the bare server.
GOAL_STRAIGHT, GOAL_ALL = Goal("at most", 1.12), Goal("at most", 1.6)
UNIX = "Unix sockets"
NO_LOG, PLAIN, UNBUFFERED = "no access log", "a plain log", "an unbuffered log"
LOG = " stack buffer=32k flush=1s;"  # how the line of this configuration ends
LOGS = {NO_LOG: "access_log off;", PLAIN: " combined buffer=32k flush=1s;", UNBUFFERED: " stack;"}


def seconds() -> float:
    return 15 + harness.seconds(variants=7 + len(LOGS), rounds=ROUNDS)


def run(progress: Progress) -> Result:
    result, request = Result(), target.asked(REQUEST)
    with ExitStack() as stack:
        progress.step("starting the app and the proxies")
        variants = _variants(stack, result)
        found = harness.measure(variants, request, ROUNDS, CONNECTIONS, progress)
    harness.add_rounds(result, request, found)
    _compare_with_bare(result, found)
    _add_prices(result, found)
    base = found[OURS]
    others = [name for name in found if name != OURS]
    for name in others:
        ratio = harness.throughput_ratio(found[name], base)
        result.comparisons.append(Comparison(f"throughput, {name} to {OURS}", ratio))
    for tier in ("app", "nginx"):
        for name in others:
            if tier in found[name][0].cpu_us:
                ratio = harness.cpu_ratio(found[name], base, tier)
                result.comparisons.append(Comparison(f"{tier} CPU per request, {name} to {OURS}", ratio))
    return result


def _compare_with_bare(result: Result, found: Mapping[str, Sequence[Round]]) -> None:
    bare = found[BARE]
    both = [sum(each.cpu_us.values()) for each in found[OURS]]
    alone = [each.cpu_us["app"] for each in bare]
    result.comparisons += [
        Comparison(f"CPU of all tiers per request, {OURS} to {BARE}", ratios(both, alone), GOAL_ALL),
        Comparison(
            f"app CPU per request, {STRAIGHT} to {BARE}", harness.cpu_ratio(found[STRAIGHT], bare, "app"), GOAL_STRAIGHT
        ),
    ]


def _add_prices(result: Result, found: Mapping[str, Sequence[Round]]) -> None:
    """What each promise costs; those of the shell one by one are in `layers`."""
    for promise, with_it, without, *tiers in (
        ("the worker: it drains, is replaced, accepts by itself", NO_SHELL, BARE, "app"),
        ("the shell: request id, deadline, metrics, log of faults", STRAIGHT, NO_SHELL, "app"),
        ("the proxy: limits, slow clients, other chances, its log", OURS, STRAIGHT, "app", "nginx"),
        ("its share in the app: more headers, fewer requests at a time", OURS, STRAIGHT, "app"),
        ("a socket for each worker", OURS, ONE_SOCKET, "app", "nginx"),
        ("the access log", OURS, NO_LOG, "nginx"),
    ):
        harness.add_price(result, promise, found[with_it], found[without], *tiers)


def _variants(stack: ExitStack, result: Result) -> list[Variant]:
    ours = Bench("tiers")
    # One address for all workers: a tutorial's proxy knows no more, and neither does a client without a proxy.
    shared = Bench("tiers-shared", WORKER_LISTENERS="shared")
    bare, alone = Bench("tiers-bare"), Bench("tiers-alone", WORKER_LISTENERS="shared")
    module = alone.environ["APP_MODULE"]
    for bench in (ours, shared, bare, alone):
        stack.enter_context(bench.own_folder())
    app, other = stack.enter_context(ours.app()), stack.enter_context(shared.app())
    nginx, url = stack.enter_context(shared.other_nginx(TUTORIAL))
    variants = [
        Variant(OURS, ours.url, {"app": app, "nginx": stack.enter_context(ours.nginx())}),
        Variant(BARE, bare.app_url, {"app": stack.enter_context(bare.other_app(_bare_command(bare)))}),
        Variant(NO_SHELL, alone.app_url, {"app": stack.enter_context(alone.app(shlex.quote(module)))}),
        Variant(STRAIGHT, shared.app_url, {"app": other}),
        Variant(ONE_SOCKET, shared.url, {"app": other, "nginx": stack.enter_context(shared.nginx())}),
        Variant(THEIRS, url, {"app": other, "nginx": nginx}),
    ]
    for name, log in LOGS.items():
        before = f"access_log {ours.environ['NGINX_ACCESS_LOG']}{LOG}" if name == NO_LOG else LOG
        nginx, url = stack.enter_context(ours.changed_nginx(name.replace(" ", "-"), {before: log}))
        variants.append(Variant(name, url, {"app": app, "nginx": nginx}))
    try:
        variants.append(_over_unix_sockets(stack))
    except CannotRun as error:
        result.unavailable.append(f"{UNIX}: {error}")
    return variants


def _bare_command(bench: Bench) -> str:
    """The app under Uvicorn with its own options, as its documentation starts it: without the shell."""
    (uvicorn,) = [server for server in SERVERS if server.name == BARE]
    module = bench.environ["APP_MODULE"]
    application = f"--factory {module.removesuffix('()')}" if module.endswith("()") else module
    return uvicorn.line(bench.app_port, int(bench.environ["WORKERS"]), uvicorn.longest, application)


def _over_unix_sockets(stack: ExitStack) -> Variant:
    bench = Bench("tiers-unix")
    stack.enter_context(bench.own_folder())
    port, workers = int(bench.environ["APP_PORT"]), int(bench.environ["WORKERS"])
    listeners = workers if bench.environ["WORKER_LISTENERS"] == "per-worker" else 1
    paths = {f"127.0.0.1:{port + i} ": f"unix:{bench.folder}/app-{i}.sock" for i in range(listeners)}
    # A client on a Unix socket has no address that could be trusted: nginx is whoever may open the socket.
    binds = " ".join(f"--bind {path}" for path in paths.values())
    app = stack.enter_context(bench.app(f"--forwarded-allow-ips '*' {binds}", module="bench.unix_server"))
    changes = {f"server {address}": f"server {path} " for address, path in paths.items()}
    nginx, url = stack.enter_context(bench.changed_nginx("unix", changes))
    return Variant(UNIX, url, {"app": app, "nginx": nginx})
