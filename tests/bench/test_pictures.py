import re
from xml.etree import ElementTree

import pytest

from bench import pictures
from bench.harness import Comparison
from bench.ratios import Figures, Goal
from bench.scale import Scale, scale_of

HOSTILE = "<b>&\"'"


@pytest.mark.parametrize("scale", [Scale(0.5, 2, log=True), Scale(0, 10, log=False)])
def test_a_scale_goes_from_end_to_end(scale: Scale) -> None:
    assert scale.at(scale.low) == 0
    assert scale.at(scale.high) == 1


def test_a_factor_takes_the_same_room_everywhere_on_a_logarithmic_scale() -> None:
    scale = Scale(0.01, 100, log=True)
    assert scale.at(2) - scale.at(1) == pytest.approx(scale.at(20) - scale.at(10))


def test_a_scale_is_logarithmic_only_where_it_spans_more_than_4_times() -> None:
    assert not scale_of([0.5, 1, 2]).log
    assert scale_of([0.4, 1, 2]).log
    assert not scale_of([0, 100]).log, "nothing has a logarithm of 0"


def test_one_figure_alone_has_a_scale() -> None:
    assert scale_of([1.0, 1.0]).at(1.0) == pytest.approx(0.5)
    assert 0 <= scale_of([0.0]).at(0.0) <= 1


@pytest.mark.parametrize("ends", [(0.59, 1.66), (0.9, 1.1), (0, 3), (0.02, 1.07), (0.06, 70), (1e-3, 1e4), (1, 4.1)])
def test_ticks_are_few_round_and_within_the_scale(ends: tuple[float, float]) -> None:
    scale = scale_of(ends)
    ticks = scale.ticks
    assert 2 <= len(ticks) <= 7, ticks
    assert all(-1e-6 <= scale.at(tick) <= 1 + 1e-6 for tick in ticks), ticks
    assert all(len(f"{tick:g}".replace(".", "").strip("0")) <= 3 for tick in ticks), ticks


def drawn(svg: str) -> ElementTree.Element:
    """Parsed as XML, which anything that was not escaped would break."""
    return ElementTree.fromstring(svg)


def place(element: ElementTree.Element, name: str) -> float:
    return float(element.attrib[name].removesuffix("%"))


def test_a_forest_has_point_bar_and_line_of_each_comparison_in_order() -> None:
    values = (0.5, 0.62, 0.64, 0.65, 0.66, 0.67, 0.68, 0.9)
    goal = Goal("at most", 0.8)
    root = drawn(pictures.forest([Comparison(f"CPU, a to {HOSTILE}", Figures(values), goal)]))
    row = root.find("g")
    assert row is not None
    assert row.attrib["class"] == "met"
    by_class = {each.attrib.get("class"): each for each in row}
    line, bar, point = by_class["range"], by_class["interval"], by_class["median"]
    ends = [place(line, "x1"), place(bar, "x"), place(point, "cx"), place(bar, "x") + place(bar, "width")]
    ends.append(place(line, "x2"))
    assert ends == sorted(ends)
    assert len(set(ends)) == 5
    assert place(point, "cx") < place(by_class["goal"], "x1") < place(line, "x2") < place(by_class["one"], "x1")
    assert HOSTILE in root.attrib["aria-label"]


def test_seconds_have_no_line_of_no_difference() -> None:
    assert 'class="one"' not in pictures.forest([Comparison("start, native", Figures((1.5, 1.6)), None, "s")])


def test_a_curve_is_higher_where_the_latency_is_and_further_right_where_it_is_rarer() -> None:
    curve = {50.0: 2.0, 99.0: 40.0, 90.0: 7.5}
    root = drawn(pictures.curves(HOSTILE, {HOSTILE: curve}))
    points = [(place(point, "cx"), -place(point, "cy")) for point in root.iter("circle")]
    assert len(points) == 3
    assert points == sorted(points)
    assert sorted(height for _, height in points) == [height for _, height in points]
    assert "p99 40.00 ms" in root.attrib["aria-label"]


def test_no_curve_is_drawn_of_a_single_percentile() -> None:
    assert pictures.curves("latency", {"a": {99.0: 3.0}}) == ""


def test_each_line_of_many_looks_different() -> None:
    assert len({pictures.series(number) for number in range(12)}) == 12
    assert not re.search(r"[^\w ]", pictures.series(11))
