"""SimIE: steps of a sequence from edits of the unedited weights."""

from __future__ import annotations

import pytest
import torch

from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.edit.refiners.rect import largest_entries
from factsmith.tasks.edit.wrappers import load_wrapper
from tests.algebra import draw
from tests.edits import facts
from tests.tasks.edit.test_refiners import LAYERS, decoder, method, writer

__all__ = ["decoder", "writer"]


def wrapper(ridge: float, **parts):
    return load_wrapper(method(wrapper="simie", simie={"ridge": ridge}, **parts))


def base_edits(count: int) -> list[LowRankDelta]:
    return [LowRankDelta(draw(20, 2, seed=seed), draw(30, 2, seed=50 + seed)) for seed in range(count)]


def test_one_batch_without_a_ridge_gives_what_the_base_gives_for_its_keys():
    (delta,), keys = base_edits(1), draw(30, 7, seed=9)
    step = wrapper(1e-8).step(0, delta, keys, draw(20, 30), torch.empty(0, 0))
    assert step.rank == 7
    wanted = delta.dense() @ keys
    assert (step.dense() @ keys - wanted).norm() < 1e-6 * wanted.norm()


def test_steps_are_those_of_the_dense_recursion_whether_or_not_keys_are_absorbed():
    """W_t = W_(t-1) + (W' - W_(t-1)) K K^T P^-1, P = ridge I + K_1 K_1^T + ... + K_t K_t^T; 48 keys of width 30."""
    simie = wrapper(10.0)
    total, gram = torch.zeros(20, 30, dtype=torch.float64), 10 * torch.eye(30, dtype=torch.float64)
    for place, delta in enumerate(base_edits(6)):
        keys = draw(30, 8, seed=100 + place)
        gram += keys @ keys.T
        expected = (delta.dense() - total) @ keys @ keys.T @ torch.linalg.inv(gram)
        step = simie.step(0, delta, keys, draw(20, 30), total if place else torch.empty(0, 0))
        assert (step.dense() - expected).norm() < 1e-10 * expected.norm()
        total += expected


def test_the_sum_is_the_ridge_regression_of_all_batches():
    """The ideal editor: W minimises sum_i ||(W - W_i') K_i||^2 + ridge ||W - W_0||^2    [Guo et al. 2025]."""
    simie, edits = wrapper(3.0), base_edits(4)
    keys = [draw(30, 5, seed=100 + place) for place in range(4)]
    total = torch.zeros(20, 30, dtype=torch.float64)
    for delta, its in zip(edits, keys, strict=True):
        total += simie.step(0, delta, its, draw(20, 30), total).dense()
    gram = 3 * torch.eye(30, dtype=torch.float64) + sum(its @ its.T for its in keys)
    wanted = sum(delta.dense() @ its @ its.T for delta, its in zip(edits, keys, strict=True))
    assert (total - wanted @ torch.linalg.inv(gram)).norm() < 1e-10 * total.norm()


def test_a_refiner_of_batches_refines_the_edit_of_the_base_method():
    (delta,), keys, weight = base_edits(1), draw(30, 7, seed=9), draw(20, 30, seed=4)
    refined = wrapper(1e-8, refiner="rect", rect={"kept": 0.5}).step(0, delta, keys, weight, torch.empty(0, 0))
    wanted = largest_entries(delta.dense(), weight, 0.5).float().double() @ keys
    assert (refined.dense() @ keys - wanted).norm() < 1e-6 * wanted.norm()


@pytest.mark.parametrize("parts", [{}, {"refiner": "prune"}])
def test_a_writer_that_replays_another_continues_with_the_same_bits(decoder, writer, parts):
    """A fact has about ten tokens and d_in is 40, so that keys are absorbed on the way."""
    given = {"wrapper": "simie", "simie": {"ridge": 10.0}, **parts}
    batches = [facts()[:2], facts()[2:], facts()[:1], facts()[1:]]
    with writer(**given) as sequence:
        steps = [sequence.write(some, 1.0).step for some in batches]
        held = {layer: decoder.weight(layer).clone() for layer in LAYERS}
        published = {layer: one.dense() for layer, one in sequence.published().items()}
    with writer(**given) as again:
        again.replay(steps[:3])
        last = again.write(batches[3], 1.0).step
        for layer in LAYERS:
            assert torch.equal(last.deltas[layer].left, steps[3].deltas[layer].left)
            assert torch.equal(last.deltas[layer].right, steps[3].deltas[layer].right)
            assert torch.equal(decoder.weight(layer), held[layer])
            assert torch.equal(again.published()[layer].dense(), published[layer])
