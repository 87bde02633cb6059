"""The timeout budget: which row of .env must be shorter than which, and what a person sees when it is not."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor

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

    With `plus`, that row is added to `left`; with `each_worker`, `left` counts once for each of a replica's workers.
    `follows` is the side that is changed when the other one was: "left" or "right".
    """

    name: str
    left: str
    relation: str
    right: str
    symptom: str
    follows: str
    factor: float = 1.0
    plus: str = ""
    each_worker: bool = False

    def _sides(self, settings: Settings) -> tuple[float, float]:
        """Left and right in seconds (or tries), as they are compared."""
        left, right = (_in_seconds(settings, name) for name in (self.left, self.right))
        if self.plus:
            left += _in_seconds(settings, self.plus)
        if self.each_worker:
            left *= settings.workers
        return left, self.factor * right

    def broken_by(self, settings: Settings) -> str | None:
        """One line that names the rule, the values and the symptom; None where the rule holds."""
        if COMPARE[self.relation](*self._sides(settings)):
            return None
        plus = f" plus {_row(settings, self.plus)}" if self.plus else ""
        times = "" if self.factor == 1 else f"{self.factor:g} times "
        each = f" for each of WORKERS={settings.workers}" if self.each_worker else ""
        return (
            f"timeout budget, rule {self.name}: {_row(settings, self.left)}{plus}{each} must be {self.relation} "
            f"{times}{_row(settings, self.right)}, or else {self.symptom} (docs/timeouts.md)"
        )

    def mended(self, settings: Settings) -> Settings:
        """The settings with the row that follows changed as little as the rule wants, and some room."""
        left, right = self._sides(settings)
        row = self.left if self.follows == "left" else self.right
        if self.follows == "right":
            wanted = left / self.factor
        else:
            wanted = right / (settings.workers if self.each_worker else 1)
            wanted -= _in_seconds(settings, self.plus) if self.plus else 0
        wanted *= 1000 if row.endswith("_ms") else 1
        lower = (self.relation in ("less than", "at most")) == (self.follows == "left")
        whole = floor(wanted) if lower else ceil(wanted)
        if self.relation in ("less than", "more than"):
            step = 5 if row.endswith("_seconds") and wanted >= 10 else 1  # some room: what is cut needs time to end
            whole += -step if lower else step
        return settings.model_copy(update={row: whole})


RULES = (
    Rule(
        "deadline-before-proxy",
        "request_deadline_seconds",
        "less than",
        "proxy_read_timeout_seconds",
        "nginx answers 504 while the handler works on for nobody",
        "right",
    ),
    Rule(
        "ping-before-stall",
        "answer_stall_seconds",
        "at least",
        "event_stream_ping_seconds",
        "an event stream that only pings is cut in its silence",
        "left",
        factor=2,
    ),
    Rule(
        "stall-before-proxy",
        "answer_stall_seconds",
        "less than",
        "proxy_read_timeout_seconds",
        "nginx cuts an answer that stands still while the handler works on for nobody",
        "right",
    ),
    Rule(
        "proxy-closes-first",
        "upstream_keepalive_seconds",
        "less than",
        "app_keepalive_seconds",
        "a POST that reuses a connection the app is closing gets 502",
        "right",
    ),
    Rule(
        "drain-outlasts-idle",
        "upstream_keepalive_seconds",
        "less than",
        "drain_seconds",
        "POSTs get 502 whenever a worker is recycled, reloaded or stopped",
        "right",
    ),
    Rule(
        "drain-before-uvicorn",
        "drain_seconds",
        "less than",
        "uvicorn_graceful_seconds",
        "a stop cuts idle connections that nginx may still use, and POSTs get 502",
        "right",
    ),
    Rule(
        "uvicorn-before-gunicorn",
        "uvicorn_graceful_seconds",
        "less than",
        "gunicorn_graceful_seconds",
        "an open stream ends in SIGKILL and the application's lifespan never ends",
        "right",
    ),
    Rule(
        "deadline-within-stop",
        "request_deadline_seconds",
        "at most",
        "uvicorn_graceful_seconds",
        "a stop cuts a request that came on a connection nginx kept, and still had time",
        "right",
        plus="upstream_keepalive_seconds",
    ),
    Rule(
        "stop-within-replacement",
        "uvicorn_graceful_seconds",
        "at most",
        "replaced_worker_seconds",
        "a worker that is replaced has less time for its requests than one that is stopped",
        "right",
    ),
    Rule(
        "gunicorn-before-engine",
        "gunicorn_graceful_seconds",
        "less than",
        "stop_grace_seconds",
        "the engine kills the container in the middle of its drain",
        "right",
        plus="stop_delay_seconds",
    ),
    Rule(
        "timeout-above-block",
        "worker_timeout_seconds",
        "at least",
        "longest_block_seconds",
        "a busy worker is taken for a hung one and killed with every request it holds (WORKER TIMEOUT)",
        "left",
        factor=2,
    ),
    Rule(
        "timeout-above-deadline",
        "worker_timeout_seconds",
        "more than",
        "request_deadline_seconds",
        "Gunicorn kills a worker for one request that the deadline would have ended",
        "left",
    ),
    Rule(
        "connect-is-short",
        "proxy_connect_timeout_ms",
        "at most",
        "request_deadline_seconds",
        "one dead or frozen replica costs every request that tries it the whole wait",
        "left",
        factor=0.5,
    ),
    Rule(
        "retry-is-short",
        "proxy_next_upstream_timeout_ms",
        "at most",
        "request_deadline_seconds",
        "a request that blocks a worker is carried on to the next one and blocks that too",
        "left",
        factor=0.5,
    ),
    Rule(
        "connect-leaves-a-retry",
        "proxy_connect_timeout_ms",
        "less than",
        "proxy_next_upstream_timeout_ms",
        "a dead replica uses up the time in which another would have answered, and the client gets 504",
        "left",
        each_worker=True,
    ),
    Rule(
        "tries-reach-another-replica",
        "proxy_next_upstream_tries",
        "more than",
        "workers",
        "a request can meet only the sockets of one dead replica, and the client gets 503",
        "left",
    ),
    Rule(
        "proxy-stop-outlasts-answers",
        "request_deadline_seconds",
        "less than",
        "nginx_shutdown_seconds",
        "a reload or stop of nginx cuts a request that still had time",
        "right",
    ),
    Rule(
        "proxy-before-engine",
        "nginx_shutdown_seconds",
        "less than",
        "stop_grace_seconds",
        "the engine kills nginx while it still answers",
        "right",
    ),
    Rule(
        "ping-before-proxy",
        "websocket_ping_seconds",
        "less than",
        "proxy_read_timeout_seconds",
        "nginx cuts a WebSocket that has nothing to say",
        "left",
    ),
)


def violations(settings: Settings) -> list[str]:
    """A line for each rule that the settings break; then one with the rows that would hold, where there are such."""
    broken = [line for rule in RULES if (line := rule.broken_by(settings))]
    if broken and (rows := fitting(settings)):
        broken.append(f"these rows hold: {' '.join(f'{row}={value}' for row, value in rows.items())}")
    return broken


def fitting(settings: Settings) -> dict[str, int]:
    """The rows to change so that every rule holds, with their values: those that follow from what was changed.

    Empty where the rules hold, or where no change of such rows mends them.
    """
    found = settings
    for _ in range(len(RULES)):  # a row that was moved may move the next one
        for rule in RULES:
            if rule.broken_by(found):
                found = rule.mended(found)
    if any(rule.broken_by(found) for rule in RULES):
        return {}
    rows = {rule.left for rule in RULES} | {rule.right for rule in RULES}
    changed = {row: getattr(found, row) for row in type(settings).model_fields if row in rows}
    return {row.upper(): value for row, value in changed.items() if value != getattr(settings, row)}


def _in_seconds(settings: Settings, name: str) -> float:
    value: int = getattr(settings, name)
    return value / 1000 if name.endswith("_ms") else value


def _row(settings: Settings, name: str) -> str:
    return f"{name.upper()}={getattr(settings, name)}"
