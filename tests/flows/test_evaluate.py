"""Scoring the edits of an earlier run, which only computes what is new."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.composition import compose, compose_again
from factsmith.flows.evaluate import evaluate
from factsmith.tasks.evaluation.metrics.counterfact import FAMILY, CounterFact
from factsmith.tasks.model.checkpoint import Checkpoint
from factsmith.tasks.tracking.runs import find_run, past_runs
from tests.runs import artifacts, count_positions, count_scoring, states


def again(home, *arguments: str):
    past = find_run(home, "latest")
    return evaluate(compose_again(past.content, list(arguments)), past.id)


def test_the_edits_of_a_run_are_scored_and_not_made_again(plain_flows, ran, home, store, monkeypatch):
    first = ran
    for kind in ("keys", "covariance", "factor", "contexts", "values", "evaluation", "tokens"):
        for artifact in artifacts(store, kind):
            shutil.rmtree(artifact.path)
    monkeypatch.setattr(Checkpoint, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    second = again(home)
    assert second.metrics == first.metrics
    assert states(second) == {
        "model": "cached",
        "evaluation": "built",
        "drift": "cached",
    }  # tables of scores that were there
    assert set(states(again(home)).values()) == {"cached"}  # an evaluation can be scored again


def test_more_records_run_exactly_theirs(precomputed, pipeline, store, monkeypatch):
    seen = count_positions(monkeypatch)

    def scored(report) -> float:
        return sum(one.summary["records"] for one in artifacts(store, "scores"))

    pipeline("method.batch_size=1", "dataset.batches=2")
    assert scored(None) == 4
    seen.clear()
    pipeline("method.batch_size=1", "dataset.batches=5")
    assert scored(None) == 10
    grown = sum(seen)
    seen.clear()
    pipeline("method.batch_size=1", "dataset.batches=5")
    assert not seen
    fresh = count_scoring(monkeypatch)
    pipeline("method.batch_size=1", "dataset.batches=7", "method.preservation_weight=2")
    # Another lambda: unedited scores of the first 5 records are there, and every edit is scored anew.
    assert sorted(fresh) == [1] * 7 + [2]
    assert grown > 0


def test_a_metric_of_another_version_is_scored_again_and_no_other(plain_flows, ran, home, store, monkeypatch):
    calls = count_scoring(monkeypatch)
    monkeypatch.setattr(CounterFact, "version", FAMILY.version + 1)
    report = again(home)
    assert sorted(calls) == [3, 3, 6]
    assert states(report) == {"model": "cached", "evaluation": "built", "drift": "cached"}
    calls.clear()
    again(home)
    assert not calls


def test_a_run_whose_edits_are_gone_says_so(plain_flows, ran, home, store):
    victim = artifacts(store, "edit")[0]
    shutil.rmtree(victim.path)
    with pytest.raises(InputError, match=r"1 of 2 edits of run .* are not in the store"):
        again(home)


def test_a_run_is_found_by_its_id(ran, pipeline, home):
    first, second = ran, pipeline("method=emmet", "dataset.batches=1")
    assert find_run(home, first.mlflow_run_id[:8]).id == first.mlflow_run_id
    assert find_run(home, "latest").id == second.mlflow_run_id
    assert [run.flow for run in past_runs(home)] == ["run", "run"]
    for word in ("zzzz", second.mlflow_run_id[:2], ""):
        with pytest.raises(InputError, match="runs match"):
            find_run(home, word)


def test_what_the_edit_depends_on_cannot_be_changed_any_more(arguments):
    content = json.loads(compose(arguments()).model_dump_json())
    for word in ("method=emmet", "method.batch_size=2", "dataset.limit=1", "corpus.tokens=9"):
        with pytest.raises(InputError, match="was decided when the edit was made"):
            compose_again(content, [word])
    assert compose_again(content, ["runtime.tokens_per_pass=9"]).runtime.tokens_per_pass == 9
    with pytest.raises(InputError, match=r"dataset\.metrics"):
        compose_again(content, ["dataset.metrics=7"])


def test_the_command_line(ran, factsmith, plain_flows, refused, home):
    report = ran
    found = factsmith("evaluate", report.mlflow_run_id[:6], "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["metrics"] == report.metrics
    message = refused("evaluate", "latest", "--metrics", "counterfat", clean=False)
    assert "There is no metric family 'counterfat'" in message
    assert "was decided" in refused("evaluate", "latest", "method=emmet", clean=False)


def test_no_runs_yet(refused):
    assert "There are no runs" in refused("evaluate", "latest")


@pytest.mark.parametrize("history", [None, "full"])
def test_an_edit_is_not_scored_on_another_model(precomputed, pipeline, home, gpt2_folder, tmp_path, history):
    folder = tmp_path / "model"
    shutil.copytree(gpt2_folder, folder)
    more = [f"method.sequence.history={history}"] if history else []
    report = pipeline(f"model.path={folder}", "dataset.batches=1", *more)
    past = find_run(home, report.mlflow_run_id)

    def change(target):
        tensors = load_file(target / "model.safetensors")
        tensors["transformer.h.1.mlp.c_proj.weight"] *= 0.5
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})

    def annotate(file):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"note": "changed"}))

    def refused(target, what):
        with pytest.raises(InputError, match=f"edited a model with {what}"):
            evaluate(compose_again(past.content, [f"model.path={target}"]), past.id)

    change(Path(shutil.copytree(folder, tmp_path / "other")))
    refused(tmp_path / "other", "other weights")
    for file, what in [("tokenizer_config.json", "another tokenizer"), ("config.json", "other weights")]:
        annotate(folder / file)
        refused(folder, what)
        shutil.copyfile(gpt2_folder / file, folder / file)
    assert evaluate(compose_again(past.content, []), past.id).metrics == report.metrics
    change(folder)
    refused(folder, "other weights")


def test_an_edit_is_scored_wherever_its_model_has_moved(plain_flows, ran, home, gpt2_folder, tmp_path):
    moved = shutil.copytree(gpt2_folder, tmp_path / "moved")
    assert again(home, f"model.path={moved}").metrics == ran.metrics


def test_a_home_may_be_moved(ran, pipeline, home, tmp_path, monkeypatch, arguments):
    first = ran
    moved = tmp_path / "moved"
    home.rename(moved)
    monkeypatch.setenv("FACTSMITH_HOME", str(moved))
    assert again(moved).metrics == first.metrics
    pipeline()
    assert not home.exists()
    for run in past_runs(moved):
        assert run.edits
