"""Drift against a computation with whole transformers models, and the stage that keeps it."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from factsmith.flows.configuration.composition import compose
from factsmith.flows.run import run
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.edit.batch import merge
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.edit.edit import WeightEdit
from factsmith.tasks.evaluation.held_out import drift
from factsmith.tasks.evaluation.held_out.drift import block_drift, drift_measures
from tests.edits import weights
from tests.runs import artifacts, states

LAYERS = [2, 3]


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 400, (length,), generator=generator).tolist() for length in (12, 30, 2, 12)]


def change(decoder: Decoder, scale: float, seed: int = 1) -> WeightEdit:
    generator = torch.Generator().manual_seed(seed)
    shapes = {layer: decoder.weight(layer).shape for layer in LAYERS}
    return WeightEdit(
        {
            layer: LowRankDelta(
                scale * torch.randn(rows, 2, generator=generator, dtype=torch.float64),
                torch.randn(columns, 2, generator=generator, dtype=torch.float64),
            )
            for layer, (rows, columns) in shapes.items()
        }
    )


def log_probabilities(decoder: Decoder, text: list[int]) -> torch.Tensor:
    """Of every token but the first, from transformers' own forward pass."""
    return decoder.model(torch.tensor([text])).logits[0, :-1].double().log_softmax(-1)


@torch.inference_mode()
def by_hand(decoder: Decoder, edit: WeightEdit) -> dict[str, np.ndarray]:
    before = [log_probabilities(decoder, text) for text in texts()]
    merge(decoder, edit.deltas)
    after = [log_probabilities(decoder, text) for text in texts()]
    p, q = torch.cat(before), torch.cat(after)
    own = torch.tensor([token for text in texts() for token in text[1:]])[:, None]
    return {
        "kl": torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).numpy(),
        "nll_before": -p.gather(1, own)[:, 0].numpy(),
        "nll_after": -q.gather(1, own)[:, 0].numpy(),
        "changed": (p.argmax(-1) != q.argmax(-1)).numpy(),
    }


@pytest.mark.parametrize("scores", [2**23, 400 * 5], ids=["at once", "in parts"])
def test_kl_is_that_of_whole_models_at_every_position(decoder, monkeypatch, scores):
    monkeypatch.setattr(drift, "_SCORES", scores)
    before = weights(decoder)
    one, other = change(decoder, 0.1), change(decoder, 0.02, seed=2)
    found = block_drift(decoder, texts(), [other, one], most_tokens=30)[1]
    assert all(map(torch.equal, before, weights(decoder))), "weights are restored exactly"
    assert found["block"].to_pylist() == [0] * 11 + [1] * 29 + [2] + [3] * 11
    expected = by_hand(decoder, one)
    assert expected["kl"].mean() > 1e-3
    for name in ("kl", "nll_before", "nll_after"):
        assert np.allclose(found[name].to_numpy(), expected[name], rtol=1e-3, atol=1e-5), name
    assert np.mean(found["changed"].to_numpy() == expected["changed"]) > 0.95
    measures = drift_measures(found)
    assert measures["KL"] == (None, pytest.approx(expected["kl"].mean(), rel=1e-3))
    assert measures["KL99"][1] == pytest.approx(np.quantile(expected["kl"], 0.99), rel=1e-3)
    perplexities = [np.exp(expected[name].mean()) for name in ("nll_before", "nll_after")]
    assert measures["perplexity"] == pytest.approx(perplexities, rel=1e-4)
    assert measures["changed"] == (None, 100 * found["changed"].to_numpy().mean())


def test_an_edit_that_changes_nothing_does_not_drift(decoder):
    nothing = change(decoder, 0)
    (found,) = block_drift(decoder, texts(), [nothing], most_tokens=100)
    assert found["kl"].to_pylist() == [0] * len(found)
    assert found["nll_before"].equals(found["nll_after"])
    assert drift_measures(found)["changed"] == (None, 0)


def test_blocks_below_the_first_edited_layer_run_once(decoder, monkeypatch):
    runs: list[tuple[int, int]] = []
    original = Decoder.run
    monkeypatch.setattr(
        Decoder,
        "run",
        lambda self, hidden, start, stop, **given: (
            runs.append((start, stop)) or original(self, hidden, start, stop, **given)
        ),
    )
    done: list[int] = []
    edits = [change(decoder, 0.1), change(decoder, 0.1, seed=2)]
    block_drift(decoder, texts(), edits, most_tokens=1000, advance=done.append)
    passes = len(runs) // 4
    assert runs == [(0, 2), *[(2, 4)] * 3] * passes
    assert sum(done) == 2 * len(texts())


def test_a_run_measures_the_first_edits_once(precomputed, pipeline, store, home):
    from mlflow import MlflowClient

    given = ("method.batch_size=1", "dataset.batches=3", "corpus.dynamic_multiplier=10")
    report = pipeline(*given, "drift.edits=2", "drift.blocks=3")
    assert states(report)["drift"] == "built"
    by_name = {one.measure: one for one in report.drift}
    assert list(by_name) == ["perplexity", "KL", "KL99", "changed"]
    assert by_name["KL"].edits == 2
    assert by_name["KL"].before is None
    assert 0 < by_name["KL"].after < by_name["KL"].worst < by_name["KL99"].worst
    assert by_name["perplexity"].before > 1
    metrics = MlflowClient(f"sqlite:///{home / 'mlflow.db'}").get_run(report.mlflow_run_id).data.metrics
    assert metrics["drift/after/KL"] == by_name["KL"].after
    assert metrics["drift/worst/KL"] == by_name["KL"].worst
    assert metrics["drift/before/perplexity"] == by_name["perplexity"].before
    again = pipeline(*given, "drift.edits=2", "drift.blocks=3")
    assert states(again)["drift"] == "cached"
    assert again.drift == report.drift
    pipeline(*given, "drift.edits=3", "drift.blocks=3")
    held = [len(one.manifest.recipe["key"]["rows"]) for one in artifacts(store, "drift")]
    assert sorted(held) == [1, 2], "the third edit alone was missing"
    assert "drift" not in states(pipeline(*given, "drift.edits=0"))


def test_a_sequence_is_measured_where_it_is_scored(precomputed, pipeline):
    given = ("method.sequence.history=full", "method.batch_size=1", "dataset.batches=3")
    report = pipeline(*given, "method.sequence.evaluate_at=[1]", "drift.blocks=3")
    curve = report.trajectory["sequence/KL"]
    assert list(curve) == [1, 3]
    kl = next(one for one in report.drift if one.measure == "KL")
    assert (kl.after, kl.worst, kl.edits) == (curve[3], curve[3], 1)


def test_text_and_corpus_that_are_not_there(pipeline, plain_flows, arguments, tmp_path, caplog):
    """A corpus that C0 covers whole has no text left; a method without a corpus has none at all."""
    path = tmp_path / "corpus.txt"
    path.write_text("A short document about Rome, and about Athens.\n" * 20)
    small = ["corpus=local", f"corpus.path={path}", "corpus.tokens=200", "method.ridge=0.1"]
    with caplog.at_level(logging.WARNING):
        report = run(compose(arguments(*small)))
    assert report.drift == []
    assert "drift is not measured" in caplog.text
    assert "drift" not in states(pipeline("method.preservation=identity"))
