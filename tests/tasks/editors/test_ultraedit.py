"""UltraEdit on tiny models, against transformers' gradients and formulas in float64."""

from __future__ import annotations

import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.edit.delta import DenseDelta, LowRankDelta, plus
from factsmith.tasks.editors.methods.ultraedit import EDITOR, UltraEditEdit, ridge_step
from factsmith.tasks.editors.normalisation import SeenFeatures
from factsmith.tasks.editors.settings import WritingSettings
from tests.conftest import load, load_plain, plain_blocks, plain_projection
from tests.editors import losses, same, task
from tests.edits import facts, weights
from tests.tasks.decoder.test_placement import offloaded


def write(decoder, before=None, requests=None, rate=1e-2, **settings):
    return EDITOR.write(decoder, before, task([1, 2], requests, ultraedit={"learning_rate": rate, **settings}))


def features(model, tokenizer, layer):
    """Inputs of a projection, and gradients of each token's NLL at its output, from plain autograd."""
    hidden, gradient = [], []
    for request in facts():
        prompt = encode_prompt(tokenizer, request.template, request.subject, request.target_new)
        states = []

        def take(_, inputs, output, states=states):
            states += [inputs[0], output]

        handle = plain_projection(plain_blocks(model)[layer]).register_forward_hook(take)
        scores = model(torch.tensor([prompt.inputs])).logits[0, -prompt.continued :]
        handle.remove()
        torch.nn.functional.cross_entropy(scores, torch.tensor(prompt.labels), reduction="sum").backward(
            inputs=states[1]
        )
        places = slice(-prompt.continued, None)
        hidden.append(states[0].detach().reshape(len(prompt.inputs), -1)[places])
        gradient.append(states[1].grad.reshape(len(prompt.inputs), -1)[places])
    return torch.cat(hidden).double(), torch.cat(gradient).double()


def test_a_batch_is_ridge_regression_on_normalised_features(model_folder, decoder):
    """Dense, in float64, from features of a plain model. All projections have one shape, and share the statistics."""
    model = load_plain(model_folder)
    parts = {layer: features(model, decoder.tokenizer, layer) for layer in (1, 2)}
    both = torch.cat([torch.cat(one, dim=1) for one in parts.values()])
    mean, spread = both.mean(0), both.std(0)
    edit = write(decoder).edit
    for layer, (hidden, gradient) in parts.items():
        width = hidden.shape[1]
        normal = (torch.cat([hidden, gradient], 1) - mean) / (spread + torch.finfo(torch.float32).eps)
        wanted = -1e-2 * (normal[:, :width] ** 2).sum(1, keepdim=True) * normal[:, width:]
        inverse = torch.linalg.inv(hidden.T @ hidden + torch.eye(width, dtype=torch.float64))
        expected = (inverse @ hidden.T @ wanted).T
        (found,) = (delta.dense().double() for (at, _), delta in edit.deltas.items() if at == layer)
        assert (found - expected).norm() < 2e-3 * expected.norm()


def test_statistics_are_those_of_everything_seen():
    rows = 3 + torch.randn(17, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = SeenFeatures.none(5)
    for part in rows.split([1, 4, 1, 11]):
        seen = seen.with_rows(part)
    assert seen.count == 17
    torch.testing.assert_close(seen.mean, rows.mean(0), rtol=1e-13, atol=0)
    torch.testing.assert_close(seen.squares, (rows - rows.mean(0)).square().sum(0), rtol=1e-12, atol=0)
    expected = (rows - rows.mean(0)) / rows.std(0)
    torch.testing.assert_close(seen.normalised(rows), expected, rtol=1e-6, atol=1e-6)


def test_a_single_vector_is_normalised_to_nothing():
    row = torch.tensor([[2.0, -1.0]])
    assert torch.equal(SeenFeatures.none(2).with_rows(row).normalised(row), torch.zeros(1, 2, dtype=torch.float64))


def test_the_step_lowers_the_loss(gpt2):
    before = losses(gpt2, facts())
    written = write(gpt2)
    assert [fit.loss for fit in written.fits] == pytest.approx(before, rel=1e-4)
    with written.edit.applied(gpt2):
        assert sum(losses(gpt2, facts())) < sum(before) - 0.5


@pytest.fixture
def gpt2(gpt2_folder):
    return load(gpt2_folder)


def test_a_sequence_continues_to_the_same_bits_with_its_statistics(gpt2):
    first = write(gpt2, requests=facts()[:2]).edit
    stored = UltraEditEdit.read(first.tensors(), first.values())
    one, other = (write(gpt2, edit, facts()[2:]).edit for edit in (first, stored))
    assert same(one, other)
    (before,), (after,) = first.features.values(), one.features.values()
    labels = [encode_prompt(gpt2.tokenizer, one.template, one.subject, one.target_new).continued for one in facts()]
    assert before.count == 2 * sum(labels[:2])  # of two layers
    assert after.count == 2 * sum(labels)


def test_a_sequence_reads_the_weights_that_it_left(gpt2):
    first = write(gpt2, requests=facts()[:2]).edit
    with first.applied(gpt2):
        expected = losses(gpt2, facts()[2:])
    written = write(gpt2, first, facts()[2:])
    assert [fit.loss for fit in written.fits] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(losses(gpt2, facts()[2:]), rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_is_as_it_was(gpt2_folder, dtype):
    decoder = load(gpt2_folder, dtype)
    before = weights(decoder)
    edit = write(decoder).edit
    assert all(torch.equal(one, other) for one, other in zip(before, weights(decoder), strict=True))
    assert not any(parameter.requires_grad for parameter in decoder.model.parameters())
    assert {delta.dense().dtype for delta in edit.deltas.values()} == {torch.float32}


def test_modules_that_run_side_by_side_are_all_changed(llama_folder):
    """The gate and the input of a gated MLP, whose gradients come from one pass; weights may be stored elsewhere."""
    decoder = load(llama_folder)
    edit = write(decoder, modules=["mlp.gate_proj", "2.mlp.up_proj"]).edit
    assert list(edit.deltas) == [(1, "mlp.gate_proj"), (2, "mlp.gate_proj"), (2, "mlp.up_proj")]
    assert all(delta.norm() > 0 for delta in edit.deltas.values())
    assert same(edit, write(offloaded(decoder), modules=["mlp.gate_proj", "2.mlp.up_proj"]).edit)


def test_changes_add_up_thin_and_then_dense():
    generator = torch.Generator().manual_seed(0)
    parts = [
        LowRankDelta(torch.randn(6, 2, generator=generator), torch.randn(8, 2, generator=generator)) for _ in "123"
    ]
    total, kinds = None, []
    for part in parts:
        total = plus(total, part)
        kinds.append(type(total))
    assert kinds == [LowRankDelta, DenseDelta, DenseDelta]
    torch.testing.assert_close(total.dense(), sum(part.dense() for part in parts))


def test_the_step_moves_outputs_against_the_gradient():
    """With long keys the ridge does not matter: Delta h is v."""
    hidden = 100 * torch.eye(3, 4, dtype=torch.float64)
    gradient = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
    seen = SeenFeatures.none(6).with_rows(torch.cat([hidden, gradient], 1))
    normal = seen.normalised(torch.cat([hidden, gradient], 1))
    step = ridge_step(hidden, gradient, seen, 0.1)
    wanted = -0.1 * normal[:, :4].square().sum(1, keepdim=True) * normal[:, 4:]
    torch.testing.assert_close(step.dense().double() @ hidden.T, wanted.T, rtol=1e-3, atol=1e-4)


def test_a_fact_alone_is_refused():
    method = WritingSettings(name="ultraedit", editor="ultraedit", layers=[0], preservation="identity")
    with pytest.raises(InputError, match="method=ultraedit cannot write a fact alone"):
        EDITOR.check(method, [0], 1)
    EDITOR.check(method, [0], 2)
    EDITOR.check(method.model_copy(update={"sequence": method.sequence.model_copy(update={"history": "none"})}), [0], 1)
