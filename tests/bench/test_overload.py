from bench.experiments.overload import (
    AFTER_SECONDS,
    BACK,
    BEFORE_SECONDS,
    IN_TIME,
    OVERLOAD_SECONDS,
    back_after,
    figures,
)
from bench.overload_load import Outcome

END = BEFORE_SECONDS + OVERLOAD_SECONDS


def served(begin: float, end: float, ms: float = 10, status: int = 200) -> list[Outcome]:
    """A hundred in a second."""
    return [Outcome(begin + n / 100, status, ms) for n in range(round((end - begin) * 100))]


def test_normal_is_from_the_end_of_the_last_window_that_was_not() -> None:
    assert back_after(served(0, 5), 0, normal_ms=20) == 0
    assert back_after(served(0, 1.2, status=503) + served(1.2, 5), 0, normal_ms=20) == 1.5
    assert back_after(served(0, 4.9) + served(4.9, 5, ms=30), 0, normal_ms=20) == 5
    assert back_after(served(0, 5, status=0), 0, normal_ms=20) == 5


def test_an_answer_that_nobody_waits_for_is_no_goodput() -> None:
    usual = served(0, BEFORE_SECONDS) + served(END, END + AFTER_SECONDS)
    useful, late = (figures(usual + served(BEFORE_SECONDS, END, ms), capacity=100) for ms in (10, 1100))
    assert 95 <= useful[IN_TIME] <= 105
    assert late[IN_TIME] == 0
    assert useful[BACK] == 0
