"""A node of a swarm: what nginx's list of all nodes costs it, and how many nodes one balancer carries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from bench import harness, target
from bench.experiments.proxy import REQUEST
from bench.harness import NEW_WARM_UP_SECONDS, SLICE_SECONDS, SLICES, Comparison, Progress, Result, Variant
from bench.processes import Bench, CannotRun, free_ports, process
from bench.ratios import Goal, ratios
from stack import debian
from stack.console import answers
from stack.settings import ROOT

QUESTION = (
    "How much more CPU does nginx take with the node's own app first and all nodes' apps as backup, and how much does "
    "the balancer before the nodes take?"
)
ROUNDS, BALANCER_ROUNDS = 12, 3
CONNECTIONS = 64
NODES = 3
BALANCER = ROOT / "examples/cluster/haproxy.cfg"
OURS, BASE, BALANCED = "the list of a node", "that of one machine", "a node behind the balancer"
GOAL = Goal("at most", 1.02)
START_SECONDS = 10


def seconds() -> float:
    each = 0.5 + NEW_WARM_UP_SECONDS + SLICES * (SLICE_SECONDS + 0.1)
    return 3 + 2 * ROUNDS * each + harness.seconds(variants=1, rounds=BALANCER_ROUNDS)


def run(progress: Progress) -> Result:
    result, request = Result(), target.asked(REQUEST)
    bench = Bench("swarm", WORKER_LISTENERS="per-worker", STICKY_SESSIONS="none")
    bench.environ["APP_HOST"] = "0.0.0.0"
    with ExitStack() as stack:
        progress.step("starting the app")
        stack.enter_context(bench.own_folder())
        app = stack.enter_context(bench.app())
        starts = [partial(_started, bench=bench, app=app, name=name) for name in (OURS, BASE)]
        (found,) = harness.measure_anew(starts, [request], ROUNDS, CONNECTIONS, progress)
        if program := debian.found("haproxy"):
            node = _started(stack, bench, app, OURS)
            url, balancer = stack.enter_context(_balancer(bench, program, node.url))
            balanced = Variant(BALANCED, url, {**node.tiers, "balancer": balancer})
            found |= harness.measure([balanced], request, BALANCER_ROUNDS, CONNECTIONS, progress)
        else:
            result.unavailable.append(f"{BALANCED}: no HAProxy is installed (sudo apt-get install haproxy)")
    harness.add_rounds(result, request, found)
    costs = harness.cpu_ratio(found[OURS], found[BASE], "nginx")
    result.comparisons.append(Comparison(f"nginx CPU per request, {OURS} to {BASE}", costs, GOAL))
    if rounds := found.get(BALANCED):
        of_node = [each.cpu_us["nginx"] + each.cpu_us["app"] for each in rounds]
        nodes = ratios(of_node, [each.cpu_us["balancer"] for each in rounds])
        result.comparisons.append(Comparison("CPU per request, nginx and the app to the balancer", nodes))
    return result


def _started(stack: ExitStack, bench: Bench, app: int, name: str) -> Variant:
    """nginx with the list of this name. The other nodes' apps are this one, by other addresses of loopback."""
    here, others = bench.environ["UPSTREAM_HOST"], "127.0.1.1"
    given: dict[str, str] = {}
    changes = {}
    if name == OURS:
        given = {"UPSTREAM_HERE": here, "UPSTREAM_HOST": others}
        # On a swarm this one name leads to all nodes.
        places, port = int(bench.environ["APP_MAX_REQUESTS_IN_FLIGHT"]), int(bench.environ["APP_PORT"])
        for listener in range(int(bench.environ["WORKERS"])):
            line = f"server {others}:{port + listener} max_conns={places} max_fails=0 backup;"
            changes[line] = "\n    ".join(line.replace(others, f"127.0.1.{node}") for node in range(1, NODES + 1))
    nginx, url = stack.enter_context(bench.changed_nginx(name.replace(" ", "-"), changes, given))
    return Variant(name, url, {"app": app, "nginx": nginx})


@contextmanager
def _balancer(bench: Bench, program: str, url: str) -> Iterator[tuple[str, int]]:
    """HAProxy with the example's configuration before one node; its URL and its pid."""
    port = free_ports(1)[0]
    text = BALANCER.read_text()
    for before, after in (("bind :80", f"bind 127.0.0.1:{port}"), ("192.0.2.1:80", url.removeprefix("http://"))):
        if before not in text:
            raise CannotRun(f"{BALANCER} has no {before!r}")
        text = text.replace(before, after)
    file = bench.folder / "haproxy.cfg"
    file.write_text("".join(line for line in text.splitlines(keepends=True) if "192.0.2." not in line))
    ready = partial(answers, f"http://127.0.0.1:{port}/")
    command = f"exec {program} -db -f {file}"
    with process(command, {}, bench.folder / "haproxy.log", ready, START_SECONDS, START_SECONDS) as pid:
        yield f"http://127.0.0.1:{port}", pid
