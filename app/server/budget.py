"""The timeout budget: which row of .env must be shorter than which, and what a person sees when it is not."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

from app.server.settings import Settings

COMPARE: dict[str, Callable[[float, float], bool]] = {
    "less than": operator.lt,
    "at most": operator.le,
    "more than": operator.gt,
    "at least": operator.ge,
}


@dataclass(frozen=True)
class Rule:
    """`left` must stand in `relation` to `factor` times `right`; the symptom is what shows when it does not.

    With `each_worker`, `left` counts once for each of a replica's workers.
    """

    name: str
    left: str
    relation: str
    right: str
    symptom: str
    factor: float = 1.0
    each_worker: bool = False

    def broken_by(self, settings: Settings) -> str | None:
        """One line that names the rule, both values and the symptom; None where the rule holds."""
        left, right = (_in_seconds(settings, name) for name in (self.left, self.right))
        if self.each_worker:
            left *= settings.workers
        if COMPARE[self.relation](left, self.factor * right):
            return None
        times = "" if self.factor == 1 else f"{self.factor:g} times "
        each = f" for each of WORKERS={settings.workers}" if self.each_worker else ""
        return (
            f"timeout budget, rule {self.name}: {_row(settings, self.left)}{each} must be {self.relation} "
            f"{times}{_row(settings, self.right)}, or else {self.symptom} (docs/timeouts.md)"
        )


RULES = (
    Rule(
        "deadline-before-proxy",
        "request_deadline_seconds",
        "less than",
        "proxy_read_timeout_seconds",
        "nginx answers 504 while the handler works on for nobody",
    ),
    Rule(
        "proxy-closes-first",
        "upstream_keepalive_seconds",
        "less than",
        "app_keepalive_seconds",
        "a POST that reuses a connection the app is closing gets 502",
    ),
    Rule(
        "drain-outlasts-idle",
        "upstream_keepalive_seconds",
        "less than",
        "drain_seconds",
        "POSTs get 502 whenever a worker is recycled, reloaded or stopped",
    ),
    Rule(
        "drain-before-uvicorn",
        "drain_seconds",
        "less than",
        "uvicorn_graceful_seconds",
        "a stop cuts idle connections that nginx may still use, and POSTs get 502",
    ),
    Rule(
        "uvicorn-before-gunicorn",
        "uvicorn_graceful_seconds",
        "less than",
        "gunicorn_graceful_seconds",
        "an open stream ends in SIGKILL and the application's lifespan never ends",
    ),
    Rule(
        "deadline-within-stop",
        "request_deadline_seconds",
        "at most",
        "uvicorn_graceful_seconds",
        "a stop cuts a request that still had time",
    ),
    Rule(
        "gunicorn-before-engine",
        "gunicorn_graceful_seconds",
        "less than",
        "stop_grace_seconds",
        "the engine kills the container in the middle of its drain",
    ),
    Rule(
        "timeout-above-block",
        "worker_timeout_seconds",
        "at least",
        "longest_block_seconds",
        "a busy worker is taken for a hung one and killed with every request it holds (WORKER TIMEOUT)",
        factor=2,
    ),
    Rule(
        "timeout-above-deadline",
        "worker_timeout_seconds",
        "more than",
        "request_deadline_seconds",
        "Gunicorn kills a worker for one request that the deadline would have ended",
    ),
    Rule(
        "connect-is-short",
        "proxy_connect_timeout_ms",
        "at most",
        "request_deadline_seconds",
        "one dead or frozen replica costs every request that tries it the whole wait",
        factor=0.5,
    ),
    Rule(
        "retry-is-short",
        "proxy_next_upstream_timeout_ms",
        "at most",
        "request_deadline_seconds",
        "a request that blocks a worker is carried on to the next one and blocks that too",
        factor=0.5,
    ),
    Rule(
        "connect-leaves-a-retry",
        "proxy_connect_timeout_ms",
        "less than",
        "proxy_next_upstream_timeout_ms",
        "a dead replica uses up the time in which another would have answered, and the client gets 504",
        each_worker=True,
    ),
    Rule(
        "tries-reach-another-replica",
        "proxy_next_upstream_tries",
        "more than",
        "workers",
        "a request can meet only the sockets of one dead replica, and the client gets 503",
    ),
    Rule(
        "proxy-stop-outlasts-answers",
        "proxy_read_timeout_seconds",
        "less than",
        "nginx_shutdown_seconds",
        "a reload or stop of nginx cuts a request that still had time",
    ),
    Rule(
        "proxy-before-engine",
        "nginx_shutdown_seconds",
        "less than",
        "stop_grace_seconds",
        "the engine kills nginx while it still answers",
    ),
    Rule(
        "ping-before-proxy",
        "websocket_ping_seconds",
        "less than",
        "proxy_read_timeout_seconds",
        "nginx cuts a WebSocket that has nothing to say",
    ),
)


def violations(settings: Settings) -> list[str]:
    """A line for each rule that the settings break."""
    return [line for rule in RULES if (line := rule.broken_by(settings))]


def _in_seconds(settings: Settings, name: str) -> float:
    value: int = getattr(settings, name)
    return value / 1000 if name.endswith("_ms") else value


def _row(settings: Settings, name: str) -> str:
    return f"{name.upper()}={getattr(settings, name)}"
