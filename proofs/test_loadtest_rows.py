"""What the rows LOADTEST_* change in a run, as the server under load and the report see it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proofs.test_loadtest_run import Stack, finish, serving, start, summary

RATE = 20


@dataclass
class Run:
    """What is left of a run: its summary, and how many requests the server got in all and at one time."""

    summary: dict[str, Any]
    requests: int
    most_in_flight: int


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    yield from serving()


def run(stack: Stack, folder: Path, **rows: str) -> Run:
    # Slow enough that users meet, and each user's next request comes later than those of the others.
    stack.delay_seconds = 0.4
    stack.paths.clear()
    stack.most_in_flight = 0
    _, output = finish(start(folder, stack.url, **rows))
    assert "report:" in output, output
    return Run(summary(folder), len(stack.paths), stack.most_in_flight)


@pytest.fixture(scope="module")
def closed(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Run:
    rows = {"LOADTEST_USERS": "3", "LOADTEST_SECONDS": "2", "LOADTEST_WARMUP_SECONDS": "4", "LOADTEST_PROCESSES": "2"}
    return run(stack, tmp_path_factory.mktemp("closed"), LOADTEST_SHAPE="closed", **rows)


@pytest.fixture(scope="module")
def rate(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Run:
    rows = {"LOADTEST_RATE": str(RATE), "LOADTEST_USERS": "1", "LOADTEST_SECONDS": "6", "LOADTEST_WARMUP_SECONDS": "1"}
    return run(stack, tmp_path_factory.mktemp("rate"), LOADTEST_SHAPE="rate", **rows)


MODULE = """
from locust import task
from loadtest.base import BaseUser

class Visitor(BaseUser):
    abstract = True

    @task
    def one_of_mine(self) -> None:
        self.call("GET", "/mine")
"""


def test_the_requests_are_those_of_the_module_that_the_row_names(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    rows = {"LOADTEST_USERS": "3", "LOADTEST_SECONDS": "2", "LOADTEST_WARMUP_SECONDS": "0", "LOADTEST_MODULE": "mine"}
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    ran = run(stack, tmp_path / "reports", PYTHONPATH=path, LOADTEST_SHAPE="closed", **rows)
    asked = set(stack.paths) - {"/"}
    assert asked == {"/mine"}, f"{asked} were asked for, LOADTEST_MODULE has /mine alone"
    assert ran.summary["measured"]["requests"] > 0


def test_a_closed_loop_has_as_many_requests_at_a_time_as_users(closed: Run) -> None:
    assert closed.most_in_flight == 3, f"{closed.most_in_flight} requests at a time, LOADTEST_USERS is 3"


def test_as_many_seconds_are_measured_as_the_row_says(closed: Run) -> None:
    seconds = closed.summary["measured"]["seconds"]
    assert seconds == 2, f"{seconds} s were measured, LOADTEST_SECONDS is 2"


def test_the_warmup_is_not_counted(closed: Run) -> None:
    counted = closed.summary["measured"]["requests"]
    # Without a warm-up only those are not counted that are under way at the end, which are 3 of about 15.
    assert counted < 0.55 * closed.requests, (
        f"{counted} of {closed.requests} requests counted, two of three in the warm-up"
    )


def test_as_many_processes_make_the_load_as_the_row_says(closed: Run) -> None:
    workers = [process["name"] for process in closed.summary["generator"]["processes"] if process["name"] != "master"]
    assert len(workers) == 2, f"{len(workers)} processes made the load, LOADTEST_PROCESSES is 2"


def test_at_a_constant_rate_requests_do_not_wait_for_answers_to_others(rate: Run) -> None:
    assert rate.most_in_flight > 1, "each request waited for the answer to the one before, LOADTEST_SHAPE is rate"


def test_requests_arrive_at_the_rate_that_the_row_says(rate: Run) -> None:
    rps = rate.summary["measured"]["rps"]
    assert 0.4 * RATE < rps < 2 * RATE, f"{rps:.0f} requests a second, LOADTEST_RATE is {RATE}"
