"""The space budget: what clients can make nginx and the app hold, against the memory, files and threads there are.

Each rule is a sum of products of rows of .env, all of which clients can bring about at the same time, and the row that
it must fit into. docs/limits.md has the sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from app.server.settings import Settings

KIB, MIB = 1 << 10, 1 << 20
UNITS = {"k": KIB, "m": MIB, "g": 1 << 30}

# Bytes that no row says, measured and rounded up (proofs/test_space.py holds nginx to them).
# A client's connection without its header: nginx's structures and first buffers, the kernel's socket.
CONNECTION = 12 * KIB
# What TLS adds to it: a handshake that stands still, and a header that is not whole, hold the most.
TLS = 28 * KIB
# What HTTP/3 adds to that, from the first packet on.
QUIC = 60 * KIB
# A request without its header, body and answer: nginx's pool and the variables in it.
REQUEST = 12 * KIB
# An answer that is being compressed: zlib's window and hash (272 KiB), and gzip_buffers.
COMPRESSOR = 304 * KIB
# A process of nginx with its table of connections.
NGINX_PROCESS = 8 * MIB
# The rendered configuration, in the same place as the uploads.
NGINX_FILES = 4 * MIB
# nginx's lines for the live page: the volume `counts`.
COUNTS = 4 * MIB
# The kernel takes a whole packet while there is room for a byte.
PACKET = 64 * KIB
# A worker of the app in nginx's list, twice while the list changes.
SERVER = 4 * KIB
# The keys of as many small answers as fill 1 MiB of the cache.
CACHE_KEY = 64 * KIB
# Gunicorn's master, its observer, their boards in /dev/shm, and a health check.
MASTER = 48 * MIB
# A worker's pool of threads for `def` handlers, its event loop, and what its libraries start.
WORKER_THREADS = 48
# The master, its observer with a thread for each of its clients, health checks, and whoever looks into the container.
OTHER_PROCESSES = 16
# PostgreSQL keeps 3 for its superuser; a migration has one, and a person who looks.
OTHER_CONNECTIONS = 5


@dataclass(frozen=True)
class Derived:
    """A number that follows from several rows."""

    name: str
    of: Callable[[Settings], int]


def _places(settings: Settings, containers: int) -> int:
    """The requests that nginx gives the app at a time, in this number of containers."""
    most = settings.nginx_max_requests_in_flight
    places = settings.app_max_requests_in_flight * settings.workers * containers
    return min(places, most) if places else most


PLACES = Derived("places of a container", lambda settings: _places(settings, 1))
ALL_PLACES = Derived("places of all containers", lambda settings: _places(settings, settings.app_replicas))
WORKERS_AND_ONE = Derived("WORKERS + 1", lambda settings: settings.workers + 1)
TLS_CONNECTIONS = Derived(
    "connections with TLS",
    lambda settings: 0 if settings.tls == "off" else settings.nginx_workers * settings.nginx_worker_connections,
)
QUIC_CONNECTIONS = Derived(
    "connections with HTTP/3",
    lambda settings: TLS_CONNECTIONS.of(settings) if settings.http3 == "on" else 0,
)
# Shared memory for the keys (40-upstream.sh); the manager and the loader of the cache, before and after a reload.
CACHE_KEYS = Derived("CACHE_MB + 4", lambda settings: settings.cache_mb + 4 if settings.cache_mb else 0)
CACHE_PROCESSES = Derived("processes of the cache", lambda settings: 4 if settings.cache_mb else 0)
CACHE_PLACES = Derived(
    "answers on their way into the cache", lambda settings: ALL_PLACES.of(settings) if settings.cache_mb else 0
)
REPLICAS_AND_ONE = Derived("APP_REPLICAS + 1", lambda settings: settings.app_replicas + 1)

Factor = str | int | Derived


@dataclass(frozen=True)
class Term:
    """`what` is held: the product of `factors`, which are rows, numbers, or derived from rows."""

    what: str
    factors: tuple[Factor, ...]

    def value(self, settings: Settings) -> int:
        return prod(_value(settings, factor) for factor in self.factors)

    def shown(self, settings: Settings) -> str:
        """The product with the rows' names and values."""
        return " x ".join(_shown(settings, factor) for factor in self.factors) + f" ({self.what})"

    def formula(self) -> str:
        """The product with the rows' names."""
        names = (
            f.upper() if isinstance(f, str) else f.name if isinstance(f, Derived) else _size(f) for f in self.factors
        )
        return " x ".join(names)


@dataclass(frozen=True)
class Rule:
    """The sum of `terms` must be at most `limit`, a row; the symptom is what shows when it is more."""

    name: str
    terms: tuple[Term, ...]
    limit: str
    symptom: str
    remedy: str
    unless_zero: str = ""  # a row: without what it counts there is no rule

    def needed(self, settings: Settings) -> int:
        return sum(term.value(settings) for term in self.terms)

    def broken_by(self, settings: Settings) -> str | None:
        """One line that names the rule, the sum with its rows, the limit and the symptom; None where it holds."""
        needed = self.needed(settings)
        if self.unless_zero and not _value(settings, self.unless_zero):
            return None
        if needed <= _value(settings, self.limit):
            return None
        total = " + ".join(term.shown(settings) for term in self.terms)
        return (
            f"space budget, rule {self.name}: {total} is {self.amount(needed)} and must be at most "
            f"{_shown(settings, self.limit)}, or else {self.symptom}; {self.remedy} (docs/limits.md)"
        )

    def amount(self, number: int) -> str:
        """As the limit is written: in MiB, rounded up, where it is one of memory."""
        return f"{-(-number // MIB)}m" if self.limit.endswith(("_memory", "_tmp")) else str(number)


RULES = (
    Rule(
        "uploads-fit-nginx-files",
        (
            Term("uploads", ("nginx_max_uploads_in_flight", "client_max_body_bytes")),
            Term("the configuration", (NGINX_FILES,)),
            Term("the cache, and what comes before it is looked at again", (2, "cache_mb", MIB)),
        ),
        "nginx_tmp",
        "an upload that was let in fails in its middle",
        "lower NGINX_MAX_UPLOADS_IN_FLIGHT, CLIENT_MAX_BODY_BYTES or CACHE_MB, or raise NGINX_TMP and NGINX_MEMORY",
    ),
    Rule(
        "requests-fit-nginx-memory",
        (
            Term("files", ("nginx_tmp",)),
            Term("lines for the live page", (COUNTS,)),
            Term("processes, before and after a reload", (2, "nginx_workers", NGINX_PROCESS)),
            Term("their connections", (2, "nginx_workers", "nginx_worker_connections", CONNECTION)),
            Term("their TLS", (2, TLS_CONNECTIONS, TLS)),
            # A reload ends them.
            Term("their HTTP/3", (QUIC_CONNECTIONS, QUIC)),
            Term("headers", (2, "nginx_workers", "nginx_worker_connections", 2, "client_max_header_bytes")),
            Term("headers for the app", ("nginx_max_requests_in_flight", 2, "client_max_header_bytes")),
            Term("bodies", ("nginx_max_requests_in_flight", "client_body_buffer_bytes")),
            Term("uploads on their way to the app", ("nginx_max_uploads_in_flight", "client_body_buffer_bytes")),
            Term("answers, and a packet of each", ("nginx_max_requests_in_flight", 2, "proxy_buffer_bytes")),
            Term("its list of the app's workers", ("workers", REPLICAS_AND_ONE, SERVER)),
            Term("answers on their way into the cache", (CACHE_PLACES, 3, "proxy_buffer_bytes")),
            Term("the cache's keys", (CACHE_KEYS, CACHE_KEY)),
            Term("its processes", (CACHE_PROCESSES, NGINX_PROCESS)),
            Term("requests, and answers being compressed", ("nginx_max_requests_in_flight", REQUEST + COMPRESSOR)),
            Term("the kernel, for clients", ("nginx_max_requests_in_flight", 2, 2, "client_socket_buffer_bytes")),
            Term("the kernel, for the app", (ALL_PLACES, 2, "app_socket_buffer_bytes")),
        ),
        "nginx_memory",
        "the kernel kills a worker of nginx with everybody's requests",
        "lower NGINX_MAX_REQUESTS_IN_FLIGHT or NGINX_WORKER_CONNECTIONS, or raise NGINX_MEMORY",
    ),
    Rule(
        "requests-fit-nginx-connections",
        (
            Term("to the client and to the app", (2, "nginx_max_requests_in_flight")),
            Term("idle ones to the app", ("upstream_keepalive_connections",)),
        ),
        "nginx_worker_connections",
        "a worker of nginx closes connections that it has just accepted (worker_connections are not enough)",
        "lower NGINX_MAX_REQUESTS_IN_FLIGHT, or raise NGINX_WORKER_CONNECTIONS and NGINX_MEMORY",
    ),
    Rule(
        "workers-fit-nginx-pids",
        (Term("before and after a reload", (2, "nginx_workers")), Term("others", (OTHER_PROCESSES,))),
        "nginx_pids",
        "nginx cannot start its workers (fork() failed)",
        "lower NGINX_WORKERS, or raise NGINX_PIDS",
    ),
    Rule(
        "one-client-leaves-requests",
        (Term("one client", ("client_max_requests_in_flight",)), Term("another", (1,))),
        "nginx_max_requests_in_flight",
        "one client address keeps out all others",
        "lower CLIENT_MAX_REQUESTS_IN_FLIGHT",
    ),
    Rule(
        "one-client-leaves-uploads",
        (Term("one client", ("client_max_uploads_in_flight",)), Term("another", (1,))),
        "nginx_max_uploads_in_flight",
        "one client address keeps out the uploads of all others",
        "lower CLIENT_MAX_UPLOADS_IN_FLIGHT",
    ),
    Rule(
        "uploads-fit-app-files",
        (Term("uploads", ("nginx_max_uploads_in_flight", "client_max_body_bytes")),),
        "app_tmp",
        "an app that keeps uploads in files (Starlette does, over 1 MiB) finds its /tmp full",
        "lower NGINX_MAX_UPLOADS_IN_FLIGHT or CLIENT_MAX_BODY_BYTES, or raise APP_TMP and APP_MEMORY",
    ),
    Rule(
        "workers-fit-app-memory",
        (
            Term("files", ("app_tmp",)),
            Term("the master", (MASTER,)),
            Term("workers and a replacement", (WORKERS_AND_ONE, "worker_memory_mb", MIB)),
            Term("the kernel, for nginx", (PLACES, 2, "app_socket_buffer_bytes")),
            Term("a packet of each", (PLACES, PACKET)),
        ),
        "app_memory",
        "the kernel kills a worker before it is replaced",
        "lower WORKER_MEMORY_MB, or raise APP_MEMORY",
    ),
    Rule(
        "threads-fit-app-pids",
        (
            Term("a thread for each request, as in Django", (PLACES,)),
            Term("a worker's own, with a replacement's", (WORKERS_AND_ONE, WORKER_THREADS)),
            Term("others", (OTHER_PROCESSES,)),
        ),
        "app_pids",
        "the container can start neither a thread nor a process, not even a worker in the place of a dead one",
        "lower APP_MAX_REQUESTS_IN_FLIGHT or WORKERS, or raise APP_PIDS",
    ),
    Rule(
        "pools-fit-database",
        (
            Term(
                "pools of all workers, with a replacement and a deploy's replica",
                ("database_pool_size", WORKERS_AND_ONE, REPLICAS_AND_ONE),
            ),
            Term("others", (OTHER_CONNECTIONS,)),
        ),
        "database_max_connections",
        "a worker gets no connection (too many clients already), in the middle of a deploy first",
        "lower DATABASE_POOL_SIZE, or raise DATABASE_MAX_CONNECTIONS and the database's own max_connections",
        unless_zero="database_pool_size",
    ),
)


def violations(settings: Settings) -> list[str]:
    """A line for each rule that the settings break."""
    return [line for rule in RULES if (line := rule.broken_by(settings))]


def _value(settings: Settings, factor: Factor) -> int:
    """In bytes where it is memory."""
    if isinstance(factor, int):
        return factor
    if isinstance(factor, Derived):
        return factor.of(settings)
    value: int | str = getattr(settings, factor)
    return value if isinstance(value, int) else int(value[:-1]) * UNITS[value[-1]]


def _shown(settings: Settings, factor: Factor) -> str:
    if isinstance(factor, int):
        return _size(factor)
    if isinstance(factor, Derived):
        return f"({factor.name})={factor.of(settings)}"
    return f"{factor.upper()}={getattr(settings, factor)}"


def _size(number: int) -> str:
    return next(
        (f"{number // size}{unit}" for unit, size in (("m", MIB), ("k", KIB)) if number % size == 0), f"{number}"
    )
