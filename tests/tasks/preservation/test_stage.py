"""Every kind of preservation in the pipeline: what is built, shared, planned and refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_tensors
from factsmith.artifacts.keys import read_keys
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.precompute import precompute
from factsmith.tasks.covariance import stage as covariance_stage
from factsmith.tasks.covariance.stage import load_moments
from factsmith.tasks.edit.stage import read_deltas
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.planning.plan import plan
from factsmith.tasks.planning.run import Run
from factsmith.tasks.preservation import stage as preservation_stage
from tests.conftest import load
from tests.runs import artifacts, contents, states

MANY = ["method.low_rank.n_samples=800"]
FEW = ["method.low_rank.n_samples=25", "method.low_rank.prior_rank=5", "method.low_rank.rank=12"]

BEFORE = ["model", "tokens", "keys"]
AFTER = ["factor", "contexts", "values", "edit", "evaluation", "drift"]
KINDS = {
    "full": ([], [*BEFORE, "covariance", *AFTER]),
    "low_rank of many": (["method=memit-f", *MANY], [*BEFORE, "covariance", *AFTER]),
    "low_rank of few": (["method=emmet-f", *FEW], [*BEFORE, *AFTER]),
    "low_rank of few that are not kept": (
        ["method=memit-f", *FEW, "corpus.keep_keys=false"],
        ["model", "tokens", "covariance", *AFTER],
    ),
    "null_space": (["method=alphaedit", "method.null_space.threshold=0.1"], [*BEFORE, "covariance", *AFTER]),
    "null_space of low_rank": (["method=alphaedit-f", *FEW], [*BEFORE, *AFTER]),
    "identity": (["method.preservation=identity"], ["model", *AFTER[:-1]]),
}


def kinds(*quick: str) -> list[Any]:
    """All kinds. Those that are not ``quick`` are slow: a kind is quick in the test to which it matters most."""
    assert set(quick) <= set(KINDS)
    return [kind if kind in quick else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("kind", kinds("low_rank of many"))
def test_what_is_held_is_not_read_again_and_changes_nothing(kind, pipeline, store, tmp_path, monkeypatch):
    """On a GPU, results stay where they were made."""
    given = [*KINDS[kind][0], "dataset.batches=1"]
    pipeline(*given)
    written = contents(store)
    read: list[str] = []

    def counted(path, *more):
        read.append(path.name)
        return load_tensors(path, *more)

    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    monkeypatch.setattr(Workspace, "can_hold", lambda workspace, size: True)
    for module in (covariance_stage, preservation_stage):
        monkeypatch.setattr(module, "load_tensors", counted)
    pipeline(*given)
    assert read == []
    assert contents(Store(tmp_path / "there")) == written


@pytest.mark.parametrize("kind", kinds("null_space of low_rank"))
def test_a_factor_that_is_not_stored_is_made_again_to_the_same_edits(kind, pipeline, store, tmp_path, monkeypatch):
    """On a GPU, making it takes less time than reading it."""
    given = [*KINDS[kind][0], "dataset.batches=1"]
    pipeline(*given)
    edits = [(one.digest, contents(store)[one.address]) for one in artifacts(store, "edit")]
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    monkeypatch.setattr(Workspace, "is_worth_storing", lambda *_: False)
    there = Store(tmp_path / "there")
    summaries = [one.summary for one in artifacts(store, "factor")]
    pipeline(*given)
    for factor in artifacts(there, "factor"):
        assert [file.name for file in factor.path.glob("*") if file.name != "manifest.json"] == ["summary.json"]
    assert [one.summary for one in artifacts(there, "factor")] == summaries
    assert [(one.digest, contents(there)[one.address]) for one in artifacts(there, "edit")] == edits
    assert set(states(pipeline(*given)).values()) == {"cached"}


@pytest.mark.parametrize("kind", kinds("full", "low_rank of few", "low_rank of few that are not kept", "identity"))
def test_a_run_is_what_was_planned_and_no_more(kind, pipeline, arguments, store):
    more, stages = [*KINDS[kind][0], "dataset.batches=1"], KINDS[kind][1]

    def planned():
        return {stage.name: stage for stage in plan(Run(compose(arguments(*more)), Store(store.root)))}

    before = planned()
    assert list(before) == stages
    assert all(stage.missing for stage in before.values())
    report = pipeline(*more)
    assert [stage.name for stage in report.stages] == stages
    assert not any(stage.missing or stage.flop or stage.bytes for stage in planned().values())
    assert set(states(pipeline(*more)).values()) == {"cached"}
    written = sum(one.manifest.size for one in artifacts(store, "factor"))
    assert written < 2 * before["factor"].bytes + 20_000
    for artifact in artifacts(store, "edit"):
        assert all(torch.isfinite(delta.dense()).all() for delta in read_deltas(artifact).values())


def rows(store: Store, count: int) -> torch.Tensor:
    """The first keys of the one layer that was edited."""
    shards = sorted(artifacts(store, "keys"), key=lambda one: one.key["start"])
    return torch.from_numpy(np.concatenate([read_keys(shard) for shard in shards])[:count].astype(np.float64))


@pytest.mark.parametrize("centred", [True, False])
def test_the_low_rank_model_is_that_of_the_first_keys(plain_flows, arguments, store, gpt2_folder, centred):
    """By hand: covariance, the projection's part at its Frobenius norm, leading eigenvectors, the diagonal."""
    given = ["method.layers=[1]", "method.low_rank.prior_fraction=0.3", "method.low_rank.prior_rank=6"]
    given += ["method.low_rank.rank=11", f"method.low_rank.centred={centred}"]
    precompute(compose(arguments("method=memit-f", *MANY, *given)))
    (artifact,) = artifacts(store, "factor")
    keys = rows(store, 800)
    data = torch.cov(keys.T) if centred else keys.T @ keys / 800
    weight = load(gpt2_folder).weight(1).detach().double()
    _, values, right = torch.linalg.svd(weight, full_matrices=False)
    structure = right[:6].T * values[:6].square() @ right[:6]
    fused = 0.7 * data + 0.3 * structure * data.norm() / structure.norm()
    eigenvalues, vectors = torch.linalg.eigh(fused)
    low = vectors[:, -11:] * eigenvalues[-11:] @ vectors[:, -11:].T
    tensors = load_tensors(artifact.path / "low_rank.safetensors")
    found = tensors["basis"] * tensors["values"] @ tensors["basis"].T
    assert (found - low).norm() < 1e-6 * low.norm()
    assert torch.allclose(tensors["diagonal"], (fused - low).diagonal(), rtol=1e-6)
    assert artifact.summary["rank"] == 11
    assert artifact.summary["energy"] == pytest.approx(float(eigenvalues[-11:].sum() / eigenvalues.sum()))


@pytest.mark.parametrize("centred", [True, False])
def test_few_keys_give_the_same_edit_whether_they_are_kept_or_added_up(pipeline, store, centred):
    """From the keys, without their covariance, as from the covariance."""
    given = ["method=memit-f", *FEW, "method.layers=[1]", "dataset.batches=1", f"method.low_rank.centred={centred}"]
    pipeline(*given)
    (kept,) = artifacts(store, "edit")
    pipeline(*given, "corpus.keep_keys=false")
    (added,) = (one for one in artifacts(store, "edit") if one.digest != kept.digest)
    one, other = read_deltas(kept)[1].dense(), read_deltas(added)[1].dense()
    assert (one - other).norm() < 1e-6 * one.norm()


def test_the_low_rank_family_shares_its_factors_at_every_weight(pipeline, store):
    pipeline("method=memit-f", *MANY, "dataset.batches=1")
    for more in (["method=memit-f", "method.preservation_weight=7"], ["method=emmet-f"], ["method=alphaedit-f"]):
        report = pipeline(*more, *MANY, "dataset.batches=1")
        assert {name for name, state in states(report).items() if state == "built"} == {"edit", "evaluation", "drift"}
    assert len(artifacts(store, "factor")) == 2
    assert len(artifacts(store, "edit")) == 4


def test_emmet_f_is_memit_f_at_another_weight(pipeline, store):
    pipeline("method=memit-f", *MANY, "method.preservation_weight=2", "dataset.batches=1")
    (memit,) = artifacts(store, "edit")
    pipeline("method=emmet-f", *MANY, "method.slack=0.5", "method.preservation_weight=4", "dataset.batches=1")
    (emmet,) = (one for one in artifacts(store, "edit") if one.digest != memit.digest)
    for layer, delta in read_deltas(memit).items():
        assert (delta.dense() - read_deltas(emmet)[layer].dense()).norm() < 1e-5 * delta.norm()


def test_alphaedit_keeps_out_of_what_c0_holds(pipeline, store):
    pipeline("method=alphaedit", "method.null_space.threshold=0.1", "method.layers=[1]", "dataset.batches=1")
    (moments,), (factor,), (edit,) = (artifacts(store, kind) for kind in ("covariance", "factor", "edit"))
    values, vectors = torch.linalg.eigh(load_moments(moments, torch.device("cpu"))["covariance"])
    held = vectors[:, values >= 0.1]
    assert 0 < held.shape[1] < 40
    assert factor.summary["rank"] == held.shape[1]
    assert factor.summary["energy"] == pytest.approx(float(values[values >= 0.1].sum() / values.sum()))
    delta = read_deltas(edit)[1].dense()
    assert (delta @ held).norm() < 1e-6 * delta.norm()


def test_alphaedit_f_keeps_out_of_the_primary_directions(pipeline, store):
    pipeline("method=alphaedit-f", *MANY, "method.layers=[1]", "dataset.batches=1")
    (factor,), (edit,) = artifacts(store, "factor"), artifacts(store, "edit")
    delta = read_deltas(edit)[1].dense()
    assert (delta @ load_tensors(factor.path / "low_rank.safetensors")["basis"]).norm() < 1e-6 * delta.norm()


def test_without_preservation_an_edit_is_ridge_regression(pipeline, store):
    """A = lambda I: the change lies in the keys' span, and lambda = 5 gives another than lambda = 1."""
    for weight in (1, 5):
        pipeline("method.preservation=identity", f"method.preservation_weight={weight}", "dataset.batches=1")
    assert {one.summary["weight"] for one in artifacts(store, "factor")} == {1, 5}
    small, large = sorted(artifacts(store, "edit"), key=lambda one: one.summary["norm"]["0"])
    assert small.summary["norm"]["0"] < large.summary["norm"]["0"]


@pytest.mark.parametrize(
    ("more", "message", "remedy"),
    [
        (
            ["method=memit-f", "method.low_rank.n_samples=25", "method.low_rank.prior_fraction=0",
             "method.low_rank.rank=30"],
            "^local: the covariance of 25 keys does not have rank 30",
            "lower method.low_rank.rank to 24, or raise method.low_rank.n_samples",
        ),
        (
            ["method=memit-f", *MANY, "method.low_rank.rank=50"],
            "^local: the covariance of 800 keys does not have rank 50",
            "lower method.low_rank.rank to 40",
        ),
        (
            ["method=alphaedit", "method.null_space.threshold=1e-12"],
            "Layer 0 of local: no direction may be written",
            "set a higher method.null_space.threshold",
        ),
        (
            ["method=alphaedit", "method.null_space.threshold=1e30"],
            "Layer 0 of local: every direction may be written, so nothing would be preserved",
            "lower method.null_space.threshold",
        ),
        (
            ["method=alphaedit-f", *MANY, "method.low_rank.rank=40"],
            "Layer 0 of local: no direction may be written",
            "set a lower method.low_rank.energy or rank",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_said(precomputed, pipeline, more, message, remedy):
    with pytest.raises(InputError, match=message) as caught:
        pipeline(*more)
    assert caught.value.details["remedy"] == remedy


@pytest.mark.parametrize(
    ("more", "message", "remedy"),
    [
        (
            ["corpus.dynamic_multiplier=0.5"],
            "the covariance over 20 tokens cannot be factorised",
            "raise corpus.dynamic_multiplier (now 0.5) to 2 or more, or set method.ridge=auto",
        ),
        (["method=memit-f", "method.low_rank.rank=99999"], "rank 99,999", "lower method.low_rank.rank to 40"),
    ],
)
def test_what_sizes_alone_tell_is_said_before_a_token_is_read(refused, arguments, more, message, remedy):
    given = [one for one in arguments() if not one.startswith("corpus.dynamic_multiplier=")]
    for command in ("plan", "run", "precompute"):
        said = refused(command, *given, *more)
        assert message in said
        assert remedy in said


def test_a_corpus_with_too_few_samples_is_refused_in_their_name(pipeline, tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("A short document about Rome, and about Athens.\n")
    with pytest.raises(InputError, match="too small") as caught:
        pipeline("method=memit-f", "corpus=local", f"corpus.path={path}")
    assert caught.value.details["remedy"].startswith("lower method.low_rank.n_samples to ")
