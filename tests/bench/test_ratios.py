import pytest

from bench.ratios import Figures, Goal, ratios

AT_MOST = Goal("at most", 1.25)
AT_LEAST = Goal("at least", 1.4)


def test_a_ratio_is_taken_within_a_round_so_a_slow_second_cancels_out() -> None:
    assert ratios([10, 20, 10], [5, 10, 5]).values == (2, 2, 2)


def test_the_figure_is_the_median_and_the_range_is_from_the_lowest_to_the_highest() -> None:
    figures = Figures((1.3, 1.0, 1.1))
    assert (figures.median, figures.low, figures.high) == (1.1, 1.0, 1.3)


@pytest.mark.parametrize(
    ("values", "goal", "verdict"),
    [
        ((1.1, 1.2, 1.24), AT_MOST, "met"),
        ((1.25,), AT_MOST, "met"),
        ((1.26, 1.3), AT_MOST, "missed"),
        ((1.4, 1.6), AT_LEAST, "met"),
        ((1.1, 1.39), AT_LEAST, "missed"),
    ],
)
def test_a_goal_is_met_or_missed_where_the_whole_interval_says_so(
    values: tuple[float, ...], goal: Goal, verdict: str
) -> None:
    assert Figures(values).verdict(goal) == verdict


@pytest.mark.parametrize(("values", "goal"), [((1.1, 1.2, 1.26), AT_MOST), ((1.3, 1.5, 1.6), AT_LEAST)])
def test_a_goal_is_undecided_where_the_interval_straddles_its_bound(values: tuple[float, ...], goal: Goal) -> None:
    assert Figures(values).verdict(goal) == "undecided"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [((0.8, 0.9), "less"), ((1.1, 1.2), "more"), ((0.9, 1.1), "undecided"), ((1.0,), "undecided")],
)
def test_without_a_goal_a_comparison_is_undecided_where_its_range_holds_one(
    values: tuple[float, ...], verdict: str
) -> None:
    assert Figures(values).verdict(None) == verdict


@pytest.mark.parametrize(("rounds", "cut"), [(1, 0), (4, 0), (5, 0), (7, 0), (8, 1), (10, 1), (11, 2), (13, 3)])
def test_the_interval_leaves_out_as_many_extreme_rounds_as_90_percent_confidence_allows(rounds: int, cut: int) -> None:
    figures = Figures(tuple(float(n) for n in range(rounds)))
    assert figures.interval == (cut, rounds - 1 - cut)


def test_one_wild_round_in_eight_decides_nothing() -> None:
    assert Figures((1.1,) * 7 + (9.0,)).verdict(AT_MOST) == "met"


@pytest.mark.parametrize(("ours", "base"), [([1.0], [1.0, 2.0]), ([1.0], [0.0]), ([], [])])
def test_halves_of_rounds_and_empty_rounds_give_no_ratio(ours: list[float], base: list[float]) -> None:
    with pytest.raises(ValueError, match="round"):
        ratios(ours, base)
