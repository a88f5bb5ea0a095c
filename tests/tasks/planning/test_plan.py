"""A run does what its plan says."""

from __future__ import annotations

import json

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.precompute import precompute
from factsmith.flows.sweeps.plan_table import plan_table
from factsmith.tasks.evaluation.trajectory_stage import HELD_OUT
from factsmith.tasks.keys import stage as keys_stage
from factsmith.tasks.keys.block_keys import block_keys
from factsmith.tasks.model.checkpoint import open_checkpoint
from factsmith.tasks.model.cost import model_cost
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.planning.plan import StagePlan, plan
from factsmith.tasks.planning.precompute_plan import unstored
from factsmith.tasks.planning.run import Run
from factsmith.tasks.preservation.kind import load_kind


@pytest.fixture
def planned(home, arguments):
    """The plan of a run of the tiny model, by stage."""

    def call(*more: str, dataset: bool = True) -> dict[str, StagePlan]:
        run = Run(compose(arguments(*more)), Store(home))
        return {stage.name: stage for stage in plan(run, dataset=dataset)}

    return call


def test_everything_is_missing_before_a_run_and_nothing_after(planned, pipeline):
    before = planned()
    assert all(stage.missing for stage in before.values())
    report = pipeline()
    assert [stage.name for stage in report.stages] == list(before)
    after = planned()
    assert not any(stage.missing for stage in after.values())
    assert not any(stage.flop for stage in after.values())


def test_a_sequence_is_planned_with_its_held_out_text(precomputed, planned, pipeline):
    given = ("method.sequence.history=full", "method.batch_size=2", "dataset.batches=3")
    pipeline(*given, "method.sequence.evaluate_at=[2]")
    before = planned(*given, "method.sequence.evaluate_at=[4]")
    assert (before["edit"].missing, before["evaluation"].missing) == (0, 0), "six facts are written and scored"
    assert before["trajectory"].missing == 4 + HELD_OUT, "of four facts, nothing is known"
    assert before["trajectory"].total == 4 + 3 * HELD_OUT
    pipeline(*given, "method.sequence.evaluate_at=[4]")
    assert not any(stage.missing for stage in planned(*given, "method.sequence.evaluate_at=[4]").values())


def test_only_what_is_new_is_planned(planned, pipeline, arguments, monkeypatch):
    monkeypatch.setattr(keys_stage, "_SHARD_ROWS", 400)
    pipeline()
    more = planned("corpus.dynamic_multiplier=45", "dataset.batches=3")
    assert more["model"].missing == more["contexts"].missing == 0
    assert more["keys"].missing == 1200 - 800 + 800  # 800 rows are there, 2,000 are wanted
    assert more["values"].missing == 3
    assert more["evaluation"].missing == 3 + 9
    (layer,) = {stage.missing for stage in [planned("method.layers=[0,1,2]", dataset=False)["covariance"]]}
    assert layer == 1


def test_keys_that_are_not_kept_are_not_planned(planned, arguments, plain_flows):
    unkept = planned("corpus.keep_keys=false", dataset=False)
    assert list(unkept) == ["model", "tokens", "covariance", "factor"]
    assert unkept["covariance"].memory > 3 * 8 * 40**2
    precompute(compose(arguments("corpus.keep_keys=false")))
    assert not any(stage.missing for stage in planned("corpus.keep_keys=false", dataset=False).values())


@pytest.mark.parametrize(
    ("given", "kept", "absent"),
    [
        ([], False, ["keys", "factors"]),
        (["corpus.keep_keys=true"], True, ["factors"]),
        (["corpus.dynamic_multiplier=auto"], True, ["factors"]),
        (["method=memit-f", "method.low_rank.n_samples=25", "method.low_rank.rank=12"], True, ["factors"]),
        (["method=memit-f", "method.low_rank.n_samples=800", "method.low_rank.rank=12"], False, ["keys", "factors"]),
    ],
)
def test_a_gpu_stores_what_it_reads_again(planned, arguments, store, monkeypatch, given, kept, absent):
    monkeypatch.setattr(Workspace, "devices", [torch.device("cuda")])
    run = Run(compose(arguments("runtime.memory_mb=64", *given)), store)
    assert run.keeps_keys == kept
    assert unstored(run) == absent
    stages = {stage.name: stage for stage in plan(run, dataset=False)}
    assert ("keys" in stages) == kept
    assert stages["factor"].bytes == 0
    text = Console(width=200)
    with text.capture() as shown:
        text.print(plan_table(list(stages.values()), "a run", absent))
    assert f"{' and '.join(absent).capitalize()} are not stored" in shown.get()


def test_large_low_rank_factors_take_longer_to_make_than_to_read(monkeypatch, arguments, store):
    """On a GPU: a Cholesky factorisation of d_k = 14,336 is quick, an eigendecomposition is not."""
    monkeypatch.setattr(Workspace, "devices", [torch.device("cuda")])
    settings = compose(arguments("method=memit-f", "method.low_rank.n_samples=40000", "method.low_rank.rank=5958"))
    workspace = Run(settings, store).workspace
    low_rank = load_kind(settings.method, width=14336, keep_keys=True).cost
    assert workspace.is_worth_storing(low_rank.flop, low_rank.bytes)
    full = load_kind(compose(arguments()).method, width=14336, keep_keys=True).cost
    assert not workspace.is_worth_storing(full.flop, full.bytes)


def test_a_corpus_known_to_be_too_small_is_refused_as_in_a_run(planned, arguments, plain_flows, tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("A short document about Rome, and about Athens.\n" * 20)
    small = ["corpus=local", f"corpus.path={path}", "corpus.tokens=100"]
    precompute(compose(arguments(*small)))
    assert planned(*small, dataset=False)["tokens"].bytes == 0
    for run in (lambda more: planned(*more, dataset=False), lambda more: precompute(compose(arguments(*more)))):
        with pytest.raises(InputError, match="too small"):
            run([*small[:2], "corpus.tokens=100000"])


def test_bytes_of_keys_are_those_on_disk(planned, plain_flows, arguments, store):
    expected = planned()["keys"].bytes
    precompute(compose(arguments()))
    written = sum(path.stat().st_size for path in store.root.glob("artifacts/keys/*/*/keys/0.0"))
    assert expected == pytest.approx(written, rel=0.01)


def weight_flop(counter: FlopCounterMode) -> int:
    """FLOP of products with weights; an attention without a name of its own is batched products."""
    counted = counter.get_flop_counts()["Global"]
    attention = {"attention", "bmm", "baddbmm"}
    return sum(count for name, count in counted.items() if not attention & set(str(name).split(".")[1].split("_")))


def test_flop_are_those_that_torch_counts(model_folder, decoder):
    """Besides attention, which depends on who attends to whom and is small beside the matrices."""
    cost = model_cost(open_checkpoint(model_folder))
    assert cost.parameters == sum(parameter.numel() for parameter in decoder.model.parameters())
    tokens = torch.arange(3, 33)[None]
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        decoder.logits(decoder.run(decoder.embed(tokens), 0, decoder.block_count))
    expected = cost.block_flop(cost.blocks, 30) + cost.logits_flop(30)
    assert weight_flop(counter) == pytest.approx(expected, rel=0.02)

    with FlopCounterMode(display=False) as counter:
        block_keys(decoder, [tokens[0].tolist()], [0, 2], most_tokens=100)
    assert weight_flop(counter) == pytest.approx(cost.key_flop(2, 30, 0), rel=0.02)


def test_a_file_of_facts_is_planned_as_it_would_be_written(factsmith, arguments, tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text("subject,prompt,target_new\nAda Lovelace,{} was born in,London\nMara,{} speaks,Danish\n")
    given = [word for word in arguments() if not word.startswith(("dataset", "method.batch_size"))]
    result = factsmith("plan", str(path), *given, "--json")
    assert result.code == 0, result.err
    stages = {stage["name"]: stage for stage in json.loads(result.out)["stages"]}
    assert stages["values"]["missing"] == stages["edit"]["missing"] == 2
