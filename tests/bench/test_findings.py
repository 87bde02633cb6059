from bench.findings import figure, headlines, sentence
from bench.harness import Comparison
from bench.ratios import Figures, Goal


def compared(name: str, *values: float, goal: Goal | None = None, unit: str = "") -> Comparison:
    return Comparison(name, Figures(values), goal, unit)


def test_a_ratio_that_is_decided_says_so() -> None:
    found = sentence(compared("CPU per request, this one to the tutorial's", 0.65, 0.62, 0.68))
    assert found == "With this one, the CPU per request is 0.65 (0.62 to 0.68) times that with the tutorial's: less."
    assert sentence(compared("throughput, a to b", 1.5, 1.4, 1.6)).endswith(": more.")


def test_a_comparison_with_1_in_its_interval_is_called_undecided() -> None:
    found = sentence(compared("throughput, a to b", 0.9, 1.0, 1.1))
    assert found.endswith("times that with b; undecided, for 1 is in the interval.")


def test_a_goal_is_met_missed_or_undecided() -> None:
    goal = Goal("at most", 1.25)
    met, missed, open_ = (
        sentence(compared("cost, a to b", *v, goal=goal)) for v in ((1.1, 1.2), (1.3, 1.4), (1.2, 1.3))
    )
    assert met.endswith("; the goal, at most 1.25, is met.")
    assert missed.endswith("; the goal, at most 1.25, is missed.")
    assert open_.endswith("; whether it is at most 1.25, the goal, is undecided.")


def test_the_interval_stands_in_the_sentence_and_not_the_range() -> None:
    assert "1.03 (1.01 to 1.05)" in sentence(compared("cost, a to b", 0.5, 1.01, 1.02, 1.03, 1.03, 1.04, 1.05, 9.0))


def test_seconds_are_not_compared_with_1() -> None:
    assert sentence(compared("start, native", 1.5, 1.6, unit="s")) == "Start, native: 1.55 (1.50 to 1.60) s."
    found = sentence(compared("start, native", 1.5, 1.6, goal=Goal("at most", 5), unit="s"))
    assert found == "Start, native: 1.55 (1.50 to 1.60) s; the goal, at most 5 s, is met."


def test_a_name_that_does_not_say_of_what_to_what_is_left_as_it_is() -> None:
    assert sentence(compared("cost", 1.1, 1.2)) == "Cost: 1.15 (1.10 to 1.20)."


def test_headlines_are_the_goals_first_and_then_what_the_first_says_of_others() -> None:
    goal = Goal("at most", 1)
    names = [compared("CPU, a to z", 1), compared("memory, a to z", 1), compared("CPU, b to z", 1)]
    assert headlines(names) == [names[0], names[2]]
    latency = compared("p99, a to z", 1, goal=goal)
    assert headlines([*names, latency]) == [latency, names[0], names[2]]
    assert headlines([]) == []


def test_figures_have_as_many_digits_as_tell_something() -> None:
    assert [figure(value) for value in (0, 0.0123, 0.1, 1.234, 99.99, 2312.6)] == [
        "0", "0.012", "0.10", "1.23", "99.99", "2313"
    ]  # fmt: skip
