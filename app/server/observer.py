"""`python -m app.server.observer`: says what the workers do, also while all of them are blocked.

A process of its own, which the master starts and starts again (account.py). It knows nothing of the application, and
asks no worker for anything: it reads their boards, /proc, and the kernel's accept queues.

    GET /metrics    the Prometheus text format (docs/metrics.md)
    GET /state      JSON, as the class State has it: for a page that shows what happens

Its port is the one before APP_PORT.
"""

from __future__ import annotations

import json
import os
import resource
import socketserver
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from app.server import accept_queues
from app.server.account import HEARTBEAT, MASTER
from app.server.board import Board
from app.server.metrics import (
    EXIT_REASONS,
    METRICS,
    RELOAD_RESULTS,
    STATES,
    answered,
    duration_buckets,
    text,
)

SAMPLE_SECONDS = 0.2  # between two looks at the accept queues
MAX_SECONDS = 60.0  # app_worker_accept_queue_max is the longest of this time
CLIENT_SECONDS = 5.0  # for a client that sends nothing, or does not read
SHOWN_STATES = STATES[: STATES.index("left")]
LONGEST_LINE = 8192
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


COUNTED = {metric.name: metric for metric in METRICS if metric.kind != "gauge"}
# By metric and labels: one number, or what a histogram has.
Samples = dict[str, dict[tuple[str, ...], list[float]]]


class Threads(TypedDict):
    """Of the pool for `def` endpoints."""

    busy: int
    limit: int
    waiting: int


class WorkerNow(TypedDict):
    """A worker process that lives. Counts are since its own start."""

    slot: int
    generation: int
    state: str  # starting, ready, draining, finishing
    in_flight: int
    limit: int  # of requests in flight; 0: none
    queue: int  # connections that wait to be accepted, at the slot's socket
    queue_limit: int
    connections: int
    accepted: int
    silence_seconds: float  # since the event loop moved; 0 while it starts
    threads: Threads
    memory_bytes: int
    cpu_seconds: float
    descriptors: int  # open
    descriptors_limit: int
    requests: int  # answered


class State(TypedDict):
    generation: int  # the one that serves; 0: none yet
    wanted: int
    reloads: dict[str, int]
    workers: list[WorkerNow]
    streams: int
    websockets: int
    exits: dict[str, int]


class Process:
    """What the kernel says of a worker; `alive` is False where the one that wrote the board is gone."""

    def __init__(self, board: Board) -> None:
        pid = int(board.get("pid"))
        self.alive, self.cpu_seconds, self.memory_bytes = False, 0.0, 0
        self.descriptors, self.descriptors_limit = 0, 0
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            self.alive = bool(pid) and float(fields[19]) == board.get("started") and fields[0] != "Z"
            if self.alive:
                self.descriptors_limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
                self.cpu_seconds = (int(fields[11]) + int(fields[12])) / TICKS
                self.memory_bytes = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
                self.descriptors = len(os.listdir(f"/proc/{pid}/fd"))


class Observer:
    """Reads the boards of one master. Its methods are called from several threads."""

    def __init__(self, folder: Path, rows: Mapping[str, str]) -> None:
        self.folder = folder
        self.buckets = duration_buckets(rows)
        self.first_port = int(rows["APP_PORT"])
        self.shared = rows["WORKER_LISTENERS"] == "shared"
        self.limit = int(rows["APP_MAX_REQUESTS_IN_FLIGHT"])
        self.memory_limit = int(rows["WORKER_MEMORY_MB"]) << 20
        self.lock = threading.Lock()
        self.boards: dict[str, Board] = {}
        self.queues: dict[int, accept_queues.AcceptQueue] = {}
        self.seen: deque[dict[int, int]] = deque(maxlen=int(MAX_SECONDS / SAMPLE_SECONDS))

    # --- what there is --------------------------------------------------------------------------------------

    def sample(self) -> None:
        """Look at the accept queues, and remember."""
        with self.lock:
            self._look()
            self.seen.append({port: queue.waiting for port, queue in self.queues.items()})

    def _look(self) -> None:
        self.queues = {}
        with suppress(OSError):  # a kernel that does not tell; all else is told
            self.queues = accept_queues.read()

    def _read(self) -> tuple[Board, list[Board]]:
        """The master's board, and those of the workers."""
        for name in os.listdir(self.folder):
            if name not in self.boards:
                self.boards[name] = Board(self.folder / name)
        for board in self.boards.values():
            board.learn()
        return self.boards[MASTER], [board for name, board in self.boards.items() if name != MASTER]

    def _port(self, slot: int) -> int:
        return self.first_port if self.shared else self.first_port + slot

    # --- what is said of it ---------------------------------------------------------------------------------

    def state(self) -> State:
        with self.lock:
            self._look()
            master, boards = self._read()
            living = [(board, process) for board in boards if (process := Process(board)).alive]
            return {
                "generation": int(master.get("generation")),
                "wanted": int(master.get("wanted")),
                "reloads": {result: int(master.get("app_reloads", result)) for result in RELOAD_RESULTS},
                "workers": sorted(
                    (self._worker(board, process) for board, process in living),
                    key=lambda worker: (worker["slot"], worker["generation"]),
                ),
                "streams": sum(int(board.get("http_streams_open")) for board, _ in living),
                "websockets": sum(int(board.get("websocket_connections")) for board, _ in living),
                "exits": {reason: int(master.get("app_worker_exits", reason)) for reason in EXIT_REASONS},
            }

    def _worker(self, board: Board, process: Process) -> WorkerNow:
        slot, heartbeat = int(board.get("slot")), board.get("heartbeat")
        queue = self.queues.get(self._port(slot), accept_queues.AcceptQueue(0, 0, 0))
        return {
            "slot": slot,
            "generation": int(board.get("generation")),
            "state": SHOWN_STATES[min(int(board.get("state")), len(SHOWN_STATES) - 1)],
            "in_flight": int(board.get("http_requests_in_flight")),
            "limit": self.limit,
            "queue": queue.waiting,
            "queue_limit": queue.limit,
            "connections": int(board.get("connections")),
            "accepted": int(board.get("app_worker_connections_accepted") - board.get("accepted before")),
            "silence_seconds": round(max(0.0, time.monotonic() - heartbeat), 3) if heartbeat else 0.0,
            "threads": {
                "busy": int(board.get("threads busy")),
                "limit": int(board.get("threads limit")),
                "waiting": int(board.get("threads waiting")),
            },
            "memory_bytes": process.memory_bytes,
            "cpu_seconds": process.cpu_seconds,
            "descriptors": process.descriptors,
            "descriptors_limit": process.descriptors_limit,
            "requests": int(answered(board) - board.get("answered before")),
        }

    def metrics(self) -> str:
        state = self.state()
        with self.lock:
            master, boards = self._read()
            samples: Samples = {metric.name: {} for metric in METRICS}
            for board in [master, *boards]:
                add_counts(samples, board)
            for board in boards:
                worker, process = (_label(board),), Process(board)
                cpu = samples["app_worker_cpu_seconds"]
                cpu[worker][0] += max(process.cpu_seconds, board.get("cpu seconds"))
            samples |= {name: {(): [value]} for name, value in self._single(state).items()}
            samples["app_workers"] = {(name,): [0.0] for name in SHOWN_STATES}
            for now in state["workers"]:
                samples["app_workers"][now["state"],][0] += 1
            for slot in {*range(state["wanted"]), *(now["slot"] for now in state["workers"])}:
                for name, value in _of_slot([now for now in state["workers"] if now["slot"] == slot]).items():
                    samples[name][str(slot),] = [value]
            for slot in range(1 if self.shared else state["wanted"]):
                for name, value in self._of_queue(self._port(slot)).items():
                    samples[name]["all" if self.shared else str(slot),] = [value]
        return text(samples, self.buckets)

    def _single(self, state: State) -> dict[str, float]:
        return {
            "http_requests_in_flight_limit": self.limit,
            "http_streams_open": state["streams"],
            "websocket_connections": state["websockets"],
            "app_worker_memory_limit_bytes": self.memory_limit,
            "app_workers_wanted": state["wanted"],
            "app_generation": state["generation"],
        }

    def _of_queue(self, port: int) -> dict[str, float]:
        """Nothing where nobody listens."""
        if (queue := self.queues.get(port)) is None:
            return {}
        return {
            "app_worker_accept_queue": queue.waiting,
            "app_worker_accept_queue_max": max(queue.waiting, *(seen.get(port, 0) for seen in self.seen), 0),
            "app_worker_accept_queue_limit": queue.limit,
            "app_listen_overflows": queue.dropped,
        }


def _of_slot(workers: list[WorkerNow]) -> dict[str, float]:
    """In a reload a slot has two processes: what each has a limit for is that of the one nearer to it."""
    found: dict[str, float] = {
        "http_requests_in_flight": sum(now["in_flight"] for now in workers),
        "app_worker_connections": sum(now["connections"] for now in workers),
        "app_worker_threads_busy": sum(now["threads"]["busy"] for now in workers),
        "app_worker_threads_limit": sum(now["threads"]["limit"] for now in workers),
        "app_worker_threads_waiting": sum(now["threads"]["waiting"] for now in workers),
    }
    if workers:
        found |= {
            "app_worker_loop_silence_seconds": max(now["silence_seconds"] for now in workers),
            "app_worker_memory_bytes": max(now["memory_bytes"] for now in workers),
            "app_worker_descriptors": max(now["descriptors"] for now in workers),
            "app_worker_descriptors_limit": min(now["descriptors_limit"] for now in workers),
        }
    return found


def add_counts(samples: Samples, board: Board) -> None:
    """What this board has of counters and histograms. Those by worker are named on it without their label."""
    for (name, *labels), cells in board.cells.items():
        if (metric := COUNTED.get(name)) is not None:
            key = (_label(board),) if metric.labels == ("worker",) else tuple(labels)
            values = board.values[cells.start : cells.stop].tolist()
            before = samples[name].get(key, [0.0] * len(values))
            samples[name][key] = [a + b for a, b in zip(before, values, strict=True)]


def _label(board: Board) -> str:
    return f"{board.get('slot'):.0f}"


class Handler(socketserver.StreamRequestHandler):
    """HTTP/1.1, a GET at a time on a connection that stays open. http.server would take twice the memory."""

    timeout = CLIENT_SECONDS
    observer: Observer

    def handle(self) -> None:
        with suppress(OSError):
            while self._answer():
                pass

    def _answer(self) -> bool:
        """Whether another request may follow."""
        line = self.rfile.readline(LONGEST_LINE)
        while (header := self.rfile.readline(LONGEST_LINE)) not in (b"\r\n", b"\n", b""):
            if not header.endswith(b"\n"):
                return False
        method, _, rest = line.partition(b" ")
        path, _, version = rest.strip().partition(b" ")
        if not version.startswith(b"HTTP/1."):
            return False
        kind, body = "text/plain", "not found\n"
        status = "200 OK"
        if path == b"/metrics":
            kind, body = CONTENT_TYPE, self.observer.metrics()
        elif path == b"/state":
            kind, body = "application/json", json.dumps(self.observer.state(), separators=(",", ":"))
        else:
            status = "404 Not Found"
        if method != b"GET":
            status, body = "405 Method Not Allowed", "GET alone\n"
        sent = body.encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(sent)}\r\n\r\n"
        self.wfile.write(head.encode() + sent)
        return status == "200 OK" and version != b"HTTP/1.0"


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 16


def main() -> None:
    master, folder = int(sys.argv[1]), Path(os.environ["METRICS_DIR"])
    Handler.observer = observer = Observer(folder, os.environ)
    address = (os.environ["APP_HOST"], int(os.environ["APP_PORT"]) - 1)
    try:
        server = Server(address, Handler)
    except OSError as error:
        sys.exit(f"observer: cannot listen at {address[0]}:{address[1]}: {error.strerror}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pulse = Board(folder / MASTER)
    heartbeat = pulse.cell(HEARTBEAT)
    while os.getppid() == master:
        observer.sample()
        pulse.values[heartbeat] = time.monotonic()
        time.sleep(SAMPLE_SECONDS)


if __name__ == "__main__":
    main()
