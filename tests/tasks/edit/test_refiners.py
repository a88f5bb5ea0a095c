"""Refiners of finished changes, against matrices that are worked out by hand, alone and in sequences."""

from __future__ import annotations

import math

import pytest
import torch

from factsmith.tasks.edit.delta import DenseDelta, LowRankDelta
from factsmith.tasks.edit.delta_sum import DeltaSum
from factsmith.tasks.edit.refiners import load_refiner
from factsmith.tasks.edit.refiners.prune import largest_singular_value
from factsmith.tasks.edit.refiners.rect import largest_entries
from factsmith.tasks.edit.sequence import SequenceWriter
from factsmith.tasks.edit.settings import MethodSettings
from factsmith.tasks.preservation.full import FullPreservation
from tests.algebra import draw
from tests.conftest import load
from tests.edits import covariances, facts

LAYERS = [0, 1]


def method(**parts) -> MethodSettings:
    return MethodSettings.model_validate(
        {
            "name": "memit", "layers": LAYERS, "preservation_weight": 2, "value": {"steps": 4},
            "sequence": {"history": "none"}, **parts,
        }
    )  # fmt: skip


@pytest.fixture
def decoder(gpt2_folder):
    return load(gpt2_folder)


@pytest.fixture
def writer(decoder):
    """Makes writers of sequences with a refiner or a wrapper."""
    operators = {
        layer: FullPreservation.from_covariance(one, weight=2.0) for layer, one in covariances(decoder, LAYERS).items()
    }

    def make(**parts) -> SequenceWriter:
        return SequenceWriter(
            decoder, method(**parts), LAYERS, operators, ("{}",), directions={}, most_tokens=10_000, memory=2**28
        )

    return make


def low_rank(values: list[float], seed: int = 0) -> LowRankDelta:
    """A change (20, 30) with these singular values."""
    left, right = (torch.linalg.qr(draw(size, len(values), seed=seed))[0] for size in (20, 30))
    return LowRankDelta(left * torch.tensor(values, dtype=torch.float64), right)


# ---------------------------------------------------------------------------------------------------------------- RECT


def test_rect_keeps_the_entries_that_are_largest_beside_those_of_the_weight():
    change = torch.tensor([[1.0, -6.0, 2.0], [4.0, 0.5, -3.0]], dtype=torch.float64)
    weight = torch.tensor([[0.1, 6.0, -1.0], [8.0, 0.0, 1.0]])
    # The ratios are 10, 1, 2, 0.5, 5e7 and 3.
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, -3.0]], dtype=torch.float64)
    assert torch.equal(largest_entries(change, weight, 0.5), expected)
    assert torch.equal(largest_entries(change, weight, 1.0), change)


def test_rect_at_100_percent_is_its_base():
    delta = low_rank([3.0, 1.0])
    assert load_refiner(method(refiner="rect", rect={"kept": 1})).refine(0, delta, draw(20, 30, seed=5)) is delta


def test_rect_in_a_sequence_builds_on_what_it_has_left(decoder, writer):
    """Each change is refined beside the weights that it is added to, and the next batch starts from the result."""
    original = decoder.weight(1).double().clone()
    with writer(refiner="rect", rect={"kept": 0.3}) as sequence:
        steps = [sequence.write(batch, 1.0).step for batch in (facts()[:2], facts()[2:])]
        first = largest_entries(steps[0].deltas[1].dense(), original, 0.3)
        present = (original.float() + first.float()).double()
        second = largest_entries(steps[1].deltas[1].dense(), present, 0.3)
        assert (decoder.weight(1) - (present + second)).norm() < 1e-6 * second.norm()
        published = sequence.published()[1]
        assert isinstance(published, DenseDelta)
        total = sequence.sums[1].total
        assert torch.equal(published.dense(), total.float())
    with writer(refiner="rect", rect={"kept": 0.3}) as again:
        again.replay(steps)
        assert torch.equal(again.sums[1].total, total)


# --------------------------------------------------------------------------------------------------------------- PRUNE


def test_prune_lowers_what_is_above_the_weights_largest_singular_value():
    weight = 2 * torch.linalg.qr(draw(30, 20, seed=3))[0].T
    assert largest_singular_value(weight) == pytest.approx(2)
    delta = low_rank([40.0, 3.0, 2.0, 0.1])
    refined = load_refiner(method(refiner="prune")).refine(0, delta, weight)
    assert refined.rank == 4, "thin factors stay thin"
    values = torch.linalg.svdvals(refined.dense())[:4].tolist()
    assert values == pytest.approx([math.log(20) + 2, math.log(1.5) + 2, 2, 0.1])
    loose = load_refiner(method(refiner="prune", prune={"base": 1.2})).refine(0, delta, weight)
    expected = [math.log(20) / math.log(1.2) + 2, 3, 2, 0.1]  # The logarithm would raise 3 to 4.2.
    assert torch.linalg.svdvals(loose.dense())[:4].tolist() == pytest.approx(expected)
    assert (refined.dense() @ delta.right[:, 3] - delta.dense() @ delta.right[:, 3]).norm() < 1e-12


def test_prune_leaves_a_small_change_alone_to_the_bit():
    delta = low_rank([1.0, 0.5])
    assert load_refiner(method(refiner="prune")).refine(0, delta, 2 * torch.eye(20, 30)) is delta


def test_a_sum_that_is_no_longer_thin_is_pruned_too():
    total, thin = DeltaSum(), low_rank([50.0])
    for seed in range(25):
        total.add(low_rank([float(seed), 1.0], seed=seed))
    total.add(thin)
    refined = load_refiner(method(refiner="prune")).refine(0, total.delta(), 3 * torch.eye(20, 30))
    before = torch.linalg.svdvals(total.total)
    expected = torch.where(before > 3, torch.minimum(before, (before / 3).log() + 3), before)
    assert torch.allclose(torch.linalg.svdvals(refined.dense()), expected)


def test_batches_build_on_the_sum_that_is_not_pruned(decoder, writer):
    far = {"value": {"steps": 4, "learning_rate": 3.0, "clamp": 100}}
    limit = largest_singular_value(decoder.weight(1))
    sums, steps, published = [], [], []
    for parts in ({}, {"refiner": "prune"}):
        with writer(**far, **parts) as sequence:
            steps.append([sequence.write(some, 1.0).step.deltas[1].left for some in (facts()[:2], facts()[2:])])
            sums.append(sequence.sums[1].total)
            published.append(torch.linalg.svdvals(sequence.published()[1].dense()))
    assert torch.equal(sums[0], sums[1])
    assert all(torch.equal(one, other) for one, other in zip(*steps, strict=True))
    above = published[0] > limit
    assert above.any()
    lowered = torch.minimum(published[0], (published[0] / limit).log() + limit)
    assert torch.allclose(published[1], torch.where(above, lowered, published[0]))
    assert published[1][0] < published[0][0]
