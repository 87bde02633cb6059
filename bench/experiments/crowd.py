"""What clients cost that stay: idle connections, WebSockets and event streams, and a word to all of them."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median

from bench import cpu, idle_load, memory
from bench.experiments.growth import ROWS, add_rows, keep
from bench.harness import Comparison, Progress, Result
from bench.processes import Bench, CannotRun
from bench.ratios import Figures, Goal

QUESTION = "What do clients cost that stay, in memory and CPU, and a word to all of them?"
IDLE = (1000, 5000, 15_000)
OPEN = (500, 5000)
BROADCASTS = 5
QUIET_SECONDS = 5
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: bench.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OTAxMjM0NQ==\r\n\r\n"
)
STREAM = b"GET /events HTTP/1.1\r\nHost: bench.test\r\n\r\n"


def seconds() -> float:
    return 120


def run(progress: Progress) -> Result:
    result = Result()
    for part in (_idle, _open):
        try:
            part(result, progress)
        except CannotRun as failure:
            result.unavailable.append(f"{part.__name__.strip('_')}: {failure}")
    return result


def _idle(result: Result, progress: Progress) -> None:
    most = idle_load.allow(IDLE[-1])
    values = {}
    for count in IDLE:
        progress.step(f"{min(count, most)} idle clients")
        with _holder() as (bench, app, nginx):
            before = memory.tree_bytes(nginx)
            with idle_load.held(bench.http_port, min(count, most)):
                kilobytes = (memory.tree_bytes(nginx) - before) / min(count, most) / 1000
                used, begun = cpu.tree_seconds(nginx) + cpu.tree_seconds(app), time.monotonic()
                time.sleep(2)
                busy = (cpu.tree_seconds(nginx) + cpu.tree_seconds(app) - used) / (time.monotonic() - begun)
        values[min(count, most)] = {"kB each in nginx": kilobytes, "CPUs of both, all idle": busy}
    add_rows(result, "idle clients", values)
    keep(result, "idle clients", "kB each", "nginx", {n: each["kB each in nginx"] for n, each in values.items()})


@contextmanager
def _holder() -> Iterator[tuple[Bench, int, int]]:
    with ExitStack() as stack:
        bench = Bench("holder", **ROWS)
        bench.environ["NGINX_WORKER_CONNECTIONS"] = "40000"
        bench.environ["WEBSOCKET_PING_SECONDS"] = "20"
        stack.enter_context(bench.own_folder())
        app, nginx = stack.enter_context(bench.app()), stack.enter_context(bench.nginx())
        yield bench, app, nginx


def _open(result: Result, progress: Progress) -> None:
    most = idle_load.allow(OPEN[-1])
    for what, request, success in (
        ("WebSockets", UPGRADE, b"HTTP/1.1 101"),
        ("WebSockets without a framework", UPGRADE.replace(b"/ws", b"/raw"), b"HTTP/1.1 101"),
        ("event streams", STREAM, b"HTTP/1.1 200"),
    ):
        values = {}
        for wanted in OPEN:
            count = min(wanted, most)
            progress.step(f"{count} {what}")
            with _holder() as (bench, app, nginx), idle_load.held(bench.http_port, 100, request, success):
                time.sleep(1)  # what the first ones have the process load is not theirs
                before = memory.tree_bytes(app), memory.tree_bytes(nginx)
                with idle_load.held(bench.http_port, count, request, success) as clients:
                    holding = memory.tree_bytes(app), memory.tree_bytes(nginx)
                    used, begun = (cpu.tree_seconds(app), cpu.tree_seconds(nginx)), time.monotonic()
                    time.sleep(QUIET_SECONDS)
                    idle = cpu.tree_seconds(app) - used[0], cpu.tree_seconds(nginx) - used[1]
                    elapsed = time.monotonic() - begun
                    used = cpu.tree_seconds(app), cpu.tree_seconds(nginx)
                    times = []
                    for _ in range(BROADCASTS):
                        times.append(_broadcast(bench))
                        for client in clients:
                            idle_load.drain(client)
                    told = cpu.tree_seconds(app) - used[0], cpu.tree_seconds(nginx) - used[1]
            each = BROADCASTS * (count + 100)
            values[count] = {
                "kB each in the app": (holding[0] - before[0]) / count / 1000,
                "kB each in nginx": (holding[1] - before[1]) / count / 1000,
                "CPUs of the app, all idle": idle[0] / elapsed,
                "CPUs of nginx, all idle": idle[1] / elapsed,
                "ms for a word to all": median(times) * 1000,
                "app CPU us each": told[0] / each * 1e6,
                "nginx CPU us each": told[1] / each * 1e6,
            }
        add_rows(result, what, values)
        for tier in ("the app", "nginx"):
            by_size = {n: each[f"kB each in {tier}"] for n, each in values.items()}
            keep(result, f"open {what}", "kB each", tier, by_size)
        if "WebSockets" in what:
            held = Figures(tuple(each["kB each in the app"] for each in values.values()))
            name = f"memory in the app, idle {what}"
            result.comparisons.append(Comparison(name, held, Goal("at most", 25), unit="kB"))


def _broadcast(bench: Bench) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", bench.app_port, timeout=60)
    connection.request("POST", "/broadcast")
    found: float = json.loads(connection.getresponse().read())["seconds"]
    connection.close()
    return found
