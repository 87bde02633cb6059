"""What it costs that answers wait in the app and not in nginx's files: one of 1 GB, to a client that reads fast."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench import cpu
from bench.experiments.download_app import SIZE
from bench.harness import Comparison, Progress, Result
from bench.processes import Bench, CannotRun
from bench.ratios import Goal, ratios

QUESTION = "How fast does an answer of 1 GB come through this stack, and through a plain app and proxy?"
ROUNDS = 15
GOAL = Goal("at least", 0.8)
APP = "bench.experiments.download_app:app"
PLAIN_CONF = Path(__file__).parent / "plain.conf.template"
OURS, SPOOLED, PLAIN = "this stack", "this stack with nginx's buffers and files", "a plain app and proxy"


def seconds() -> float:
    return 3 + ROUNDS * 3 * 0.9


def run(progress: Progress) -> Result:
    progress.step("starting the app and the proxies")
    ours, plain = Bench("download", APP_MODULE=APP), Bench("plain", APP_MODULE=APP)
    taken: dict[str, list[float]] = {OURS: [], SPOOLED: [], PLAIN: []}
    used: dict[str, list[float]] = {name: [] for name in taken}
    with ExitStack() as stack:
        for each in (ours, plain):
            stack.enter_context(each.own_folder())
        app, bare = stack.enter_context(ours.app()), stack.enter_context(plain.app(APP))
        nginx = stack.enter_context(ours.nginx())
        spooling, spooled_url = stack.enter_context(ours.changed_nginx("spooled", {"proxy_buffering off;\n": ""}))
        other, plain_url = stack.enter_context(plain.other_nginx(PLAIN_CONF))
        variants = {
            OURS: (ours.url, (app, nginx)),
            SPOOLED: (spooled_url, (app, spooling)),
            PLAIN: (plain_url, (bare, other)),
        }
        for number in range(ROUNDS):
            names = list(variants)
            turn = number % len(names)
            for name in [*names[turn:], *names[:turn]]:
                progress.step(f"round {number + 1} of {ROUNDS}: {name}")
                url, pids = variants[name]
                before = sum(map(cpu.tree_seconds, pids))
                taken[name].append(SIZE / 1e6 / download(int(url.rpartition(":")[2])))
                used[name].append(sum(map(cpu.tree_seconds, pids)) - before)
    result = Result()
    result.comparisons = [
        Comparison(f"throughput of 1 GB, {OURS} to {PLAIN}", ratios(taken[OURS], taken[PLAIN]), GOAL),
        Comparison(f"throughput of 1 GB, {OURS} to {SPOOLED}", ratios(taken[OURS], taken[SPOOLED])),
        Comparison(f"CPU of app and nginx for 1 GB, {OURS} to {SPOOLED}", ratios(used[OURS], used[SPOOLED])),
    ]
    result.rounds = dict(taken)
    result.details = [
        {"variant": name, "MB/s": f"{median(taken[name]):.0f}", "CPU s": f"{median(used[name]):.2f}"} for name in taken
    ]
    return result


def download(port: int) -> float:
    """The seconds that it takes. Raises CannotRun where less comes than there is."""
    buffer, begun, got = bytearray(1 << 20), time.perf_counter(), 0
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET /download HTTP/1.1\r\nHost: bench.test\r\nConnection: close\r\n\r\n")
        while count := connection.recv_into(buffer):
            got += count
    if not SIZE <= got < SIZE + 10_000:
        raise CannotRun(f"of an answer of {SIZE} bytes came {got}")
    return time.perf_counter() - begun
