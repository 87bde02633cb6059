"""What the page says of each of its parts: what it is, the rows of .env that govern it, the page of docs/ on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Part(NamedTuple):
    title: str
    text: str
    rows: tuple[str, ...]
    page: str  # in docs/


PARTS: dict[str, Part] = {
    "nginx": Part(
        "nginx",
        "The proxy. It takes every connection, waits for slow clients in the workers' stead, and gives each request to "
        "the worker that has least to do. A dot is a client's connection.",
        ("NGINX_WORKERS", "NGINX_WORKER_CONNECTIONS", "LISTEN_BACKLOG"),
        "architecture.md",
    ),
    "accepted": Part(
        "Accepted connections",
        "New connections in a second: each costs a handshake. Clients that keep theirs open save it.",
        ("LISTEN_BACKLOG", "NGINX_WORKER_CONNECTIONS"),
        "connections.md",
    ),
    "reading": Part(
        "Reading",
        "Connections on which a request has begun and its header is not whole yet. A client that takes longer is cut "
        "off, so that it does not hold a connection for good.",
        ("CLIENT_HEADER_TIMEOUT_SECONDS", "CLIENT_MAX_HEADER_BYTES"),
        "timeouts.md",
    ),
    "writing": Part(
        "Writing",
        "Requests in progress: their body comes, a worker works, or the answer goes out. One more than this limit "
        "gets 503 at once.",
        ("NGINX_MAX_REQUESTS_IN_FLIGHT", "CLIENT_MAX_REQUESTS_IN_FLIGHT", "CLIENT_SEND_TIMEOUT_SECONDS"),
        "limits.md",
    ),
    "waiting": Part(
        "Kept alive",
        "Idle connections that wait for the client's next request. nginx closes one after this time; a reload waits "
        "for the second row's seconds.",
        ("CLIENT_KEEPALIVE_SECONDS", "CLIENT_KEEPALIVE_MIN_SECONDS"),
        "connections.md",
    ),
    "replica": Part(
        "Replica",
        "One container of the app: a master and its workers. A deploy starts a new replica, waits until it is ready, "
        "and takes the old one away.",
        ("APP_REPLICAS", "WORKERS", "STOP_GRACE_SECONDS"),
        "zero-loss.md",
    ),
    "generation": Part(
        "Generation",
        "The workers that one reload has started. A new generation grows beside the old one; when all of it is ready, "
        "the old one drains: it finishes what it has, and takes nothing new.",
        ("APP_START_SECONDS", "DRAIN_SECONDS", "REPLACED_WORKER_SECONDS"),
        "zero-loss.md",
    ),
    "worker": Part(
        "Worker",
        "A process with one event loop that runs your app. A slot always has a worker: when one goes, the next stands "
        "ready first.",
        ("WORKERS", "MAX_REQUESTS", "MAX_REQUESTS_JITTER"),
        "architecture.md",
    ),
    "queue": Part(
        "Accept queue",
        "Connections that the kernel has made and this worker has not taken yet. It empties many times a second. It "
        "fills only when the event loop stands still; what is over its limit is refused.",
        ("LISTEN_BACKLOG", "WORKER_LISTENERS"),
        "connections.md",
    ),
    "in_flight": Part(
        "Requests in flight",
        "A dot is a request that this worker has and has not answered. Pale dots are places left: with none "
        "left at any worker, nginx answers 503 at once, and what is let in stays fast.",
        ("APP_MAX_REQUESTS_IN_FLIGHT", "REQUEST_DEADLINE_SECONDS"),
        "overload.md",
    ),
    "connections": Part(
        "Connections",
        "Connections from nginx to this worker. They are kept open: a new one for each request would cost the app "
        "half as much again. nginx closes an idle one first, so that no request meets a closed door.",
        ("UPSTREAM_KEEPALIVE_CONNECTIONS", "UPSTREAM_KEEPALIVE_SECONDS", "APP_KEEPALIVE_SECONDS"),
        "connections.md",
    ),
    "silence": Part(
        "Silence",
        "How long the event loop has not moved. Code that blocks it (a slow query, time.sleep) holds up every request "
        "of this worker. One that is silent for too long is killed and replaced.",
        ("LONGEST_BLOCK_SECONDS", "WORKER_TIMEOUT_SECONDS"),
        "symptoms.md",
    ),
    "threads": Part(
        "Thread pool",
        "Threads that run `def` handlers. When all are busy, the next such request waits.",
        ("REQUEST_DEADLINE_SECONDS",),
        "symptoms.md",
    ),
    "cpu": Part(
        "CPU",
        "Of one CPU, by this worker. At 100 % its event loop is full, and each request waits for the others.",
        ("APP_CPUS", "WORKERS"),
        "capacity.md",
    ),
    "memory": Part(
        "Memory",
        "A worker that holds more than this is replaced, before the kernel kills it.",
        ("WORKER_MEMORY_MB", "APP_MEMORY"),
        "limits.md",
    ),
    "streams": Part(
        "Streams and WebSockets",
        "Answers that last: event streams and WebSockets. Each keeps its place as long as it is open.",
        ("ANSWER_STALL_SECONDS", "EVENT_STREAM_PING_SECONDS", "WEBSOCKET_PING_SECONDS"),
        "timeouts.md",
    ),
    "answers": Part(
        "Answers, by who caused them",
        "Each request ends in one of these. The app's own answers come first; all others are nginx's.",
        ("SLO_ERROR_SHARE",),
        "logs-and-metrics.md",
    ),
    "served": Part(
        "Served",
        "Answers that the app meant to give (below 500), and nginx's own redirects.",
        ("SLO_MIN_RPS",),
        "logs-and-metrics.md",
    ),
    "refused": Part(
        "Refused",
        "More than there is room for: 503 where all places are taken, 429 where one client has too many. Refused at "
        "once, so that what was let in is answered in time.",
        ("APP_MAX_REQUESTS_IN_FLIGHT", "NGINX_MAX_REQUESTS_IN_FLIGHT", "CLIENT_MAX_REQUESTS_IN_FLIGHT"),
        "overload.md",
    ),
    "failed": Part(
        "Failed",
        "The app answered 500 or more, a worker was silent for too long (504), it was lost in the middle (502), or "
        "none could be reached (503).",
        ("PROXY_READ_TIMEOUT_SECONDS", "REQUEST_DEADLINE_SECONDS", "PROXY_NEXT_UPSTREAM_TRIES"),
        "symptoms.md",
    ),
    "client": Part(
        "The client's",
        "The client left before its answer (499), asked for an unknown host (421), sent too much (413), or something "
        "that is no request (400).",
        ("CLIENT_MAX_BODY_BYTES", "CLIENT_BODY_TIMEOUT_SECONDS", "SERVER_NAMES"),
        "symptoms.md",
    ),
    "throughput": Part(
        "Throughput",
        "Answers in each of the last two minutes' seconds.",
        ("SLO_MIN_RPS",),
        "capacity.md",
    ),
    "percentiles": Part(
        "Percentiles",
        "Of 100 requests, 50 (95, 99) were answered within this time, from the first byte that nginx read to the last "
        "that it wrote. Dashed: the objectives. Refusals and streams are left out.",
        ("SLO_P50_MS", "SLO_P95_MS", "SLO_P99_MS"),
        "loadtest.md",
    ),
}  # fmt: skip
# Every row that the page names, and those that it measures by.
ROWS = tuple(dict.fromkeys(row for part in PARTS.values() for row in part.rows))


def parts(rows: Mapping[str, str]) -> dict[str, object]:
    """The table for the page, each row with its value."""
    return {
        key: {
            "title": part.title,
            "text": part.text,
            "rows": {row: rows[row] for row in part.rows},
            "page": f"docs/{part.page}",
        }
        for key, part in PARTS.items()
    }
