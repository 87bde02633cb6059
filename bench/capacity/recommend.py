"""Rows of .env from what was measured, each with its reason. Pure functions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from app.server import space
from stack.settings import ROOT, StackSettings

# A smaller number of workers is as good when it bears this share of the best.
AS_GOOD = 0.95
# The load for which a stack should be sized, as a share of the highest.
USUAL = 0.7
# The least that .env's rule for APP_MAX_REQUESTS_IN_FLIGHT allows.
LEAST_PLACES = 4


@dataclass(frozen=True)
class Measured:
    """The highest rate that so many workers bear, and at it how many requests are under way; the p99 at USUAL of it."""

    workers: int
    rate: float
    under_way: float
    most_under_way: int
    usual_p99_ms: float


@dataclass(frozen=True)
class Pool:
    """A size of each worker's pool of database connections: the p99 with it at AS_GOOD of the rate, and whether the
    objectives held there.
    """

    size: int
    p99_ms: float
    held: bool


@dataclass(frozen=True)
class Recommendation:
    row: str
    now: str
    value: str
    why: str

    @property
    def changes(self) -> bool:
        return self.now != self.value


def best(found: Sequence[Measured]) -> Measured:
    """The fewest workers that bear about as much as the best: each further one costs memory and takes turns."""
    most = max(each.rate for each in found)
    return min((each for each in found if each.rate >= AS_GOOD * most), key=lambda each: each.workers)


def pool_fits(settings: StackSettings, workers: int, size: int) -> bool:
    """Whether this DATABASE_POOL_SIZE fits into DATABASE_MAX_CONNECTIONS with this many workers."""
    (rule,) = (rule for rule in space.RULES if rule.limit == "database_max_connections")
    return not rule.broken_by(settings.model_copy(update={"workers": workers, "database_pool_size": size}))


def fitting(settings: StackSettings, workers: int) -> dict[str, str]:
    """The rows that the timeout budget ties to the number of workers, where they have to change with it."""
    changed = {}
    longest = (settings.proxy_next_upstream_timeout_ms - 1) // workers
    if settings.proxy_connect_timeout_ms > longest:
        changed["PROXY_CONNECT_TIMEOUT_MS"] = str(longest)
    if settings.proxy_next_upstream_tries <= workers:
        changed["PROXY_NEXT_UPSTREAM_TRIES"] = str(workers + 1)
    return changed


def places(measured: Measured) -> int:
    """Requests that one worker may have under way: by Little's law, those of which the last still has the usual p99."""
    return max(LEAST_PLACES, ceil(measured.usual_p99_ms / 1000 * measured.rate / measured.workers))


def descriptors(limit: int) -> int:
    """How many one process of nginx may have open here: its own limit, and the machine's."""
    asked = re.search(r"^worker_rlimit_nofile (\d+);", (ROOT / "nginx/templates/nginx.conf.template").read_text(), re.M)
    return min(limit, int(asked[1])) if asked else limit


def recommend(
    settings: StackSettings,
    table: Mapping[str, str],
    found: Sequence[Measured],
    descriptors: int,
    times: int = 1,
    pools: Sequence[Pool] = (),
) -> list[Recommendation]:
    """All rows that follow from what was measured, those that are right already among them.

    `times` the requests in flight that follow, where those have turned out to be too few. `pools` are smaller than the
    one of the settings.
    """
    chosen = best(found)
    rates = ", ".join(f"{each.workers}: {each.rate:.0f}/s" for each in sorted(found, key=lambda each: each.workers))
    rows = [("WORKERS", str(chosen.workers), f"requests a second by number of workers: {rates}")]
    tied = fitting(settings, chosen.workers)
    rows += [(row, value, f"the timeout budget, for {chosen.workers} workers") for row, value in tied.items()]
    if settings.app_cpus < chosen.workers:
        rows.append(("APP_CPUS", f"{chosen.workers:.1f}", "a CPU for each worker"))
    if settings.database_pool_size:
        size = min((pool.size for pool in pools if pool.held), default=settings.database_pool_size)
        tried = "".join(f"; {pool.size}: p99 {pool.p99_ms:.0f} ms" for pool in pools)
        why = f"the smallest that was tried and bears {AS_GOOD:.0%} of the rate{tried}"
        rows.append(("DATABASE_POOL_SIZE", str(size), why))
    each = times * places(chosen)
    rows.append(
        (
            "APP_MAX_REQUESTS_IN_FLIGHT",
            str(each),
            f"the p99 at {USUAL:.0%} load, {chosen.usual_p99_ms:.0f} ms, x {chosen.rate / chosen.workers:.0f}/s of one "
            f"worker; at least {LEAST_PLACES}{f'; times {times}: with fewer some were refused' if times > 1 else ''}",
        )
    )
    under_way = max(each * chosen.workers, chosen.most_under_way)
    kept = min(1024, max(16, 16 * ceil(under_way / 16)))
    rows.append(("UPSTREAM_KEEPALIVE_CONNECTIONS", str(kept), f"at most {under_way} requests are under way"))
    needed = 2 * max(under_way, settings.nginx_max_requests_in_flight) + kept
    connections = settings.nginx_worker_connections
    if connections < needed or connections > descriptors:
        connections = min(descriptors, 1024 * ceil(needed / 1024))
    rows.append(
        (
            "NGINX_WORKER_CONNECTIONS",
            str(connections),
            f"2 for each of {under_way} requests, {max(0, connections - 2 * under_way)} for clients that are idle; "
            f"{descriptors} descriptors",
        )
    )
    chosen_settings = settings.model_copy(
        update={row.lower(): type(getattr(settings, row.lower()))(value) for row, value, _ in rows}
    )
    rows += [
        (rule.limit.upper(), rule.amount(rule.needed(chosen_settings)), f"the space budget, rule {rule.name}")
        for rule in space.RULES
        if rule.limit != "nginx_worker_connections" and rule.broken_by(chosen_settings)
    ]
    return [Recommendation(row, table[row], value, why) for row, value, why in rows if row in table]


def with_rows(text: str, rows: Mapping[str, str]) -> str:
    """The text of an .env with other values in these rows, and nothing else changed. Raises KeyError without a row."""
    for row, value in rows.items():
        text, times = re.subn(rf"^{row}=.*$", f"{row}={value}", text, flags=re.M)
        if not times:
            raise KeyError(row)
    return text


def diff(before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), ".env", ".env", "before", "after", 0, "")
    return "\n".join(lines)
