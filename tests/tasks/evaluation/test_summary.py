"""Bootstrap intervals: coverage, pairing, and missing values."""

from __future__ import annotations

import numpy as np
import pytest

from factsmith.tasks.evaluation.summary import RecordValues, differences, intervals

MEANS = {"S": ("ES", "PS")}


def values(es: list[float], ps: list[float] | None = None, names: list[str] | None = None) -> RecordValues:
    columns = np.array([es, es if ps is None else ps], dtype=np.float64).T
    records = tuple(names or (f"r{place}" for place in range(len(es))))
    return RecordValues(records, ("ES", "PS"), columns, MEANS)


def test_an_interval_is_that_of_the_normal_approximation_where_that_holds():
    drawn = 50 + 10 * np.random.default_rng(1).standard_normal(400)
    found = intervals(values(drawn.tolist()))["ES"]
    assert found.value == pytest.approx(float(drawn.mean()))
    half = 1.96 * float(drawn.std()) / 20
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    one = values([0.0, 100.0, 100.0, 0.0, 100.0, 30.0])
    assert intervals(one, seed=3) == intervals(one, seed=3)
    assert one.drawn(3)["ES"].tolist() != one.drawn(4)["ES"].tolist()


def test_records_that_agree_leave_no_doubt():
    found = intervals(values([80.0] * 5, [40.0] * 5))["S"]
    assert found.value == found.low == found.high == pytest.approx(2 / (1 / 80 + 1 / 40))


def test_the_harmonic_mean_is_of_the_means_not_of_the_records():
    found = values([100.0, 0.0], [100.0, 100.0]).summary()
    assert found == {"ES": 50.0, "PS": 100.0, "S": pytest.approx(2 / (1 / 50 + 1 / 100))}


def test_a_metric_that_no_record_has_is_not_summarised():
    nothing = values([100.0, 50.0], [np.nan, np.nan])
    assert nothing.summary() == {"ES": 75.0, "PS": None, "S": None}
    assert set(intervals(nothing)) == {"ES"}


def test_a_record_that_does_not_tell_a_metric_counts_for_nothing_in_it():
    assert values([100.0, np.nan, 0.0]).summary()["ES"] == 50.0


def test_hard_records_are_no_noise_between_runs_on_the_same_records():
    before = [0.0, 100.0] * 20
    after = [value + 1 for value in before]
    paired = differences(values(before), values(after))["ES"]
    assert (paired.value, paired.low, paired.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert not paired.holds_zero
    others = values(after, names=[f"other{place}" for place in range(40)])
    apart = differences(values(before), others)["ES"]
    assert apart.low < -10 < 10 < apart.high
    assert apart.holds_zero


def test_the_order_of_records_does_not_matter_to_a_difference():
    names = [f"r{place}" for place in range(6)]
    one = values([0.0, 10.0, 20.0, 30.0, 40.0, 50.0], names=names)
    other = values([51.0, 41.0, 31.0, 21.0, 11.0, 1.0], names=names[::-1])
    assert differences(one, other)["ES"].low == pytest.approx(1)


def test_many_records_are_drawn_in_parts(monkeypatch):
    from factsmith.tasks.evaluation import summary

    one = values([float(place) for place in range(50)])
    whole = one.drawn(0)["S"]
    monkeypatch.setattr(summary, "_DRAWN_AT_ONCE", 333)
    assert np.array_equal(one.drawn(0)["S"], whole)
