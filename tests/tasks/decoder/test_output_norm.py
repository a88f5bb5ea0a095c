"""Blocks with a norm after the MLP: the change of the MLP's output that a wanted change of the block's output needs."""

from __future__ import annotations

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from factsmith.tasks.decoder.output_norm import OutputNorm
from factsmith.tasks.edit.batch import applied, compute_edit
from factsmith.tasks.facts.activations import FactActivations
from factsmith.tasks.preservation.full import FullPreservation
from tests.conftest import load
from tests.edits import covariances, facts

ROOT = 2**0.5


def norm_of(weight, eps: float = 0.0) -> OutputNorm:
    norm = Gemma2RMSNorm(len(weight), eps=eps)
    norm.weight.data = torch.tensor(weight) - 1.0
    return OutputNorm(norm)


@pytest.mark.parametrize(
    "change",
    [
        (2 * ROOT - 2, -1),  # to (2.83, 0), an end of the ellipse's long axis
        (9 * ROOT - 2, -1),  # to a point beyond it, to which it is the nearest
    ],
)
def test_by_hand(change):
    """m = (1, 1) and w = (2, 1), so N(m) = (2, 1). Turned by 45 degrees, m is (1.41, 0) and N(m) is (2.83, 0)."""
    found = norm_of([2.0, 1.0]).needed(torch.ones(1, 2).double(), torch.tensor([change]).double())
    torch.testing.assert_close(found, torch.tensor([[ROOT - 1, -1.0]]).double())


@pytest.fixture
def drawn():
    """A norm with large and tiny weights, and outputs of several sizes."""
    generator = torch.Generator().manual_seed(4)
    weight = (torch.rand(24, generator=generator) * 2 - 0.2).tolist()
    weight[3] = 1e-5
    outputs = torch.randn(4, 24, generator=generator, dtype=torch.float64)
    return norm_of(weight, 1e-6), outputs * torch.tensor([[0.1], [1], [10], [100]]), generator


def test_a_change_that_can_be_is_reached(drawn):
    norm, outputs, generator = drawn
    change = norm.effect(outputs, torch.randn(4, 24, generator=generator)).double()
    moved = outputs + norm.needed(outputs, change)
    torch.testing.assert_close(norm.added(moved) - norm.added(outputs), change, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved.norm(dim=1), outputs.norm(dim=1))


def test_no_change_needs_none(drawn):
    norm, outputs, _ = drawn
    assert (norm.needed(outputs, torch.zeros_like(outputs)).norm(dim=1) < 1e-5 * outputs.norm(dim=1)).all()


@pytest.mark.parametrize("size", [0.1, 1, 10])
def test_what_cannot_be_is_met_as_nearly_as_can_be(drawn, size):
    """No other output of the block is nearer: not one of many at random, and none of those close by."""
    norm, outputs, generator = drawn
    change = size * torch.randn(4, 24, generator=generator, dtype=torch.float64)
    wanted = norm.added(outputs) + change
    found = outputs + norm.needed(outputs, change)
    distance = (norm.added(found) - wanted).norm(dim=1)
    for spread in (1e-2, 1e-1, 1, 1e9):
        steps = spread * torch.randn(300, 4, 24, generator=generator, dtype=torch.float64)
        others = norm.added((found + outputs.square().mean(1, keepdim=True).sqrt() * steps).view(-1, 24))
        assert ((others.view(300, 4, 24) - wanted).norm(dim=2) > distance - 1e-4 * wanted.norm(dim=1)).all()


def test_several_layers_come_close_and_plain_residuals_do_not(family_folder, monkeypatch):
    """Below the last layer, a block has its own ellipsoid: the layers share a change only nearly."""
    decoder = load(family_folder("gemma2"))
    operators = {
        layer: FullPreservation.from_covariance(one, weight=1.0) for layer, one in covariances(decoder, [0, 1]).items()
    }
    before = FactActivations(decoder, facts())
    steps = torch.randn(len(facts()), decoder.width, generator=torch.Generator().manual_seed(1))
    start = before.outputs(1, 1).T
    change = decoder.output_norm(1).effect(before.projected(1).T, steps)

    def gap() -> float:
        found = compute_edit(
            decoder, facts(), start + change, ("{}",), [0, 1], operators.get, slack=0.0, most_tokens=10_000
        )
        with applied(decoder, found):
            return float((FactActivations(decoder, facts()).outputs(1, 1).T - start - change).norm() / change.norm())

    assert gap() < 0.1
    monkeypatch.setattr(OutputNorm, "needed", lambda _, __, changes: changes)
    assert gap() > 0.3
