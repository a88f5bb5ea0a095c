"""General abilities in runs: what is asked, what is kept, and where the results are."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from factsmith.flows.configuration.composition import compose, compose_again
from factsmith.flows.evaluate import evaluate
from factsmith.flows.reporting.sweeps.reports import CellReport, SweepReport
from factsmith.flows.reporting.sweeps.results import sweep_tables, write_sweep
from factsmith.flows.reporting.terminal import trajectory_table
from factsmith.tasks.abilities.answering import ByLikelihood
from factsmith.tasks.abilities.harness_stage import HarnessResult
from factsmith.tasks.abilities.measures import Ability
from factsmith.tasks.planning.plan import plan
from factsmith.tasks.planning.run import Run
from factsmith.tasks.tracking.runs import find_run
from tests.runs import states


@pytest.fixture
def asked(tmp_path):
    """Settings that ask about twelve short reviews."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"sentence": f"{'good' if one % 2 else 'bad'} film {one}", "label": one % 2} for one in range(12)]
    (folder / "sst2.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["abilities.tasks=[sst2]", f"abilities.path={folder}"]


@pytest.fixture
def prompts(monkeypatch):
    """The number of prompts of each call that asks a model by likelihood."""
    calls: list[int] = []
    answer = ByLikelihood.answer

    def counted(self, decoder, task, given, **more):
        calls.append(len(given))
        return answer(self, decoder, task, given, **more)

    monkeypatch.setattr(ByLikelihood, "answer", counted)
    return calls


def test_a_past_run_is_asked_and_only_what_is_new(ran, plain_flows, home, asked, prompts, store):
    first = ran
    assert first.abilities == []
    past = find_run(home, "latest")

    def again(*more):
        return evaluate(compose_again(past.content, [*asked, *more]), past.id)

    report = again("abilities.examples=8")
    assert (states(report)["evaluation"], states(report)["abilities"]) == ("cached", "built")
    assert prompts == [8, 8]
    found = {one.name: one for one in report.abilities}
    accuracy = found["SST-2 likelihood accuracy"]
    assert (accuracy.examples, accuracy.edits) == (8, 1)
    assert set(found) == {
        *(f"SST-2 {way} {metric}" for way in ("likelihood", "generation") for metric in ("accuracy", "F1", "MCC")),
        "SST-2 generation unanswered",
    }  # fmt: skip

    assert states(again("abilities.examples=8"))["abilities"] == "cached"
    again("abilities.examples=12")
    assert prompts == [8, 8, 4, 4]
    two = again("abilities.examples=12", "abilities.edits=5")  # There are two batches.
    assert prompts == [8, 8, 4, 4, 12]
    assert {one.edits for one in two.abilities} == {2}

    logged = find_run(home, two.mlflow_run_id)
    final = {one.name: one for one in two.abilities}["SST-2 likelihood accuracy"]
    assert logged.metrics["before/SST-2 likelihood accuracy"] == pytest.approx(final.before, abs=0.01)
    assert logged.metrics["after/SST-2 likelihood accuracy"] == pytest.approx(final.after, abs=0.01)
    (path,) = home.glob(f"mlruns/*/{two.mlflow_run_id}/artifacts/abilities.parquet")
    rows = pq.read_table(path).to_pylist()
    assert len(rows) == 12 * 2 * 3
    after = [one for one in rows if one["phase"] == "after" and one["way"] == "likelihood"]
    assert final.after == pytest.approx(100 * sum(one["correct"] for one in after) / 24)
    assert {one["batch"] for one in after} == {0, 1}


def test_the_unedited_weights_come_back(precomputed, pipeline, run_once, asked):
    """An edited model's scores are the same whether it was asked for abilities before or not."""
    assert pipeline("dataset.metrics=[counterfact]", *asked).metrics == run_once[1].metrics


def test_along_a_sequence(precomputed, pipeline, home, asked, prompts):
    report = pipeline(
        "method.sequence.history=full", "method.sequence.evaluate_at=[3,6]", *asked, "abilities.along=true"
    )
    assert prompts == [12, 12, 12]
    name = "SST-2 likelihood accuracy"
    (accuracy,) = (one for one in report.abilities if one.name == name)
    curve = report.trajectory[f"sequence/{name}"]
    assert list(curve) == [0, 3, 6]
    assert (curve[0], curve[6]) == (accuracy.before, accuracy.after)


def test_the_plan_counts_what_is_missing(arguments, pipeline, asked, home, store):
    settings = compose(arguments(*asked, "abilities.answers=[likelihood]"))
    (before,) = (stage for stage in plan(Run(settings, store)) if stage.name == "abilities")
    assert (before.missing, before.total, before.unit) == (24, 24, "answers")
    assert before.flop > 0
    pipeline(*asked, "abilities.answers=[likelihood]")
    assert all(stage.missing == 0 for stage in plan(Run(settings, store)))


def test_what_is_refused(refused, factsmith, arguments, asked, tmp_path):
    assert "There is no ability task 'sst'" in refused("run", *arguments("abilities.tasks=[sst]"))
    assert "other than []" in refused("run", *arguments("abilities.examples=3"))
    assert "a sequence" in refused("run", *arguments(*asked, "abilities.along=true"))
    assert "does not read abilities" in refused("precompute", *arguments(*asked))
    assert "sst2.jsonl does not exist" in refused("run", *arguments(asked[0], f"abilities.path={tmp_path}"))


def test_tables_of_sweeps_and_sequences(tmp_path):
    ability = Ability("SST-2", "likelihood", "accuracy", 70.0, 60.0, (50.0, 70.0), (-20.0, 0.0), 50, 1)
    harness = HarnessResult("arc_easy", "acc", 0.5, 0.4375, None, None, 16, 1)
    scores = {"before": {"S": 1.0}, "after": {"S": 2.0}}
    cells = [
        CellReport(place={"method": "memit"}, metrics=scores, abilities=[ability], lm_eval=[harness]),
        CellReport(place={"method": "emmet"}, metrics=scores),
    ]
    report = SweepReport(
        run_id="r", mlflow_run_id="m", name="by-hand", axes=[["method"]], metrics=[], mean=None, cells=cells
    )
    (table,) = (one for one in sweep_tables(report) if "accuracy" in one.title)
    assert table.columns == ["method", "SST-2 likelihood"]
    assert table.rows == [["memit", "70.0 -> 60.0"]]
    (table,) = (one for one in sweep_tables(report) if "lm-eval" in one.title)
    assert table.rows == [["memit", "0.5 -> 0.4375"]]
    write_sweep(report, tmp_path)
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert [line.split(",")[3:8] for line in lines if "SST-2" in line] == [
        ["before", "SST-2 likelihood accuracy", "70.0", "", ""],
        ["after", "SST-2 likelihood accuracy", "60.0", "50.0", "70.0"],
    ]  # fmt: skip
    assert [line.split(",")[4:6] for line in lines if "lm-eval" in line] == [
        ["lm-eval arc_easy acc", "0.5"],
        ["lm-eval arc_easy acc", "0.4375"],
    ]
    curves = {"sequence/SST-2 likelihood accuracy": {0: 70.0, 5: 60.0}, "sequence/SST-2 likelihood F1": {0: 1.0}}
    shown = trajectory_table(curves, compose())
    assert [column.header for column in shown.columns] == ["edits", "SST-2 likelihood"]
