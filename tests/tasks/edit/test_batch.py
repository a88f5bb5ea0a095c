"""Edits of tiny models, against plain transformers and float64 formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.edit.batch import applied, compute_edit, merge
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.edit.solve import CollidingKeysError
from factsmith.tasks.facts.activations import FactActivations
from factsmith.tasks.facts.contexts import chat_contexts
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.preservation.full import FullPreservation
from tests.chats import PLAIN
from tests.conftest import hidden_of, load, load_plain, plain_blocks, plain_projection
from tests.edits import covariances, facts, weights

CONTEXTS = ("{}", "The judge plays the flute. {}", "Therefore Rome. {}")
LAYERS = [0, 1, 2]


@pytest.fixture
def operators(decoder):
    found = covariances(decoder, LAYERS)
    return {layer: FullPreservation.from_covariance(one, weight=2.0) for layer, one in found.items()}


@pytest.fixture
def values(decoder) -> torch.Tensor:
    return 3 * torch.randn(len(facts()), decoder.width, generator=torch.Generator().manual_seed(1))


def edit(decoder, operators, values, requests=None, layers=LAYERS, **settings):
    return compute_edit(
        decoder, requests or facts(), values, CONTEXTS, layers, operators.get,
        **{"slack": 1.0, "most_tokens": 10_000, **settings},
    )  # fmt: skip


@torch.no_grad()
def plain_states(model, tokenizer, request: EditRequest, layer: int, last: int, site: str = "block"):
    """Key of ``layer`` as memit averages it, and the clean prompt's outputs of block ``last`` and of the projection.

    At the site ``mlp``, the output of block ``last`` is that of its MLP, after the norm if there is one.
    """

    def row(found: torch.Tensor) -> torch.Tensor:
        return found.reshape(-1, found.shape[-1])[prompt.lookup].double()

    inner = plain_blocks(model)
    projection = plain_projection(inner[layer])
    states, outputs = [], []
    at_last = inner[last]
    if site == "mlp":
        at_last = getattr(inner[last], "post_feedforward_layernorm", None) or plain_projection(inner[last])
    handles = [
        projection.register_forward_hook(lambda *args: states.append([row(one) for one in (args[1][0], args[2])])),
        at_last.register_forward_hook(lambda *args: outputs.append(row(hidden_of(args[2])))),
    ]
    for context in CONTEXTS:
        prompt = encode_prompt(tokenizer, context.replace("{}", request.template), request.subject)
        model(input_ids=torch.tensor([prompt.tokens]))
    for handle in handles:
        handle.remove()
    clean, *prefixed = (key for key, _ in states)
    return (clean + torch.stack(prefixed).mean(0)) / 2, outputs[0], states[0][1]


def plain_memit(folder, decoder, operators, values, site="block", power=1.0) -> dict[int, torch.Tensor]:
    """MEMIT over several layers on an untouched transformers model: whole passes, dense float64 algebra.

    PMET has values at the site ``mlp``, and divides by the square root of the layers left.
    """
    model = load_plain(folder)
    deltas = {}
    for index, layer in enumerate(LAYERS):
        states = [plain_states(model, decoder.tokenizer, one, layer, LAYERS[-1], site) for one in facts()]
        keys, outputs, projected = (torch.stack(one) for one in zip(*states, strict=True))
        keys, residuals = keys.T, (values.double() - outputs).T / (len(LAYERS) - index) ** power
        if (norm := decoder.output_norm(layer)) is not None:
            residuals = norm.needed(projected, residuals.T).T
        matrix = operators[layer].factor @ operators[layer].factor.T
        deltas[layer] = residuals @ keys.T @ torch.linalg.inv(matrix + keys @ keys.T)
        projection = plain_projection(plain_blocks(model)[layer])
        with torch.no_grad():
            projection.weight += (deltas[layer].T if isinstance(projection, Conv1D) else deltas[layer]).float()
    return deltas


def test_agrees_with_plain_memit_over_several_layers(model_folder, decoder, operators, values):
    found = edit(decoder, operators, values)
    for layer, expected in plain_memit(model_folder, decoder, operators, values).items():
        assert (found[layer].dense() - expected).norm() < 1e-5 * expected.norm()


def test_agrees_with_plain_pmet_over_several_layers(model_folder, decoder, operators, values):
    found = edit(decoder, operators, values, site="mlp", spread="square_root")
    for layer, expected in plain_memit(model_folder, decoder, operators, values, "mlp", 0.5).items():
        assert (found[layer].dense() - expected).norm() < 1e-5 * expected.norm()


def test_the_passes_may_be_batched_at_will(decoder, operators, values):
    one = edit(decoder, operators, values)
    other = edit(decoder, operators, values, most_tokens=1)
    for layer in LAYERS:
        assert (one[layer].dense() - other[layer].dense()).norm() < 1e-5 * one[layer].dense().norm()


def test_the_order_of_facts_does_not_matter(decoder, operators, values):
    order = [2, 0, 3, 1]
    one = edit(decoder, operators, values)
    other = edit(decoder, operators, values[order], [facts()[place] for place in order])
    for layer in LAYERS:
        assert (one[layer].dense() - other[layer].dense()).norm() < 1e-5 * one[layer].dense().norm()


def test_equality_on_one_layer_reaches_every_value(decoder, operators, values):
    """With slack 0 on the last edited layer alone, its output at the lookup token is the wanted value."""
    alone = ("{}",)
    if (norm := decoder.output_norm(2)) is not None:  # Not every value can be reached.
        before = FactActivations(decoder, facts())
        values = (before.outputs(2, 2).T + norm.effect(before.projected(2).T, values)).float()
    deltas = compute_edit(
        decoder, facts(), values, alone, [2], operators.get, slack=0.0, most_tokens=10_000
    )  # fmt: skip
    with applied(decoder, deltas), torch.no_grad():
        for request, value in zip(facts(), values, strict=True):
            prompt = encode_prompt(decoder.tokenizer, request.template, request.subject)
            hidden = decoder.run(decoder.embed(torch.tensor([prompt.tokens])), 0, 3)
            assert torch.allclose(hidden[0, prompt.lookup], value, atol=2e-3)


def test_a_question_is_written_with_the_residual_of_its_fact(decoder, operators, values):
    if decoder.output_norm(0) is not None:
        pytest.skip("the change of the MLP's output is not that of the block's")
    decoder.tokenizer.chat_template = PLAIN
    contexts = (*CONTEXTS, *chat_contexts(decoder.tokenizer))
    first, *others = facts()
    requests = [replace(first, question="What of {}?"), *others]
    activations = FactActivations(decoder, requests, contexts, clean_weight=0.5)
    keys, outputs = activations.keys(1)[0], activations.outputs(1, 1)
    given = {"slack": 0.0, "most_tokens": 10_000}
    deltas = compute_edit(decoder, requests, values, contexts, [1], operators.get, **given)
    reached = deltas[1].left @ (deltas[1].right.T @ keys)
    residuals = values.double().T - outputs
    assert keys.shape[1] == residuals.shape[1] + 1
    torch.testing.assert_close(reached, torch.cat([residuals, residuals[:, :1]], dim=1), rtol=1e-6, atol=1e-6)
    rome = compute_edit(decoder, requests[:1], values[:1], contexts, [1], operators.get, read_keys="clean", **given)
    reached = rome[1].left @ (rome[1].right.T @ activations.keys(1)[1][:, [0, len(requests)]])
    torch.testing.assert_close(reached, residuals[:, [0, 0]], rtol=1e-6, atol=1e-6)
    requests[1] = replace(requests[0], target_new="Greek")
    with pytest.raises(CollidingKeysError) as caught:
        compute_edit(decoder, requests[:2], values[:2], contexts, [1], operators.get, **given)
    assert {tuple(sorted(pair)) for pair in caught.value.pairs} == {(0, 1)}


def test_square_root_spreading(decoder, operators, values):
    """Only the first layer's residual can be compared: later ones see what was written before them."""
    if decoder.output_norm(0) is not None:
        pytest.skip("the change of the MLP's output is not in proportion to that of the block's")
    even = edit(decoder, operators, values)[0].dense()
    root = edit(decoder, operators, values, spread="square_root")[0].dense()
    assert torch.allclose(root, even * 3**0.5, rtol=1e-6)


def test_computing_an_edit_leaves_the_model_as_it_was(decoder, operators, values):
    before = weights(decoder)
    edit(decoder, operators, values)
    assert all(torch.equal(one, other) for one, other in zip(before, weights(decoder), strict=True))


def test_applying_is_undone_to_the_bit_even_after_an_error(decoder, operators, values):
    deltas = edit(decoder, operators, values)
    before = weights(decoder)
    with pytest.raises(ZeroDivisionError), applied(decoder, deltas):
        changed = [layer for layer in LAYERS if not torch.equal(decoder.weight(layer), dict(enumerate(before))[0])]
        assert changed == LAYERS
        raise ZeroDivisionError
    assert all(torch.equal(one, other) for one, other in zip(before, weights(decoder), strict=True))


def test_only_the_edited_weights_change(decoder, operators, values):
    before = {name: parameter.clone() for name, parameter in decoder.model.named_parameters()}
    merge(decoder, edit(decoder, operators, values))
    changed = {name for name, parameter in decoder.model.named_parameters() if not torch.equal(parameter, before[name])}
    edited = {
        name
        for name, parameter in decoder.model.named_parameters()
        if any(parameter.data_ptr() == decoder.weight(layer).data_ptr() for layer in LAYERS)
    }
    assert changed == edited
    assert len(changed) == len(LAYERS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_edited_model_saves_and_reloads(model_folder, decoder, operators, values, tmp_path, dtype):
    deltas = edit(decoder, operators, values)
    edited = load(model_folder, dtype)
    merge(edited, deltas)
    edited.model.save_pretrained(tmp_path)
    again = load_plain(tmp_path, dtype)
    tokens = torch.tensor([[5, 80, 17, 300, 33]])
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens).logits, edited.model(input_ids=tokens).logits)
        assert not torch.equal(again(input_ids=tokens).logits, load(model_folder, dtype).model(input_ids=tokens).logits)


@pytest.fixture
def half(gpt2_folder):
    return load(gpt2_folder, "float16")


def test_weights_that_overflow_are_refused_and_not_written(half):
    before = half.weight(1).clone()
    huge = LowRankDelta(torch.full((24, 1), 1e3, dtype=torch.float64), torch.full((40, 1), 1e3, dtype=torch.float64))
    for write in (merge, lambda *given: applied(*given).__enter__()):
        with pytest.raises(InputError, match=r"makes weights of layer 1 NaN or infinite") as caught:
            write(half, {1: huge})
        assert caught.value.details["got"] == "weights in float16"
        assert caught.value.details["remedy"].startswith("set model.dtype=float32, or lower")
    assert torch.equal(half.weight(1), before)


def test_keys_that_overflow_are_refused_as_such(half):
    half.weight(0).fill_(6e4)
    found = {layer: FullPreservation.from_covariance(torch.eye(40, dtype=torch.float64), weight=1) for layer in LAYERS}
    values = torch.ones(len(facts()), half.width)
    with pytest.raises(InputError, match=r"Keys or outputs of layer \d are NaN or infinite"):
        edit(half, found, values)
