"""Sequential editing as a run: what is stored, continued, scored and logged."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pyarrow.parquet as pq
import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_table
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose, compose_again
from factsmith.flows.edit import edit
from factsmith.flows.evaluate import evaluate
from factsmith.tasks.edit import sequence_stage
from factsmith.tasks.edit.batch import merge
from factsmith.tasks.edit.sequence import SequenceWriter
from factsmith.tasks.edit.stage import read_deltas
from factsmith.tasks.model.checkpoint import Checkpoint
from factsmith.tasks.planning.plan import plan
from factsmith.tasks.planning.run import Run
from factsmith.tasks.tracking.runs import find_run
from factsmith.tasks.values.optimiser import NonFiniteValueError
from tests.conftest import load, load_plain
from tests.runs import artifacts, contents, count_scoring, states

STAGES = [
    "model", "tokens", "keys", "covariance", "factor", "contexts", "principal directions", "edit", "evaluation",
    "trajectory", "drift",
]  # fmt: skip
ONES = ("method.sequence.history=full", "method.batch_size=1", "method.sequence.checkpoint_every=2")


def ones(count: int, *more: str) -> list[str]:
    """Words of a sequence of single facts, scored at its end."""
    at = [] if any("evaluate_at" in word for word in more) else [f"method.sequence.evaluate_at=[{count}]"]
    return [*ONES, f"dataset.batches={count}", *at, *more]


@pytest.fixture
def pipeline(precomputed, pipeline):
    """Runs the pipeline in a home that has the statistics."""
    return pipeline


@pytest.fixture
def writes(monkeypatch) -> list[int]:
    """Facts of each batch that is written."""
    seen: list[int] = []
    write = SequenceWriter.write
    monkeypatch.setattr(
        SequenceWriter, "write", lambda self, facts, slack: seen.append(len(facts)) or write(self, facts, slack)
    )
    return seen


def results(store: Store) -> dict[str, str]:
    """Content of what a sequence comes to; how it was cut into shards is left out."""
    return {one.address: one.manifest.content for kind in ("edit", "perplexity") for one in artifacts(store, kind)}


def test_a_run_in_sequence_is_cached_like_any_other(pipeline, store, writes, monkeypatch):
    first = pipeline(*ones(5))
    assert list(states(first)) == STAGES
    assert {name for name, state in states(first).items() if state == "built"} == {*STAGES[6:]}
    assert writes == [1] * 5
    before = contents(store)
    monkeypatch.setattr(Checkpoint, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    second = pipeline(*ones(5))
    assert set(states(second).values()) == {"cached"}
    assert second.metrics == first.metrics
    assert contents(store) == before


def test_one_batch_in_sequence_is_a_batch(pipeline, store):
    alone = pipeline("dataset.batches=1")
    follows = pipeline("dataset.batches=1", "method.sequence.history=full")
    one, other = (read_deltas(artifact) for artifact in artifacts(store, "edit"))
    for layer, delta in one.items():
        assert (delta.dense() - other[layer].dense()).norm() < 1e-5 * delta.norm()
    assert follows.metrics["after"]["ES"] == alone.metrics["after"]["ES"]


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        pytest.param("sequence", 1, marks=pytest.mark.slow),
        pytest.param("sequence", 3, marks=pytest.mark.slow),
        pytest.param("edit", 1, marks=pytest.mark.slow),
    ],
)
def test_a_killed_sequence_ends_with_the_same_bytes(
    killed, pipeline, store, writes, tmp_path, monkeypatch, kind, number
):  # fmt: skip
    given = ones(5, "method.sequence.history=compressed", "method.sequence.tau=2", "method.sequence.energy=0.9")
    killed(kind, number, *given)
    kept = sum(shard.summary["facts"] for shard in artifacts(store, "sequence"))
    assert kept == {("sequence", 1): 0, ("sequence", 3): 4, ("edit", 1): 5}[kind, number]
    pipeline(*given)
    assert writes == [1] * (5 - kept)
    interrupted = contents(store)
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    pipeline(*given)
    assert contents(Store(tmp_path / "there")) == interrupted


def test_a_failing_batch_loses_nothing_that_was_written(pipeline, writes, monkeypatch):
    write = SequenceWriter.write

    def wear_out(self, requests, slack):
        if len(writes) == 3:
            raise NonFiniteValueError(requests[0])
        return write(self, requests, slack)

    with monkeypatch.context() as patch:
        patch.setattr(SequenceWriter, "write", wear_out)
        with pytest.raises(InputError, match=r"NaN or infinite[^$]*dataset.batches=3 to score the batches"):
            pipeline(*ones(5, "method.sequence.checkpoint_every=50"))
    pipeline(*ones(3))
    assert writes == [1] * 3


def test_ctrl_c_between_two_batches_loses_nothing_that_was_written(pipeline, writes, monkeypatch):
    """A run beside others, as in a sweep, learns of Ctrl-C where it tells its progress."""

    @contextmanager
    def stopped(*_):
        def advance(done: int) -> None:
            if len(writes) == 3:
                raise KeyboardInterrupt

        yield advance

    with monkeypatch.context() as patch:
        patch.setattr(sequence_stage, "progress", stopped)
        with pytest.raises(KeyboardInterrupt):
            pipeline(*ones(5, "method.sequence.checkpoint_every=50"))
    pipeline(*ones(3))
    assert writes == [1] * 3


def test_a_longer_sequence_continues_a_shorter_one(pipeline, store, writes, tmp_path, monkeypatch):
    pipeline(*ones(3))
    pipeline(*ones(6))
    assert writes == [1] * 6
    grown = results(store)
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    pipeline(*ones(6))
    assert results(Store(tmp_path / "there")).items() <= grown.items()


def test_batches_that_two_sequences_begin_with_are_written_once(pipeline, store, writes, tmp_path, monkeypatch):
    """Even where the last batch of one of them was not full, and so is another batch in the other."""
    given = ("method.sequence.history=full", "method.batch_size=2", "dataset.batches=null")
    pipeline(*given, "dataset.limit=5")
    assert writes == [2, 2, 1]
    pipeline(*given, "dataset.limit=6")
    assert writes[3:] == [2]
    pipeline(*given, "dataset.limit=4")
    pipeline(*given, "dataset.limit=5", "method.sequence.evaluate_at=[2]")
    assert writes[4:] == []
    grown = results(store)
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    pipeline(*given, "dataset.limit=6")
    assert results(Store(tmp_path / "there")).items() <= grown.items()
    table = load_table(max(artifacts(store, "edit"), key=lambda one: one.summary["facts"]).path / "facts.parquet")
    assert table["batch"].to_pylist() == [1, 1, 2, 2, 3, 3]


def test_another_first_fact_is_another_sequence(pipeline, writes):
    pipeline(*ones(3))
    pipeline(*ones(3, "dataset.seed=1"))
    assert len(writes) == 6


def test_a_sequence_is_scored_later_at_other_counts_and_not_written_again(pipeline, store, writes, monkeypatch):
    pipeline(*ones(5))
    scored = count_scoring(monkeypatch)
    writes.clear()
    pipeline(*ones(5, "method.sequence.evaluate_at=[1,3]"))
    assert not writes
    assert scored == [1, 3]  # the unedited model and all five are there
    assert sorted(one.summary["facts"] for one in artifacts(store, "edit")) == [1, 3, 5]
    scored.clear()
    pipeline(*ones(5, "method.sequence.evaluate_at=[3,4]"))
    assert scored == [4]


def test_counts_are_scored_on_exactly_the_facts_so_far(pipeline, store, home):
    report = pipeline(*ones(5, "method.sequence.evaluate_at=[2]"))
    (kept,) = artifacts(store, "course")
    table = pq.read_table(kept.path / "course.parquet").to_pylist()
    assert sorted({row["edits"] for row in table}) == [0, 2, 5]
    found = {(row["edits"], row["scope"], row["metric"]): row["value"] for row in table}
    for name in ("ES", "PS", "NS", "S"):
        assert found[5, "all", name] == found[5, "first_100", name] == report.metrics["after"][name]
    past = find_run(home, report.mlflow_run_id)
    records = [row for row in past.records().to_pylist() if row["phase"] == "after" and row["metric"] == "ES"]
    assert len(records) == 5
    states_of = {one.digest: one.summary["facts"] for one in artifacts(store, "edit")}
    prompts = [
        (states_of[one.manifest.recipe["series"]["inputs"]["edit"]], one.summary["records"])
        for one in artifacts(store, "scores")
        if "edit" in one.manifest.recipe["series"]["inputs"]
    ]
    assert sorted(prompts) == [(2, 2), (5, 5)]


def test_curves_have_the_number_of_edits_as_step(pipeline, home):
    from mlflow import MlflowClient

    report = pipeline(*ones(5, "method.sequence.evaluate_at=[2]"))
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")

    def steps(name: str) -> list[int]:
        return [point.step for point in client.get_metric_history(report.mlflow_run_id, name)]

    assert steps("sequence/ES") == steps("sequence/first_100/ES") == [2, 5]
    assert steps("sequence/perplexity") == [0, 2, 5]
    for name in ("change/relative/layer_0", "safety/step/layer_1", "safety/total_rest/layer_1", "sequence/reached"):
        assert steps(name) == [1, 2, 3, 4, 5]
    attached = {file.path for file in client.list_artifacts(report.mlflow_run_id)}
    assert {"sequence.png", "before_after.png", "edits.json"} <= attached
    tables = {file.path for file in client.list_artifacts(report.mlflow_run_id, "sequence")}
    assert tables == {"sequence/trajectory.parquet", "sequence/measures.parquet", "sequence/facts.parquet"}


@pytest.mark.parametrize("kept", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_safety_is_measured_along_the_same_directions_whatever_the_method(pipeline, store, kept):
    """Full and low-rank preservation of the same tokens share the principal directions of C0."""
    given = ones(2, "corpus.dynamic_multiplier=20", f"corpus.keep_keys={kept}")
    pipeline(*given)
    directions = {one.address for one in artifacts(store, "directions")}
    tokens = artifacts(store, "covariance")[0].summary["tokens"]
    low_rank = [word for word in given if "multiplier" not in word]
    report = pipeline(*low_rank, "method=memit-f", f"method.low_rank.n_samples={tokens}")
    assert states(report)["principal directions"] == "cached"
    assert {one.address for one in artifacts(store, "directions")} == directions


def test_a_method_that_models_few_keys_has_directions_too(pipeline, store):
    report = pipeline(*ones(2), "method=memit-f", "method.low_rank.n_samples=30", "method.low_rank.rank=5")
    assert states(report)["principal directions"] == "built"
    assert "covariance" not in states(report)
    assert all(one.summary["energy"] >= 0.9 for one in artifacts(store, "directions"))


def test_the_edits_of_a_sequence_are_scored_by_an_earlier_run(pipeline, home, writes):
    first = pipeline(*ones(4, "method.sequence.evaluate_at=[2]"))
    writes.clear()
    past = find_run(home, "latest")
    again = evaluate(compose_again(past.content, []), past.id)
    assert again.metrics == first.metrics
    assert set(states(again).values()) == {"cached"}
    assert not writes


def test_the_edited_model_holds_all_batches(precomputed, plain_flows, arguments, store, gpt2_folder, tmp_path):
    out = tmp_path / "edited"
    edit(compose(arguments(*ones(4))), out)
    (artifact,) = artifacts(store, "edit")
    expected = load(gpt2_folder)
    merge(expected, read_deltas(artifact))
    tokens = torch.tensor([[5, 80, 17, 300, 33]])
    with torch.no_grad():
        model = load_plain(out)
        assert torch.equal(model(input_ids=tokens).logits, expected.model(input_ids=tokens).logits)
    assert len(json.loads((out / "factsmith.json").read_text())["facts"]) == 4


def test_a_plan_counts_what_is_left_to_write(pipeline, arguments, home):
    def planned(*more: str):
        return {one.name: one for one in plan(Run(compose(arguments(*more)), Store(home)))}

    fresh = planned(*ones(3))
    assert list(fresh) == STAGES
    assert (fresh["edit"].missing, fresh["edit"].total) == (3, 3)
    report = pipeline(*ones(3))
    assert not any(stage.missing or stage.flop for stage in planned(*ones(3)).values())
    assert list(states(report)) == list(fresh)
    longer = planned(*ones(5))
    assert longer["edit"].missing == 2
    assert 0 < longer["edit"].flop < planned(*ones(5, "dataset.seed=1"))["edit"].flop
    assert planned(*ones(3, "method.sequence.evaluate_at=[1]"))["edit"].flop == 0  # from shards


def test_facts_of_a_batch_that_collide_are_named(pipeline, caplog, tmp_path):
    """The key is read at the subject's end: what comes behind it does not tell two facts apart."""
    path = tmp_path / "facts.csv"
    path.write_text(
        "subject,prompt,target_new\nAda Lovelace,{} was born in,London\n"
        "Mara Flousano,{} speaks,Danish\nMara Flousano,{} lives in,Oslo\n"
    )
    facts = ("dataset=facts", f"dataset.path={path}", "dataset.batches=null", "method.batch_size=all")
    report = pipeline(*facts, "method.sequence.history=none")
    (line,) = [record.getMessage() for record in caplog.records if "nearly the same key" in record.getMessage()]
    assert "'Mara Flousano speaks'" in line
    assert "'Mara Flousano lives in'" in line
    assert "of their residuals" in line
    assert report.metrics["after"]["ES"] is None  # no true objects are known


def test_counts_beyond_the_facts_are_refused_before_anything_starts(refused, arguments):
    message = refused("run", *arguments(*ones(3, "method.sequence.evaluate_at=[1,4]")))
    assert "method.sequence.evaluate_at" in message
    assert "1 to 3" in message


def test_a_sequence_of_several_batches_may_be_written_out(arguments, home, tmp_path):
    from factsmith.tasks.planning.preflight import check_input

    check_input(Run(compose(arguments(*ones(3))), Store(home)), dataset=True, out=tmp_path / "out")
    with pytest.raises(InputError, match="edited independently"):
        check_input(Run(compose(arguments("dataset.batches=2")), Store(home)), dataset=True, out=tmp_path / "out")
