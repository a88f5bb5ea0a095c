"""Metric families in a run: each is scored once, in any combination."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest

from factsmith.flows.configuration.composition import compose
from factsmith.tasks.evaluation.family import load_families
from factsmith.tasks.evaluation.metrics.counterfact import CounterFact
from factsmith.tasks.model.checkpoint import Checkpoint
from factsmith.tasks.planning.run import Run
from tests.runs import artifacts, contents, count_positions, states

ALL = "dataset.metrics=[counterfact,generation,greedy]"


def test_a_further_family_is_all_that_is_scored(precomputed, pipeline, store, arguments, monkeypatch):
    first = pipeline("dataset.batches=1")
    before = contents(store)
    monkeypatch.setattr(CounterFact, "score", lambda *_, **__: pytest.fail("was scored already"))
    seen = count_positions(monkeypatch)
    second = pipeline(ALL, "dataset.batches=1")
    assert {name for name, state in states(second).items() if state == "built"} == {"evaluation"}
    assert before.items() <= contents(store).items()
    assert {one.manifest.recipe["series"]["parameters"]["metric"] for one in artifacts(store, "scores")} == {
        "counterfact", "generation", "greedy",
    }  # fmt: skip
    for phase, metrics in first.metrics.items():
        assert metrics.items() <= second.metrics[phase].items()
        assert second.metrics[phase]["GE"] > 0
        assert 0 <= second.metrics[phase]["FreeEff"] <= 100
    checked = Run(compose(arguments("dataset.batches=1")), store)
    told = sum(
        positions
        for family in load_families(["generation", "greedy"])
        for batch in checked.batches.batches
        for record in batch
        for positions, _ in family.passes(checked.model.tokenizer, record)
    )
    assert told < sum(seen) < 2.2 * told  # before and after, and the padding of prompts

    monkeypatch.setattr(Checkpoint, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    seen.clear()
    third = pipeline(ALL, "dataset.batches=1")
    assert set(states(third).values()) == {"cached"}
    assert third.metrics == second.metrics
    assert seen == []
    alone = pipeline("dataset.metrics=[generation]", "dataset.batches=1")
    assert set(alone.metrics["after"]) == {"GE"}
    assert alone.metrics["after"]["GE"] == third.metrics["after"]["GE"]
    assert seen == []


def test_scores_that_are_nan_are_told(precomputed, pipeline, monkeypatch, caplog):
    score = CounterFact.score

    def overflown(self, decoder, records, **given):
        rows = score(self, decoder, records, **given)
        place = rows.schema.get_field_index("nll_new")
        return rows.set_column(place, "nll_new", pa.array([math.nan, *rows["nll_new"].to_pylist()[1:]], pa.float64()))

    monkeypatch.setattr(CounterFact, "score", overflown)
    report = pipeline("dataset.batches=1")
    told = [record.getMessage() for record in caplog.records if "NaN" in record.getMessage()]
    assert len(told) == 2  # before and after
    assert told[0].startswith("1 of 39 prompts have scores that are NaN: the model overflows in float32")
    assert report.records["ES"] == 3
