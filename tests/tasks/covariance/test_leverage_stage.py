"""An automatic dynamic multiplier: the first at which C0 fits held-out keys. Reports of precompute."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.keys import read_keys
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.precompute import precompute
from factsmith.flows.reporting.reports import PrecomputeReport
from factsmith.flows.reporting.sweeps.results import sweep_tables, write_sweep
from factsmith.flows.sweeps.cells import open_sweep
from factsmith.flows.sweeps.sweep import run_sweep
from factsmith.tasks.keys import stage as keys_stage
from factsmith.tasks.model.checkpoint import Checkpoint
from factsmith.tasks.planning.plan import StagePlan, plan
from factsmith.tasks.planning.run import Run
from tests.reports import cell, report_of
from tests.runs import artifacts, contents, count_positions, run_as_functions, states, tiny_arguments

AUTO = ("corpus.dynamic_multiplier=auto", "corpus.auto.held_out=800")
WIDTH = 40

pytestmark = pytest.mark.usefixtures("plain_flows", "home")


@pytest.fixture
def prepared(arguments, monkeypatch):
    """Precompute the tiny model with an automatic d_m and some more words, in small shards of keys."""
    monkeypatch.setattr(keys_stage, "_SHARD_ROWS", 400)
    return lambda *more, report=False: precompute(compose(arguments(*AUTO, *more)), report)


@dataclass
class Found:
    """A home in which an automatic d_m was found, its store, and the report."""

    home: Path
    store: Store
    report: PrecomputeReport


@pytest.fixture(scope="module")
def found(tmp_path_factory, gpt2_folder, _mlflow_tables) -> Found:
    """As ``prepared()`` leaves it. Tests share it, as they only read it, or run what is cached."""
    home = tmp_path_factory.mktemp("found") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACTSMITH_HOME", str(home))
        patch.setattr(keys_stage, "_SHARD_ROWS", 400)
        run_as_functions(patch)
        return Found(home, Store(home), precompute(compose(tiny_arguments(gpt2_folder, *AUTO))))


def measured(store: Store) -> dict[int, dict[int, float | None]]:
    """Leverages by layer and tokens."""
    found: dict[int, dict[int, float | None]] = {}
    for one in sorted(artifacts(store, "leverage"), key=lambda one: one.key["tokens"]):
        found.setdefault(one.key["layer"], {})[one.key["tokens"]] = one.summary["leverage"]
    return found


def all_keys(store: Store, layer: int) -> np.ndarray:
    shards = [one for one in artifacts(store, "keys") if one.key["layer"] == layer]
    return np.concatenate([read_keys(one) for one in sorted(shards, key=lambda one: one.key["start"])])


def test_it_is_the_first_step_at_which_every_layer_is_within_tolerance(found):
    report, store = found.report, found.store
    assert list(states(report)) == ["model", "tokens", "leverage", "keys", "covariance", "factor"]
    assert report.dynamic_multiplier == 8
    curves = measured(store)
    assert {tuple(curve) for curve in curves.values()} == {(80, 120, 160, 240, 320)}
    worst = {tokens: max(curve[tokens] for curve in curves.values()) for tokens in curves[0]}
    assert all(value > 1.25 for tokens, value in worst.items() if tokens < 320)
    assert min(curve[240] for curve in curves.values()) < 1.25, "one layer alone would have stopped before"
    assert worst[320] <= 1.25
    (tokens,) = {one.summary["tokens"] for one in artifacts(store, "covariance")}
    assert tokens == 320
    for layer, curve in curves.items():
        keys = all_keys(store, layer).astype(np.float64)
        assert len(keys) == 1200, "what 320 and those held out take, in whole shards"
        for count, value in curve.items():
            inverse = np.linalg.inv(keys[:count].T @ keys[:count] / count)
            behind = keys[count : count + 800]
            expected = np.einsum("nd,de,ne->n", behind, inverse, behind).mean() / WIDTH
            assert value == pytest.approx(expected, rel=1e-9)


def test_an_automatic_multiplier_gives_the_artifacts_of_its_number(prepared, arguments, found, tmp_path, monkeypatch):
    monkeypatch.setenv("FACTSMITH_HOME", str(found.home))
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "load", lambda *_, **__: pytest.fail("a model was loaded"))
        again = prepared()
        number = precompute(compose(arguments("corpus.dynamic_multiplier=8")))
    assert set(states(again).values()) == {"cached"}
    assert set(states(number).values()) == {"cached"}
    assert states(again).keys() - states(number).keys() == {"leverage"}
    assert [one.artifact for one in again.stages if one.name != "leverage"] == [one.artifact for one in number.stages]

    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    precompute(compose(arguments("corpus.dynamic_multiplier=8")))
    assert contents(Store(tmp_path / "there")).items() <= contents(found.store).items()


def test_a_covariance_that_is_there_is_not_added_up_again_and_gives_the_same_bytes(
    prepared, arguments, found, tmp_path, monkeypatch
):
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    for multiplier in (3, 6):
        precompute(compose(arguments(f"corpus.dynamic_multiplier={multiplier}")))
    prepared()
    made = {one.address: one.manifest.content for one in artifacts(Store(tmp_path / "there"), "leverage")}
    assert made == {one.address: one.manifest.content for one in artifacts(found.store, "leverage")}
    assert len(made) == 10


def test_an_interrupted_run_uses_the_keys_and_leverages_that_are_there(prepared, store, tmp_path, monkeypatch):
    class Killed(BaseException):
        """Nothing in the pipeline may catch it."""

    publish = Store._publish

    def dies(self, draft, seconds):
        if draft.recipe.series.kind == "leverage" and dict(draft.recipe.key) == {"layer": 1, "tokens": 160}:
            raise Killed
        publish(self, draft, seconds)

    monkeypatch.setattr(Store, "_publish", dies)
    with pytest.raises(Killed):
        prepared("corpus.auto.steps=[3,4,20]", "corpus.auto.tolerance=1.2")
    assert measured(store).keys() == {0, 1}
    assert len(artifacts(store, "leverage")) == 3

    monkeypatch.setattr(Store, "_publish", publish)
    seen = count_positions(monkeypatch)
    report = prepared("corpus.auto.steps=[3,4,20]", "corpus.auto.tolerance=1.2")
    assert report.dynamic_multiplier == 20
    assert 0 < sum(seen) < 1.4 * (1600 - 1200) + 2 * 256, "keys of 1,200 tokens were there"
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    prepared("corpus.auto.steps=[3,4,20]", "corpus.auto.tolerance=1.2")
    assert contents(Store(tmp_path / "there")) == contents(store)


def test_a_cap_that_is_reached_is_reported_and_used(prepared, store, caplog):
    report = prepared("corpus.auto.steps=[0.5,4,3,3]", "corpus.auto.tolerance=1.01")
    assert report.dynamic_multiplier == 4
    assert measured(store)[0][20] is None, "C0 of 20 tokens is singular"
    warning = "With 160 tokens (d_m = 4) the held-out leverage is still above corpus.auto.tolerance=1.01: layer 0"
    assert warning in caplog.text
    assert "corpus ends" not in caplog.text


def small_corpus(folder: Path, lines: int) -> list[str]:
    """Words for a corpus of so many short documents."""
    path = folder / "corpus.txt"
    path.write_text("".join(f"Person {one} of town {one % 7} speaks {one * one}.\n" for one in range(lines)))
    return ["corpus=local", f"corpus.path={path}"]


def test_a_corpus_that_ends_before_is_used_as_far_as_it_goes(prepared, arguments, store, tmp_path, caplog):
    small = [*small_corpus(tmp_path, 90), "corpus.auto.tolerance=1.0001"]
    report = prepared(*small)
    (tokens,) = artifacts(store, "tokens")
    assert tokens.summary["last"]
    fitting = [one for one in (2, 3, 4, 6, 8, 10, 15, 20, 30, 40) if one * WIDTH + 800 <= tokens.summary["stop"]]
    assert report.dynamic_multiplier == fitting[-1] < 40
    assert "and the corpus ends after" in caplog.text
    assert not any(one.missing for one in plan(Run(compose(arguments(*AUTO, *small)), store), dataset=False))
    with pytest.raises(InputError, match="too small") as caught:
        prepared(*small_corpus(tmp_path, 3))
    assert "corpus.auto.held_out" in str(caught.value)


def test_mlflow_has_the_curves_and_what_they_led_to(found):
    report = found.report
    client = MlflowClient(f"sqlite:///{found.home / 'mlflow.db'}")
    run = client.get_run(report.mlflow_run_id)
    assert run.data.metrics["dynamic_multiplier"] == 8
    assert run.data.tags["corpus.dynamic_multiplier"] == "8"
    assert run.data.params["corpus.dynamic_multiplier"] == "auto"
    history = client.get_metric_history(report.mlflow_run_id, "leverage/layer_1")
    assert {one.step: one.value for one in history} == measured(found.store)[1]
    assert "leverage.png" in {one.path for one in client.list_artifacts(report.mlflow_run_id)}


def test_a_plan_says_at_most_before_and_nothing_after(prepared, arguments, store):
    def planned(*more: str) -> dict[str, StagePlan]:
        return {one.name: one for one in plan(Run(compose(arguments(*AUTO, *more)), store), dataset=False)}

    before = planned()
    assert (before["leverage"].missing, before["leverage"].unit) == (20, "measurements at most")
    assert (before["keys"].missing, before["keys"].unit) == (2400, "tokens at most")
    report = prepared()
    after = planned()
    assert list(after) == list(before) == [stage.name for stage in report.stages]
    assert not any(stage.missing or stage.flop for stage in after.values())
    assert (after["leverage"].total, after["keys"].total, after["keys"].unit) == (10, 400, "tokens")
    assert planned("corpus.auto.tolerance=1.01")["leverage"].missing == 10


def test_keys_must_be_kept_to_find_a_number(arguments):
    for more in (["corpus.keep_keys=false"], ["corpus.auto.steps=[]"], ["corpus.auto.steps=[0]"]):
        with pytest.raises(InputError) as caught:
            compose(arguments(*AUTO, *more))
        assert more[0].partition("=")[0] in str(caught.value)
    assert compose(arguments("corpus.keep_keys=false", "corpus.tokens=100")).corpus.tokens == 100


# ------------------------------------------------------------------------------------------------------- reports


HELD_OUT = "corpus.auto.held_out"  # A report reads it in any case.


@pytest.mark.parametrize("kept", [pytest.param("true", marks=pytest.mark.slow), "false"])
def test_a_report_by_hand(arguments, home, store, kept, monkeypatch, tmp_path):
    given = arguments("corpus.dynamic_multiplier=5", "corpus.auto.held_out=800", f"corpus.keep_keys={kept}")
    report = precompute(compose(given, reads=[HELD_OUT]), report=True)
    assert list(states(report))[-2:] == ["leverage", "spectrum"]
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    precompute(compose(arguments("corpus.dynamic_multiplier=25")))
    for one in report.layers:
        keys = all_keys(Store(tmp_path / "there"), one.layer).astype(np.float64)
        c0 = keys[:200].T @ keys[:200] / 200
        values = np.linalg.eigvalsh(c0)[::-1]
        shares = values / values.sum()
        leverage = np.einsum("nd,de,ne->n", keys[200:1000], np.linalg.inv(c0), keys[200:1000]).mean() / WIDTH
        assert (one.tokens, one.dynamic_multiplier) == (200, 5)
        assert one.leverage == pytest.approx(leverage, rel=1e-9)
        assert one.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
        assert one.condition_number == pytest.approx(values[0] / values[-1], rel=1e-9)
        places = {"largest": 0, "1%": 0, "10%": 4, "median": 20, "90%": 35, "99%": 39, "smallest": 39}
        assert one.eigenvalues == pytest.approx({name: values[place] for name, place in places.items()}, rel=1e-9)
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    logged = client.get_run(report.mlflow_run_id).data.metrics
    assert logged["effective_rank/layer_0"] == report.layers[0].effective_rank
    (point,) = client.get_metric_history(report.mlflow_run_id, "leverage/layer_0")
    assert (point.step, point.value) == (200, report.layers[0].leverage)
    assert "spectra.png" in {one.path for one in client.list_artifacts(report.mlflow_run_id)}


def test_a_report_of_what_cannot_be_measured(arguments, tmp_path):
    few = arguments("corpus.tokens=30", "method.ridge=auto", "corpus.auto.held_out=50")
    singular = precompute(compose(few, reads=[HELD_OUT]), report=True)
    assert {(one.leverage, one.condition_number) for one in singular.layers} == {(None, None)}
    assert all(1 < one.effective_rank <= 30 for one in singular.layers)
    ended = precompute(compose(arguments(*small_corpus(tmp_path, 40), "corpus.dynamic_multiplier=5")), report=True)
    assert "leverage" not in states(ended)
    assert all(one.leverage is None and one.condition_number for one in ended.layers)


def test_the_command_line(factsmith, plain_flows, arguments):
    shown = factsmith("precompute", *arguments(*AUTO), "--report")
    assert shown.code == 0, shown.err
    assert "320 tokens, d_m = 8" in shown.out
    assert "corpus.dynamic_multiplier=auto: 8" in shown.out
    told = json.loads(factsmith("precompute", *arguments(*AUTO), "--report", "--json").out)
    assert {one["state"] for one in told["stages"]} == {"cached"}
    assert told["dynamic_multiplier"] == 8
    assert [one["layer"] for one in told["layers"]] == [0, 1]
    assert f"{told['layers'][1]['leverage']:.3f}" in shown.out
    assert "layers" not in json.loads(factsmith("precompute", *arguments(*AUTO), "--json").out)


# -------------------------------------------------------------------------------------------------------- sweeps


def test_a_sweep_shows_it_beside_the_numbers(arguments, tmp_path):
    given = arguments(*AUTO, "corpus.dynamic_multiplier=3,auto,8", "dataset.batches=1")
    report = run_sweep(open_sweep(given))
    found = {one.place["corpus.dynamic_multiplier"]: one for one in report.cells}
    assert not any(one.error for one in report.cells)
    assert (found["auto"].tokens, found["auto"].dynamic_multiplier) == (320, 8)
    assert found["auto"].metrics == found["8"].metrics
    assert found["3"].dynamic_multiplier == 3
    assert "score_by_multiplier.png" in {path.name for path in write_sweep(report, tmp_path)}


def test_its_column_stands_behind_the_numbers_by_hand():
    auto = cell(92, b=1, d="auto").model_copy(update={"tokens": 500, "dynamic_multiplier": 5.0})
    other = cell(80, b=16, d="auto").model_copy(update={"tokens": 1500, "dynamic_multiplier": 15.0})
    report = report_of(cell(50, b=1, d=2), cell(100, b=1, d=10), auto, cell(60, b=16, d=2), cell(70, b=16, d=10), other)
    overview, fast = sweep_tables(report)
    assert overview.columns == ["batch", "2", "10", "auto"]
    assert overview.rows == [
        ["1", "50.0 !\n48-52", "100.0\n98-102", "92.0 !\n90-94 at 5"],
        ["16", "60.0 !\n58-62", "70.0 !\n68-72", "80.0\n78-82 at 15"],
    ]
    assert [row[:2] for row in fast.rows] == [["2", "1"], ["2", "16"], ["auto", "1"], ["auto", "16"]]
    assert fast.rows[2][-1] == "92%"
