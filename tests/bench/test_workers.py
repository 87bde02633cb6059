import pytest

from bench.experiments.workers import Measured, about_the_rule, added_mb, recommended, why

FLAT = {1: Measured(600, 5, 70), 2: Measured(1000, 6, 110), 3: Measured(990, 7, 140), 5: Measured(900, 12, 210)}


def test_the_fewest_of_those_that_do_as_much_as_the_best_are_recommended() -> None:
    assert recommended(FLAT) == 2
    assert recommended(FLAT | {3: Measured(1020, 7, 140)}) == 2, "2 % more is not worth a worker"
    assert recommended(FLAT | {3: Measured(1200, 7, 140)}) == 3


def test_a_number_that_makes_requests_wait_is_not_recommended() -> None:
    assert recommended(FLAT | {2: Measured(1000, 60, 110)}) == 3


def test_without_a_p99_throughput_decides() -> None:
    assert recommended({count: Measured(each.throughput, None, each.mb) for count, each in FLAT.items()}) == 2


def test_memory_is_counted_for_each_worker_that_is_added() -> None:
    assert added_mb(FLAT, 1) == 0
    assert added_mb(FLAT, 2) == 40
    assert added_mb(FLAT, 5) == pytest.approx(35)


@pytest.mark.parametrize(
    ("five", "said"),
    [
        (Measured(900, 12, 210), "has 0.90 times the throughput of 2 workers, 2.00 times the p99 and 1.91 times"),
        (Measured(900, None, 210), "has 0.90 times the throughput of 2 workers and 1.91 times the memory: the rule is"),
        (Measured(2000, 6, 210), "for those that can bear what they wait"),
    ],
)
def test_what_is_said_of_the_rule_comes_from_the_figures(five: Measured, said: str) -> None:
    assert said in about_the_rule(FLAT | {5: five}, best=2, rule=5)


def test_a_rule_that_was_not_tried_or_is_right_is_called_that() -> None:
    assert "33 workers here, more than were tried" in about_the_rule(FLAT, best=2, rule=33)
    assert "it is right here" in about_the_rule(FLAT, best=5, rule=5)


def test_the_reason_says_how_near_the_best_it_is() -> None:
    assert why(FLAT, best=2) == "the highest throughput of all"
    assert why(FLAT, best=3) == "99 % of the highest throughput (2 workers), with fewer to keep in memory"
