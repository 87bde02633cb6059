"""The gate: which runs count as met, as missed, and as not measured at all."""

from dataclasses import replace
from typing import Any

import pytest

from loadtest.objectives import COULD_NOT_RUN, MET, MISSED, Measured, Objectives, evaluate, verdict
from loadtest.settings import read

OBJECTIVES = Objectives(p50_ms=50, p95_ms=200, p99_ms=500, error_share=0.01, min_rps=100, rate=None)
GOOD = Measured(requests=3000, failures=0, seconds=10, p50_ms=9, p95_ms=30, p99_ms=80, rps=300, goodput=300)


def status(measured: Measured, objectives: Objectives = OBJECTIVES, saturated: bool = False, *problems: str) -> int:
    return verdict(measured, evaluate(measured, objectives), list(problems), saturated)[0]


def test_a_run_within_all_objectives_is_met() -> None:
    assert status(GOOD) == MET


def test_a_figure_equal_to_its_limit_is_met() -> None:
    assert status(replace(GOOD, p50_ms=50, p95_ms=200, p99_ms=500, failures=30, goodput=100)) == MET


@pytest.mark.parametrize(
    ("worse", "objective"),
    [
        ({"p50_ms": 51}, "p50"),
        ({"p95_ms": 201}, "p95"),
        ({"p99_ms": 501}, "p99"),
        ({"failures": 31}, "error share"),
        ({"goodput": 99}, "throughput, right answers"),
    ],
)
def test_each_objective_alone_can_fail_the_run_and_is_named(worse: dict[str, Any], objective: str) -> None:
    measured = replace(GOOD, **worse)
    code, line = verdict(measured, evaluate(measured, OBJECTIVES), [], False)
    assert (code, line) == (MISSED, f"missed: {objective}")


# A stricter row than what was measured, one at a time.
ROWS = {
    "SLO_P50_MS": ("8", "p50"),
    "SLO_P95_MS": ("29", "p95"),
    "SLO_P99_MS": ("79", "p99"),
    "SLO_ERROR_SHARE": ("0.009", "error share"),
    "SLO_MIN_RPS": ("301", "throughput, right answers"),
}
EASY = {
    "LOCUST_HOST": "http://nginx",
    "LOADTEST_MODULE": "loadtest.demo",
    "LOADTEST_SHAPE": "closed",
    "LOADTEST_USERS": "8",
    "LOADTEST_RATE": "30",
    "LOADTEST_SECONDS": "10",
    "LOADTEST_WARMUP_SECONDS": "0",
    "LOADTEST_PROCESSES": "1",
    "SLO_P50_MS": "5000",
    "SLO_P95_MS": "5000",
    "SLO_P99_MS": "5000",
    "SLO_ERROR_SHARE": "1",
    "SLO_MIN_RPS": "1",
}


@pytest.mark.parametrize("row", ROWS)
def test_the_row_of_an_objective_decides_the_exit_status(row: str) -> None:
    strict, objective = ROWS[row]
    measured = replace(GOOD, failures=30)
    assert verdict(measured, evaluate(measured, read(EASY).objectives), [], False)[0] == MET
    code, line = verdict(measured, evaluate(measured, read(EASY | {row: strict}).objectives), [], False)
    assert (code, line) == (MISSED, f"missed: {objective}"), f"{row}={strict}, which was missed: status {code}, {line}"


def test_slow_but_successful_is_missed() -> None:
    assert status(replace(GOOD, p50_ms=2000, p95_ms=3000, p99_ms=3000)) == MISSED


def test_a_server_that_refuses_fast_does_not_meet_the_throughput() -> None:
    assert status(replace(GOOD, failures=2990, goodput=1), replace(OBJECTIVES, error_share=1)) == MISSED


def test_a_run_without_requests_is_not_a_success() -> None:
    nothing = Measured(requests=0, failures=0, seconds=10, p50_ms=0, p95_ms=0, p99_ms=0, rps=0, goodput=0)
    assert status(nothing, replace(OBJECTIVES, min_rps=0)) == COULD_NOT_RUN


def test_a_lost_worker_is_not_a_success_however_good_the_figures() -> None:
    assert status(GOOD, OBJECTIVES, False, "worker process 1 of Locust was lost") == COULD_NOT_RUN


def test_a_rate_that_was_not_achieved_is_missed() -> None:
    objectives = replace(OBJECTIVES, rate=320)
    assert status(replace(GOOD, rps=305), objectives) == MET
    assert status(replace(GOOD, rps=300), objectives) == MISSED


def test_a_closed_loop_has_no_intended_rate() -> None:
    assert len(evaluate(GOOD, OBJECTIVES)) == 5


def test_objectives_missed_by_a_saturated_generator_say_nothing_about_the_server() -> None:
    assert status(replace(GOOD, p99_ms=501), saturated=True) == COULD_NOT_RUN


def test_objectives_met_by_a_saturated_generator_are_met() -> None:
    assert status(GOOD, saturated=True) == MET
