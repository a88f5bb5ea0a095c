"""The cluster bootstrap: coverage under correlation within batches, equality with the plain one for batches of one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from factsmith.tasks.evaluation import summary
from factsmith.tasks.evaluation.family import load_families
from factsmith.tasks.evaluation.resampling import FEWEST, resampling
from factsmith.tasks.evaluation.summary import RecordValues, differences, intervals, resampled_together

BATCHES, SIZE, TRUTH = 10, 16, 70.0


def values(column: np.ndarray, batches: list[int] | None) -> RecordValues:
    records = tuple(f"r{place}" for place in range(len(column)))
    return RecordValues(records, ("ES",), column[:, None], {}, None if batches is None else tuple(batches))


def numbered(batches: int, size: int) -> list[int]:
    return [number for number in range(batches) for _ in range(size)]


def drawn(generator: np.random.Generator) -> np.ndarray:
    """Scores whose correlation within a batch is 0.8: variance 80 between batches and 20 within."""
    between = np.sqrt(80) * generator.standard_normal(BATCHES).repeat(SIZE)
    return TRUTH + between + np.sqrt(20) * generator.standard_normal(BATCHES * SIZE)


def test_coverage_is_near_95_percent_over_batches_and_far_below_over_facts(monkeypatch):
    monkeypatch.setattr(summary, "DRAWS", 1000)
    generator = np.random.default_rng(7)
    trials = 300
    covered = {"batches": 0, "facts": 0}
    for _ in range(trials):
        column = drawn(generator)
        for over, batches in (("batches", numbered(BATCHES, SIZE)), ("facts", None)):
            one = values(column, batches)
            assert one.resampling.over == over
            found = intervals(one)["ES"]
            covered[over] += found.low <= TRUTH <= found.high
    # The standard deviation of a share of 95 % among 300 is 1.3 %.
    assert 0.91 < covered["batches"] / trials < 0.98
    assert covered["facts"] / trials < 0.55


def test_batches_of_one_fact_are_the_plain_bootstrap_bit_for_bit():
    column = np.random.default_rng(1).uniform(0, 100, 40)
    plain, batches = values(column, None), values(column, list(range(40))[::-1])
    generator = np.random.default_rng(0)
    by_hand = [column[generator.integers(40, size=40)].mean() for _ in range(summary.DRAWS)]
    assert np.allclose(plain.drawn(0)["ES"], by_hand, rtol=1e-12)
    assert np.array_equal(plain.drawn(0)["ES"], batches.drawn(0)["ES"])
    assert batches.resampling.over == "facts"
    assert intervals(batches) == intervals(plain)


@pytest.mark.parametrize(
    ("count", "over"), [(1, "facts within edits"), (FEWEST - 1, "facts within edits"), (5, "batches")]
)
def test_a_few_batches_are_not_resampled(count, over):
    column = np.random.default_rng(1).uniform(0, 100, 8 * count)
    one = values(column, numbered(count, 8))
    assert one.resampling.over == over
    same = intervals(one) == intervals(values(column, None))
    assert same == (over == "facts within edits")


def test_five_batches_span_the_range_of_their_means():
    """The quantiles are 0.1 and 99.9 %. A sample that holds one batch five times has a probability of 0.03 %."""
    column = np.arange(5.0).repeat(4)
    found = intervals(values(column, numbered(5, 4)))["ES"]
    assert (found.low, found.high) == (pytest.approx(0.2, abs=0.2), pytest.approx(3.8, abs=0.2))


def test_runs_on_the_same_facts_draw_the_same_batches_in_any_order():
    column = drawn(np.random.default_rng(3))
    batches = numbered(BATCHES, SIZE)
    first, second = values(column, batches), values(column + 1, batches)
    order = np.random.default_rng(4).permutation(len(column))
    second = second.ordered([second.records[place] for place in order])
    found = differences(first, second)["ES"]
    assert (found.value, found.low, found.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    other = replace(second, records=tuple(f"o{one}" for one in second.records))
    apart = differences(first, other)["ES"]
    assert apart.low < -3 < 5 < apart.high


def test_runs_with_other_batches_draw_groups_that_no_batch_crosses():
    # Batches of 2 and of 3 in 12 facts: groups of six. Batches of 1 and of 2: those of 2.
    pairs, triples = numbered(6, 2), numbered(4, 3)
    assert resampling(12, numbered(6, 2), list(range(12))).unit.tolist() == pairs
    assert resampling(12, None, pairs).unit.tolist() == pairs
    joined = resampling(60, numbered(30, 2), numbered(20, 3))
    assert joined.unit.tolist() == numbered(10, 6)
    assert resampling(12, pairs, triples).over == "facts within edits"
    column = np.arange(60.0)
    one, other = values(column, numbered(30, 2)), values(column, numbered(20, 3))
    assert resampled_together(one, other) == "batches"
    assert resampled_together(one, values(column, numbered(2, 30))) == "facts within edits"


def test_the_batches_of_an_evaluation_are_those_of_the_edited_phase():
    rows = [
        (phase, phase == "after" and place // 4, f"r{place}") for phase in ("before", "after") for place in range(24)
    ]
    table = pa.Table.from_pylist(
        [
            {
                "phase": phase,
                "batch": None if phase == "before" else batch,
                "record": record,
                "metric": "ES",
                "value": 1.0,
            }
            for phase, batch, record in rows
        ]
    )
    families = load_families(["counterfact"])
    before, after = (summary.record_values(table, phase, families) for phase in ("before", "after"))
    assert (before.batches, before.resampling.over) == (None, "facts")
    assert after.batches == tuple(numbered(6, 4))
    assert (after.resampling.over, after.resampling.count) == ("batches", 6)
