"""What was asked of a run, what was measured, and the exit status that follows. Pure functions, no Locust."""

from dataclasses import dataclass

MET, MISSED, COULD_NOT_RUN = 0, 1, 2

# Below this share of the intended arrival rate the latencies describe another, lighter load than the one asked for:
# users that wait for a stalled server send nothing, and the stall hides itself (coordinated omission).
ACHIEVED_RATE_SHARE = 0.95


@dataclass(frozen=True)
class Objectives:
    """Limits of one run. `rate` is the intended arrival rate in requests per second, None for a closed loop."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    error_share: float
    min_rps: float
    rate: int | None


@dataclass(frozen=True)
class Measured:
    """Figures of the measured seconds, warm-up excluded. Percentiles are Locust's, to two digits, failures included.

    `rps` counts all answers per second, `goodput` the right ones only: a server that refuses fast is not fast.
    """

    requests: int
    failures: int
    seconds: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    rps: float
    goodput: float


@dataclass(frozen=True)
class Row:
    """One line of the table: what was wanted (`<=` or `>=` the limit), what was measured, whether it is met."""

    objective: str
    measured: float
    sign: str
    limit: float
    unit: str
    met: bool


def evaluate(measured: Measured, objectives: Objectives) -> list[Row]:
    """Compare each objective with what was measured; the achieved arrival rate only where one was intended."""
    rows = [
        _at_most("p50", measured.p50_ms, objectives.p50_ms, "ms"),
        _at_most("p95", measured.p95_ms, objectives.p95_ms, "ms"),
        _at_most("p99", measured.p99_ms, objectives.p99_ms, "ms"),
        _at_most("error share", measured.failures / max(measured.requests, 1), objectives.error_share, ""),
        _at_least("throughput, right answers", measured.goodput, objectives.min_rps, "/s"),
    ]
    if objectives.rate is not None:
        rows.append(_at_least("achieved / intended rate", measured.rps / objectives.rate, ACHIEVED_RATE_SHARE, ""))
    return rows


def verdict(measured: Measured, rows: list[Row], problems: list[str], saturated: bool) -> tuple[int, str]:
    """The exit status and its reason in one line.

    A saturated generator makes every figure look worse, never better: objectives met stay met, but objectives
    missed say nothing about the server, so the run counts as one that could not measure.
    """
    if problems:
        return COULD_NOT_RUN, f"could not run: {'; '.join(problems)}"
    if measured.requests == 0:
        return COULD_NOT_RUN, "could not run: not one request was answered, so nothing was measured"
    missed = ", ".join(row.objective for row in rows if not row.met)
    if missed and saturated:
        return (COULD_NOT_RUN, f"could not measure: the load generator was the bottleneck while {missed} missed")
    if missed:
        return MISSED, f"missed: {missed}"
    return MET, "all objectives met"


def _at_most(objective: str, measured: float, limit: float, unit: str) -> Row:
    return Row(objective, measured, "<=", limit, unit, measured <= limit)


def _at_least(objective: str, measured: float, limit: float, unit: str) -> Row:
    return Row(objective, measured, ">=", limit, unit, measured >= limit)
