"""Batches written one after the other, against plain arithmetic on the same tiny models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.tasks.edit.batch import applied, compute_edit
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.edit.delta_sum import DeltaSum
from factsmith.tasks.edit.sequence import SequenceWriter
from factsmith.tasks.edit.settings import MethodSettings
from factsmith.tasks.facts.activations import FactActivations
from factsmith.tasks.facts.contexts import chat_contexts
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.selection import scored_batches
from factsmith.tasks.preservation.full import FullPreservation
from factsmith.tasks.preservation.history import History
from factsmith.tasks.preservation.low_rank import LowRankPreservation
from factsmith.tasks.preservation.low_rank_model import LowRankModel, RankRule
from factsmith.tasks.preservation.null_space import NullSpace, NullSpacePreservation
from factsmith.tasks.preservation.operator import PreservationOperator
from factsmith.tasks.values.optimiser import optimise_values
from tests.chats import PLAIN
from tests.conftest import load
from tests.edits import covariances, facts, weights

CONTEXTS = ("{}", "The judge plays the flute. {}")
LAYERS = [0, 1]
MEMORY = 2**28


@pytest.fixture
def decoder(gpt2_folder):
    return load(gpt2_folder)


@pytest.fixture
def operators(decoder, request):
    """Of each layer: full preservation, or the kind that a test asks for."""
    kind = getattr(request, "param", "full")
    return {layer: preservation(kind, covariance) for layer, covariance in covariances(decoder, LAYERS).items()}


def preservation(kind: str, covariance: torch.Tensor) -> PreservationOperator:
    if kind == "full":
        return FullPreservation.from_covariance(covariance, weight=2.0)
    model = LowRankModel.of_covariance(covariance, RankRule(5, 1.0, "eigenvalues"), 1e-6)
    if kind == "low_rank":
        return LowRankPreservation(model, 2.0)
    return NullSpacePreservation(NullSpace(model.basis, complement=True), l2=1.0)


def method(**sequence) -> MethodSettings:
    return MethodSettings.model_validate(
        {
            "name": "memit", "layers": LAYERS, "preservation_weight": 2, "slack": 1, "value": {"steps": 4},
            "sequence": {"history": "none", **sequence},
        }
    )  # fmt: skip


def writer(decoder, operators, directions=None, contexts=CONTEXTS, **sequence) -> SequenceWriter:
    return SequenceWriter(
        decoder, method(**sequence), LAYERS, operators, contexts,
        directions=directions or {}, most_tokens=10_000, memory=MEMORY,
    )  # fmt: skip


def batch_edit(decoder, operators, requests) -> dict[int, LowRankDelta]:
    vectors = optimise_values(decoder, requests, CONTEXTS, LAYERS[-1], method().value, memory=MEMORY)
    values = torch.stack([vector.value for vector in vectors])
    return compute_edit(decoder, requests, values, CONTEXTS, LAYERS, operators.get, slack=1.0, most_tokens=10_000)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("history", ["none", "full", "compressed"])
def test_one_batch_in_sequence_is_a_batch(decoder, operators, history):
    expected = batch_edit(decoder, operators, facts())
    with writer(decoder, operators, history=history) as sequence:
        sequence.write(facts(), 1.0)
        for layer in LAYERS:
            assert apart(sequence.sums[layer].total, expected[layer].dense()) < 1e-12


def test_the_keys_of_questions_are_preserved_and_do_not_collide_with_those_of_their_facts(decoder, operators):
    decoder.tokenizer.chat_template = PLAIN
    asked = [replace(one, question="{}") for one in facts()[:2]]
    contexts = ("{}", *chat_contexts(decoder.tokenizer))
    with writer(decoder, operators, contexts=contexts, history="full") as sequence:
        written = sequence.write([*asked, facts()[2]], 1.0)
        assert {layer: keys.shape[1] for layer, keys in written.step.keys.items()} == dict.fromkeys(LAYERS, 5)
        assert all(one < other < 3 for one, other, _ in written.collisions)
        assert len(written.facts) == 3
        first = {layer: total.total.clone() for layer, total in sequence.sums.items()}
        sequence.write(facts()[3:], 1.0)
    with writer(decoder, operators, contexts=contexts, history="full") as again:
        again.replay([written.step])
        assert all(torch.equal(again.sums[layer].total, first[layer]) for layer in LAYERS)


def test_a_second_batch_starts_from_what_the_first_has_left(decoder, operators):
    first, second = facts()[:2], facts()[2:]
    one = batch_edit(decoder, operators, first)
    with applied(decoder, one):
        other = batch_edit(decoder, operators, second)
    with writer(decoder, operators) as sequence:
        sequence.write(first, 1.0)
        step = sequence.write(second, 1.0).step
        for layer in LAYERS:
            assert apart(step.deltas[layer].dense(), other[layer].dense()) < 1e-5
            assert apart(sequence.sums[layer].total, one[layer].dense() + other[layer].dense()) < 1e-5


def test_earlier_keys_are_preserved_as_the_dense_formula_has_it(decoder, operators):
    """Delta = R K^T (A + H + K K^T)^-1, H of the keys that the edited model gives for the first batch."""
    with writer(decoder, operators, history="full") as sequence:
        sequence.write(facts()[:2], 1.0)
        sweep = FactActivations(decoder, facts()[:2], CONTEXTS, clean_weight=0.5)
        held = {layer: sweep.keys(layer)[0] for layer in LAYERS}
        again = FactActivations(decoder, facts()[2:], CONTEXTS, clean_weight=0.5)
        keys = again.keys(0)[0]
        vectors = optimise_values(decoder, facts()[2:], CONTEXTS, LAYERS[-1], method().value, memory=MEMORY)
        values = torch.stack([vector.value for vector in vectors]).double().T
        residuals = (values - again.outputs(0, LAYERS[-1])) / 2
        found = sequence.write(facts()[2:], 1.0).step.deltas[0].dense()
    matrix = operators[0].factor @ operators[0].factor.T + held[0] @ held[0].T
    assert apart(found, residuals @ keys.T @ torch.linalg.inv(matrix + keys @ keys.T)) < 1e-6
    without = residuals @ keys.T @ torch.linalg.inv(matrix - held[0] @ held[0].T + keys @ keys.T)
    assert apart(found, without) > 1e-3


def test_keys_read_again_are_those_that_were_written(decoder, operators):
    """A layer's keys depend on the layers below it alone, which have been written by the time that they are read."""
    keys = {}
    for which in ("after_write", "as_written"):
        with writer(decoder, operators, history="full", history_keys=which) as sequence:
            sequence.write(facts()[:2], 1.0)
            keys[which] = sequence.write(facts()[2:], 1.0).step.keys
    unedited = FactActivations(decoder, facts()[2:], CONTEXTS, clean_weight=0.5)
    for layer in LAYERS:
        assert apart(keys["after_write"][layer], keys["as_written"][layer]) < 1e-5
    assert apart(unedited.keys(1)[0], keys["after_write"][1]) > 1e-3


def ones(decoder, operators, directions=None, **sequence):
    """The four facts one by one: the sums, what was written, and the weights then."""
    with writer(decoder, operators, directions, **sequence) as run:
        written = [run.write([fact], 1.0) for fact in facts()]
        return run.sums, written, [decoder.weight(layer).clone() for layer in LAYERS]


def test_history_compressed_at_energy_1_is_full_history(decoder, operators):
    full, _, _ = ones(decoder, operators, history="full")
    kept, _, _ = ones(decoder, operators, history="compressed", tau=2, energy=1.0)
    little, _, _ = ones(decoder, operators, history="compressed", tau=2, energy=0.1)
    for layer in LAYERS:
        assert apart(kept[layer].total, full[layer].total) < 1e-5
    assert any(apart(little[layer].total, full[layer].total) > 1e-4 for layer in LAYERS)


@pytest.mark.parametrize("operators", ["full", "low_rank", "null_space"], indirect=True)
@pytest.mark.parametrize("history", ["none", "full", "compressed"])
def test_a_writer_that_replays_another_continues_with_the_same_bits(decoder, operators, history):
    sums, written, held = ones(decoder, operators, history=history, tau=2)
    with writer(decoder, operators, history=history, tau=2) as sequence:
        sequence.replay(one.step for one in written[:3])
        last = sequence.write([facts()[3]], 1.0)
        for place, layer in enumerate(LAYERS):
            assert torch.equal(last.step.deltas[layer].left, written[3].step.deltas[layer].left)
            assert torch.equal(sequence.sums[layer].total, sums[layer].total)
            assert torch.equal(decoder.weight(layer), held[place])


def test_a_long_sequence_is_absorbed_and_replayed_with_the_same_bits(decoder, operators):
    """More keys than d_in. What is absorbed costs no accuracy: the keys together give the same operator."""
    width = decoder.weight(0).shape[1]
    batches = [facts()] * (width // len(facts()) + 2)
    with writer(decoder, operators, history="full") as sequence:
        written = [sequence.write(batch, 1.0) for batch in batches]
        assert all(0 < len(history) < width for history in sequence._histories.values())
        absorbed = sequence._histories[0]
        together = History(operators[0])
        together.add(torch.cat([one.step.keys[0] for one in written], 1))
        asked = torch.randn(width, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        assert apart(absorbed.solve(asked), together.solve(asked)) < 1e-8
    with writer(decoder, operators, history="full") as sequence:
        sequence.replay(one.step for one in written[:-1])
        last = sequence.write(batches[-1], 1.0)
        assert torch.equal(last.step.deltas[1].left, written[-1].step.deltas[1].left)
        assert torch.equal(last.step.deltas[1].right, written[-1].step.deltas[1].right)


def test_the_model_is_what_it_was_afterwards_even_after_an_error(decoder, operators):
    before = weights(decoder)
    with pytest.raises(ZeroDivisionError), writer(decoder, operators) as sequence:
        sequence.write(facts(), 1.0)
        assert not all(torch.equal(one, other) for one, other in zip(before, weights(decoder), strict=True))
        raise ZeroDivisionError
    assert all(torch.equal(one, other) for one, other in zip(before, weights(decoder), strict=True))


def test_measures_are_those_of_the_dense_changes(decoder, operators):
    generator = torch.Generator().manual_seed(3)
    width = decoder.key_width
    directions = {
        layer: torch.linalg.qr(torch.randn(width, 5, generator=generator, dtype=torch.float64))[0] for layer in LAYERS
    }
    _, written, _ = ones(decoder, operators, directions)
    for place, layer in enumerate(LAYERS):
        leading = directions[layer] @ directions[layer].T
        total = torch.zeros(decoder.width, width, dtype=torch.float64)
        for one in written:
            step = one.step.deltas[layer].dense()
            total += step
            found = one.layers[place]
            expected = [
                step.norm(), (step @ leading).norm(), (step - step @ leading).norm(),
                total.norm(), (total @ leading).norm(), (total - total @ leading).norm(),
                total.norm() / decoder.weight(layer).double().norm(),
            ]  # fmt: skip
            names = ("step", "step_leading", "step_rest", "total", "total_leading", "total_rest", "relative")
            assert [getattr(found, name) for name in names] == pytest.approx([float(one) for one in expected], rel=1e-9)


def test_what_was_reached_is_read_from_the_edited_model(decoder, operators):
    """Nothing where the layers are held fast; all of it where nothing holds them, and what is written is read."""
    for hold, expected in ((1e4, 0), (1e-4, 1)):
        scaled = {layer: FullPreservation(hold * operators[layer].factor) for layer in LAYERS}
        with writer(decoder, scaled, contexts=CONTEXTS[:1]) as sequence:
            written = [sequence.write([fact], 1.0) for fact in facts()]
        assert [one.facts[0].reached for one in written] == pytest.approx([expected] * 4, abs=1e-3)


def test_facts_with_nearly_the_same_key_are_reported(decoder, operators):
    twins = [EditRequest(7, "Mara Flousano", "{} speaks", "Danish"), EditRequest(8, "Mara Flousano", "{} says", "Oslo")]
    with writer(decoder, operators) as sequence:
        written = sequence.write([facts()[1], *twins], 1.0)  # a subject's own key: what follows it does not matter
        ((first, second, cosine),) = written.collisions
        assert (first, second) == (1, 2)
        assert cosine == pytest.approx(1)
        assert not sequence.write(facts()[2:], 1.0).collisions


def test_a_sum_of_changes_is_thin_while_it_can_be():
    generator = torch.Generator().manual_seed(0)
    parts = [
        LowRankDelta(*(torch.randn(size, 2, generator=generator, dtype=torch.float64) for size in (5, 9)))
        for _ in range(4)
    ]
    total = DeltaSum()
    for number, part in enumerate(parts, 1):
        total.add(part)
        expected = sum(one.dense() for one in parts[:number])
        assert apart(total.total, expected) < 1e-14
        assert apart(total.delta().dense(), expected) < 1e-14
        assert total.delta().rank == min(2 * number, 5)


def test_when_a_sequence_is_scored():
    assert scored_batches([1] * 400, None) == [40, 80, 120, 160, 200, 240, 280, 320, 360, 400]
    assert scored_batches([1] * 4, None) == [1, 2, 3, 4]
    assert scored_batches([16] * 4, [1, 17, 32]) == [1, 2, 4]
    assert scored_batches([5, 5, 2], [12]) == [3]
    for counts in ([0], [13], [1, -1]):
        with pytest.raises(InputError, match="evaluate_at"):
            scored_batches([5, 5, 2], counts)
