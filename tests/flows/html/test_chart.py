"""Where the lines and ticks of a chart are drawn."""

from __future__ import annotations

import pytest

from factsmith.flows.html.chart import Line, LineChart


def ticks(chart: LineChart) -> tuple[list[str], list[str]]:
    return [label for _, label in chart.x_ticks], [label for _, label in chart.y_ticks]


def test_points_lie_between_the_ends_of_the_axes():
    chart = LineChart("", "edits", [Line("a", {0: 1.0, 50: 2.0, 100: 3.0})])
    assert chart.at(0, 1.0) == (chart.left, chart.bottom)
    assert chart.at(100, 3.0) == (chart.right, chart.top)
    assert chart.at(50, 2.0) == ((chart.left + chart.right) / 2, (chart.top + chart.bottom) / 2)
    assert ticks(chart) == (["0", "20", "40", "60", "80", "100"], ["1", "1.5", "2", "2.5", "3"])


def test_shares_end_at_100_and_begin_at_0_unless_all_are_high():
    assert ticks(LineChart("", "", [Line("a", {1: 30.0, 2: 40.0})], share=True))[1] == [
        "0",
        "20",
        "40",
        "60",
        "80",
        "100",
    ]
    assert ticks(LineChart("", "", [Line("a", {1: 87.0, 2: 95.0})], share=True))[1][0] == "80"


def test_logarithmic_axes():
    chart = LineChart("", "d_m", [Line("a", {1: 2.0, 10: 20.0, 100: 200.0})], log_x=True, log_y=True)
    assert ticks(chart) == (["1", "10", "100"], ["10", "100"])
    middle = (
        pytest.approx((chart.left + chart.right) / 2, abs=0.1),
        pytest.approx((chart.top + chart.bottom) / 2, abs=0.1),
    )
    assert chart.at(10, 20.0) == middle


def test_one_point_or_none_can_be_drawn():
    for points in ({}, {3: 5.0}, {3: 0.0}):
        chart = LineChart("", "", [Line("a", points)])
        assert len(chart.named(chart.lines[0])) == len(points)
        assert ticks(chart)


def test_intervals_have_an_axis_that_holds_them():
    chart = LineChart("", "", [Line("a", {1: 5.0, 2: 6.0}, ends={1: (2.0, 9.0), 2: (4.0, 8.0)})])
    (_, *first), _ = chart.ends_of(chart.lines[0])
    assert first == [chart.at(1, 2.0)[1], chart.at(1, 9.0)[1]]
    assert ticks(chart)[1][0] == "2"
