"""``tune`` chooses on one half, judges on the other, and is cached the second time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.reporting.reports import TuneReport
from factsmith.flows.run import run
from factsmith.flows.tune import on_half, settings_at, tune
from factsmith.tasks.corpus.corpus import open_corpus
from factsmith.tasks.locate.search import Point
from factsmith.tasks.model.checkpoint import Checkpoint
from factsmith.tasks.model.embedded.world import World
from factsmith.tasks.planning import run as planning_run
from factsmith.tasks.planning.run import Run
from factsmith.tasks.planning.settings import Settings
from factsmith.tasks.tracking.tracker import tracking_uri
from factsmith.tasks.values import stage as values_stage
from tests.runs import artifacts, contents, run_as_functions, tiny_arguments


def without_times(report):
    return [trial.model_copy(update={"seconds": 0}) for trial in report.trials]


@dataclass
class Tuned:
    """What three trials with different lambdas leave behind."""

    home: Path
    settings: Settings
    report: TuneReport


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, gpt2_folder, _mlflow_tables) -> Iterator[Tuned]:
    """In a home that tests share, as they only add what is cached."""
    settings = compose(tiny_arguments(gpt2_folder, "dataset.batches=1"))
    path = tmp_path_factory.mktemp("tuned") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACTSMITH_HOME", str(path))
        run_as_functions(patch)
        yield Tuned(path, settings, tune(settings, 3))


def test_a_rerun_loads_no_model_and_says_the_same(tuned, monkeypatch):
    first, store = tuned.report, Store(tuned.home)
    before = contents(store)
    monkeypatch.setattr(Checkpoint, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    opened = []
    monkeypatch.setattr(planning_run, "open_corpus", lambda *_, **__: opened.append(1) or open_corpus(*_, **__))
    second = tune(tuned.settings, 3)
    assert len(opened) <= 3  # to look at both halves, and once for all trials
    assert contents(store) == before
    assert without_times(first) == without_times(second)
    assert first.held_out == second.held_out
    assert [trial.number for trial in first.trials] == [0, 1, 2]
    scores = [trial.metrics["S"] for trial in first.trials]
    assert first.best == scores.index(max(scores))

    client = MlflowClient(tracking_uri(tuned.home))
    children = client.search_runs(
        [client.get_run(first.mlflow_run_id).info.experiment_id],
        f"tags.mlflow.parentRunId = '{first.mlflow_run_id}'",
    )
    names = {child.info.run_name for child in children}
    assert {"trial 0", "trial 1", "trial 2", "held-out start"} <= names
    logged = {child.info.run_name: child.data for child in children}
    assert float(logged["trial 1"].params["method.preservation_weight"]) == first.trials[1].preservation_weight
    assert logged["trial 1"].metrics["after/S"] == pytest.approx(first.trials[1].metrics["S"], abs=0.005)


def test_trials_and_judgement_are_ordinary_runs_on_two_halves(tuned):
    trial = run(on_half(settings_at(tuned.settings, Point(weight=-2)), "tune"))
    assert trial.metrics["after"] == tuned.report.trials[1].metrics
    assert {stage.state for stage in trial.stages} == {"cached"}
    held_out = run(on_half(tuned.settings, "test"))
    assert held_out.metrics["after"] == tuned.report.held_out.start
    assert {stage.state for stage in held_out.stages} == {"cached"}


def test_lambdas_share_their_value_vectors(tuned):
    store = Store(tuned.home)
    # Three lambdas, one pair of clamp and learning rate: one artifact of vectors for each half.
    assert len(artifacts(store, "values")) == 2
    assert len({one.manifest.series for one in artifacts(store, "factor")}) == 3


@pytest.mark.parametrize("dataset", ["counterfact", "facts"])
def test_any_dataset_falls_into_two_halves(dataset, tmp_path):
    path = tmp_path / "records.json"
    path.write_text(json.dumps(World().records()[:7]))
    given = [f"dataset={dataset}", f"dataset.path={path}", "dataset.seed=5", "method.batch_size=all"]
    halves = {
        split: {record.request.case_id for record in one.batches.records}
        for split in ("tune", "test", "all")
        for one in [Run(compose([*given, f"dataset.split={split}"]), None)]
    }
    assert halves["tune"].isdisjoint(halves["test"])
    assert halves["tune"] | halves["test"] == halves["all"] == set(range(7))
    assert len(halves["tune"]) == 4


def test_a_trial_that_fails_is_reported_and_the_others_run(plain_flows, home, arguments, monkeypatch):
    optimise = values_stage.optimise_values

    def fail_on_others(*arguments, **named):
        if arguments[4].clamp != 1.5 or arguments[4].learning_rate != 0.2:
            raise values_stage.NonFiniteValueError(arguments[1][0])
        return optimise(*arguments, **named)

    monkeypatch.setattr(values_stage, "optimise_values", fail_on_others)
    settings = compose(arguments("dataset.batches=1", "method.value.clamp=1.5"))
    report = tune(settings, 8)
    failed = [trial.number for trial in report.trials if trial.error]
    assert len(report.trials) == 8
    assert failed == [3, 4, 5]
    assert report.best not in failed
    assert all("NaN" in report.trials[number].error for number in failed)
    monkeypatch.setattr(values_stage, "optimise_values", lambda *a, **_: fail_on_others(*a[:4], compose().method.value))
    with pytest.raises(InputError, match="All 2 trials failed"):
        tune(compose(arguments("dataset.batches=1", "dataset.seed=9")), 2)


def test_what_is_found_is_a_model_to_choose(factsmith, plain_flows, arguments, tmp_path):
    out = tmp_path / "tuned.yaml"
    given = ["tune", *arguments("dataset.batches=1"), "--trials", "3", "--out", out]
    result = factsmith(*given, "--json")
    assert result.code == 0, result
    document = json.loads(result.out)
    best = document["trials"][document["best"]]
    settings = compose([f"model={out}"])
    assert settings.method.preservation_weight == best["preservation_weight"]
    assert settings.method.value.clamp == best["clamp"]
    assert settings.method.value.learning_rate == best["learning_rate"]
    assert settings.method.layers == [0, 1]
    assert settings.dataset.name == "embedded"
    table = factsmith(*given)  # what an earlier call wrote may be written again
    assert table.code == 0, table
    assert "not used for tuning" in " ".join(table.out.split())
    assert f"method.preservation_weight={best['preservation_weight']:g}" in table.out


def test_what_cannot_be_tuned_on_is_refused(refused, arguments, tmp_path):
    facts = [{"subject": f"Mara{at}", "prompt": "{} speaks", "target_new": "Danish"} for at in range(6)]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(facts))
    given = arguments("dataset=facts", f"dataset.path={path}", "dataset.batches=1")
    assert "neighborhood_prompts" in refused("tune", *given)
    whole = World().records()[:1]
    path.write_text(json.dumps(whole))
    given = arguments("dataset=facts", f"dataset.path={path}", "dataset.batches=1", "method.batch_size=all")
    assert "too few records" in refused("tune", *given)
    here = tmp_path / "mine.yaml"
    here.write_text("name: mine\n")
    assert "exists already" in refused("tune", *arguments(), "--out", here)
    assert ".yaml" in refused("tune", *arguments(), "--out", tmp_path / "mine.txt")
    assert "not a writable folder" in refused("tune", *arguments(), "--out", tmp_path / "nowhere" / "mine.yaml")
    assert here.read_text() == "name: mine\n"


def test_what_is_found_for_rome_is_for_rome_alone(plain_flows, home, arguments, tmp_path):
    out = tmp_path / "tuned.yaml"
    given = arguments("method=rome", "method.layers=[1]", "method.batch_size=1", "dataset.batches=1")
    tune(compose(given), 1, out=out)
    found = compose([f"model={out}", "method=rome"])
    assert found.method.layers == [1]
    assert found.method.value.steps == 4
    with pytest.raises(InputError, match="must be given"):
        compose([f"model={out}", "method=memit"])
