"""The search follows the scores, and is deterministic."""

from __future__ import annotations

import itertools

import pytest

from factsmith.flows.configuration.composition import compose
from factsmith.flows.tune import settings_at
from factsmith.tasks.locate.search import Point, Search


def play(search: Search, score) -> list[Point]:
    points = []
    while point := search.propose():
        points.append(point)
        search.tell(point, score(point))
    return points


def hill(top: Point):
    return lambda point: (
        -sum(
            abs(mine - its)
            for mine, its in ((point.weight, top.weight), (point.clamp, top.clamp), (point.rate, top.rate))
        )
    )


@pytest.mark.parametrize("trials", [1, 2, 12, 40])
def test_trials_are_bounded_and_never_repeat(trials):
    points = play(Search(trials, 0), hill(Point(2, -2, 1)))
    assert len(points) == len(set(points)) == trials
    assert points[0] == Point()


def test_the_same_seed_takes_the_same_way():
    first, again, other = (play(Search(24, seed), hill(Point(4, 4, 4))) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_pair_is_tried_with_several_lambdas_in_a_row():
    points = play(Search(12, 0), hill(Point()))
    assert [point.pair for point in points[:3]] == [(0, 0)] * 3
    assert sum(one.pair != other.pair for one, other in itertools.pairwise(points)) <= 4
    assert len({point.pair for point in points}) <= 4


@pytest.mark.parametrize("top", [Point(4, 2, -2), Point(-3, 0, 3), Point(6, -6, 6)])
def test_it_climbs(top):
    search = Search(60, 1)
    play(search, hill(top))
    assert hill(top)(search.best) >= hill(top)(Point()) / 3


def test_it_stays_in_reach():
    for point in play(Search(200, 1), lambda point: point.weight + point.clamp + point.rate):
        assert max(map(abs, (point.weight, *point.pair))) <= 6


def test_failures_are_passed_by():
    search = Search(12, 0)
    play(search, lambda point: None if point.weight >= 0 else 50.0)
    assert search.best.weight < 0
    search = Search(5, 0)
    assert len(play(search, lambda point: None)) == 5
    assert search.best == Point()


def test_the_earlier_of_two_equals_wins():
    search = Search(12, 0)
    play(search, lambda point: 1.0)
    assert search.best == Point()


def test_a_step_is_a_factor():
    start = compose()
    assert settings_at(start, Point()) == start
    moved = settings_at(start, Point(weight=2, clamp=-2, rate=1)).method
    assert moved.preservation_weight == 10 * start.method.preservation_weight
    assert moved.value.clamp == start.method.value.clamp / 2
    assert moved.value.learning_rate == pytest.approx(start.method.value.learning_rate * 2**0.5, rel=2e-3)
    assert moved.value.steps == start.method.value.steps
