"""FT and FT-L on tiny models, against plain transformers and torch."""

from __future__ import annotations

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.edit.edit import WeightEdit
from factsmith.tasks.editors.editor import NotWrittenError
from factsmith.tasks.editors.methods.ft import EDITOR
from tests.conftest import load, load_plain, plain_blocks, plain_projection
from tests.editors import losses, same, task
from tests.edits import facts, weights


def test_agrees_with_adam_on_the_weights_themselves(model_folder, decoder):
    """Weights that Adam changes in a plain model, and the change that the editor trains beside them."""
    written = EDITOR.write(decoder, None, task([1, 2], training={"steps": 3, "learning_rate": 0.01}))
    model = load_plain(model_folder).requires_grad_(False)
    trained = [plain_projection(plain_blocks(model)[layer]).weight.requires_grad_() for layer in (1, 2)]
    before = [one.detach().clone() for one in trained]
    optimiser = torch.optim.Adam(trained, lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        torch.stack([_nll(model, decoder.tokenizer, request) for request in facts()]).mean().backward()
        optimiser.step()
    conv = isinstance(plain_projection(plain_blocks(model)[1]), Conv1D)
    for layer, one, old in zip((1, 2), trained, before, strict=True):
        change = (one.detach() - old).T if conv else one.detach() - old
        assert (written.edit.deltas[layer].dense() - change).norm() < 1e-2 * change.norm()
    expected = [float(_nll(model, decoder.tokenizer, request).detach()) for request in facts()]
    assert [fit.loss for fit in written.fits] == pytest.approx(expected, rel=1e-3)
    assert {fit.steps for fit in written.fits} == {3}


def _nll(model, tokenizer, request):
    prompt = encode_prompt(tokenizer, request.template, request.subject, request.target_new)
    scores = model(torch.tensor([prompt.inputs])).logits[0, -prompt.continued :].log_softmax(-1)
    return -scores[range(prompt.continued), list(prompt.labels)].mean()


@pytest.fixture
def gpt2(gpt2_folder):
    return load(gpt2_folder)


def test_the_last_token_predicts_all_of_the_object(gpt2):
    """The first loss, before any step, of a fact whose object has several tokens."""
    request = facts()[1]
    given = task([1], [request], ft={"objective": "last_token"}, training={"steps": 1, "stop_loss": 1e6})
    (fit,) = EDITOR.write(gpt2, None, given).fits
    prompt = encode_prompt(gpt2.tokenizer, request.template, request.subject, request.target_new)
    assert prompt.continued > 1
    with torch.no_grad():
        scores = gpt2.model(torch.tensor([prompt.tokens[: -prompt.continued]])).logits[0, -1].log_softmax(-1)
    assert fit.loss == pytest.approx(-float(scores[list(prompt.labels)].mean()), rel=1e-5)
    assert fit.steps == 0


def test_the_limit_holds_for_what_each_batch_of_a_sequence_adds(gpt2):
    given = task([0, 2], ft={"norm": 0.01}, training={"steps": 6, "learning_rate": 0.005})
    first = EDITOR.write(gpt2, None, given).edit
    second = EDITOR.write(gpt2, first, task([0, 2], facts()[:1], like=given)).edit
    for layer in (0, 2):
        one, both = (edit.deltas[layer].dense() for edit in (first, second))
        assert float(one.abs().max()) == pytest.approx(0.01, rel=1e-6)
        assert float((both - one).abs().max()) == pytest.approx(0.01, rel=1e-6)
        assert float(both.abs().max()) > 0.015  # More than one limit, because the batches agree on some entries.


def test_only_sequences_with_a_limit_are_computed_again():
    sequence, limit = {"sequence": {"history": "none"}}, {"ft": {"norm": 0.01}}
    versions = [EDITOR.recipe(task([1], **one).method)["version"] for one in ({}, sequence, limit, sequence | limit)]
    assert versions == [1, 1, 1, 2]


def test_the_loss_falls_and_the_edited_model_has_it(gpt2):
    before = losses(gpt2, facts())
    written = EDITOR.write(gpt2, None, task([1, 2], training={"steps": 15, "learning_rate": 0.05}))
    with written.edit.applied(gpt2):
        after = losses(gpt2, facts())
    assert max(after) < min(before) / 2
    assert after == pytest.approx([fit.loss for fit in written.fits], rel=1e-3, abs=1e-5)


def test_training_stops_below_the_loss_that_is_asked_for(gpt2):
    written = EDITOR.write(gpt2, None, task([1], training={"steps": 50, "learning_rate": 0.02, "stop_loss": 5}))
    (steps,) = {fit.steps for fit in written.fits}
    assert 0 < steps < 50
    assert sum(fit.loss for fit in written.fits) / len(facts()) < 5


def test_a_sequence_continues_to_the_same_bits(gpt2):
    """From an edit that was stored after the first batch, and from the one in memory."""
    settings = {"training": {"steps": 3, "learning_rate": 0.01}}
    first = EDITOR.write(gpt2, None, task([1], facts()[:2], **settings)).edit
    stored = WeightEdit.read(first.tensors(), first.values())
    one, other = (EDITOR.write(gpt2, edit, task([1], facts()[2:], **settings)).edit for edit in (first, stored))
    assert same(one, other)
    assert not same(one, first)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_is_as_it_was_and_the_change_is_not_rounded(gpt2_folder, dtype):
    """A step of 1e-5 is far below the last place of a weight in bfloat16, and is still kept."""
    decoder = load(gpt2_folder, dtype)
    before = weights(decoder)
    written = EDITOR.write(decoder, None, task([1], training={"steps": 2, "learning_rate": 1e-5}))
    assert all(torch.equal(one, other) for one, other in zip(before, weights(decoder), strict=True))
    assert not any(parameter.requires_grad for parameter in decoder.model.parameters())
    change = written.edit.deltas[1].dense()
    assert change.dtype == torch.float32
    assert 0 < float(change.abs().max()) <= 2.5e-5


def test_a_loss_that_is_no_number_names_the_fact(gpt2):
    gpt2.weight(1).fill_(float("nan"))
    with pytest.raises(NotWrittenError) as caught:
        EDITOR.write(gpt2, None, task([1]))
    assert caught.value.request == facts()[0]
