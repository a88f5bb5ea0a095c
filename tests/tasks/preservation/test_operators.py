"""Every preservation operator against the dense float64 formula, and laws of the low-rank family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from factsmith.tasks.edit.solve import solve_edit
from factsmith.tasks.preservation.full import FullPreservation
from factsmith.tasks.preservation.history import History, principal_directions
from factsmith.tasks.preservation.identity import IdentityPreservation
from factsmith.tasks.preservation.low_rank import LowRankPreservation
from factsmith.tasks.preservation.low_rank_model import (
    LowRankModel,
    RankError,
    RankRule,
    fused_covariance,
    fused_factor,
    prior,
)
from factsmith.tasks.preservation.null_space import NullSpace, NullSpacePreservation
from factsmith.tasks.preservation.operator import PreservationOperator
from tests.algebra import BATCH, D_IN, D_OUT, covariance, draw

IDENTITY = torch.eye(D_IN, dtype=torch.float64)
FLOOR = 1e-6


def rule(**given) -> RankRule:
    return RankRule(**{"rank": 20, "energy": 0.8, "energy_of": "eigenvalues", **given})


def modelled(*, floor: float = FLOOR, **given) -> LowRankModel:
    return LowRankModel.of_covariance(covariance(), rule(**given), floor)


def dense_model(model: LowRankModel) -> Tensor:
    return model.basis * model.values @ model.basis.T + model.diagonal.diag()


def dense_full() -> tuple[PreservationOperator, Tensor]:
    return FullPreservation.from_covariance(covariance(), weight=3.0, ridge=1e-3), 3 * covariance() + 1e-3 * IDENTITY


def dense_low_rank() -> tuple[PreservationOperator, Tensor]:
    model = modelled()
    return LowRankPreservation(model, weight=3.0), 3 * dense_model(model)


def dense_identity() -> tuple[PreservationOperator, Tensor]:
    return IdentityPreservation(3.0), 3 * IDENTITY


INVERTIBLE = {"full": dense_full, "low_rank": dense_low_rank, "identity": dense_identity}


def spaces() -> dict[str, NullSpace]:
    """Null spaces that are kept by a basis of their own, by one of what must stay, and as AlphaEdit-F's."""
    values = torch.linalg.eigvalsh(covariance())
    return {
        "small": NullSpace.of_covariance(covariance(), float(values[10] + values[11]) / 2),
        "large": NullSpace.of_covariance(covariance(), float(values[29] + values[30]) / 2),
        "low_rank": NullSpace(modelled().basis, complement=True),
    }


def operators() -> dict[str, PreservationOperator]:
    found = {name: make()[0] for name, make in INVERTIBLE.items()}
    return found | {f"null_space of {name}": NullSpacePreservation(one, l2=0.7) for name, one in spaces().items()}


def near(one: Tensor, other: Tensor, tolerance: float = 1e-6) -> bool:
    return bool((one - other).norm() <= tolerance * other.norm())


@pytest.fixture(params=operators())
def operator(request) -> PreservationOperator:
    return operators()[request.param]


@pytest.mark.parametrize("name", INVERTIBLE)
def test_solving_is_what_the_dense_inverse_does(name):
    operator, dense = INVERTIBLE[name]()
    assert near(operator.solve(draw(D_IN, BATCH).float()), torch.linalg.inv(dense) @ draw(D_IN, BATCH).float().double())


@pytest.mark.parametrize("name", INVERTIBLE)
@pytest.mark.parametrize("slack", [0.0, 1.0])
def test_a_sequence_of_edits_is_what_dense_matrices_give(name, slack):
    """Earlier keys added to A, batch by batch: Delta_t = R_t (K_t^T S + slack I)^-1 S^T, S = (A + H)^-1 K_t."""
    operator, dense = INVERTIBLE[name]()
    history = History(operator)
    for step in range(5):
        keys, residuals = draw(D_IN, BATCH, seed=10 + step), draw(D_OUT, BATCH, seed=20 + step)
        solved = torch.linalg.solve(dense, keys)
        gram = keys.T @ solved + slack * torch.eye(BATCH, dtype=torch.float64)
        textbook = residuals @ torch.linalg.solve(gram, solved.T)
        assert near(solve_edit(keys, residuals, history, slack=slack).dense(), textbook)
        if slack:
            assert near(textbook, residuals @ torch.linalg.solve(dense + keys @ keys.T, keys).T)
        history.add(keys)
        dense = dense + keys @ keys.T


@pytest.mark.parametrize("name", spaces())
def test_alphaedit_in_the_form_of_its_paper(name):
    """Delta^T = (P (K K^T + H) + L2 I)^-1 P K R^T [Fang et al. 2025], with and without earlier keys."""
    space = spaces()[name]
    projector = space.project(IDENTITY)
    assert near(projector @ projector, projector)
    assert torch.allclose(projector, projector.T)
    assert projector.trace().round() == space.dimensions
    history = History(NullSpacePreservation(space, l2=0.7))
    earlier = torch.zeros(D_IN, D_IN, dtype=torch.float64)
    for step in range(3):
        keys, residuals = draw(D_IN, BATCH, seed=10 + step), draw(D_OUT, BATCH, seed=20 + step)
        system = projector @ (keys @ keys.T + earlier) + 0.7 * IDENTITY
        textbook = torch.linalg.solve(system, projector @ keys @ residuals.T).T
        assert near(solve_edit(keys, residuals, history, slack=1.0).dense(), textbook)
        history.add(keys)
        earlier = earlier + keys @ keys.T


def test_the_null_space_holds_what_is_below_the_threshold():
    values, vectors = torch.linalg.eigh(covariance())
    for size, complement in ((0, False), (11, False), (30, True), (D_IN, True)):
        middle = torch.cat([values[:1] / 2, (values[1:] + values[:-1]) / 2, values[-1:] * 2])[size]
        space = NullSpace.of_covariance(covariance(), float(middle))
        assert (space.dimensions, space.complement) == (size, complement)
        assert torch.allclose(space.project(IDENTITY), vectors[:, :size] @ vectors[:, :size].T)


# ------------------------------------------------------------------------------------------------------ history


def test_how_keys_were_added_does_not_matter(operator):
    keys, asked = draw(D_IN, 30, seed=4), draw(D_IN, 3, seed=5)
    together, one_by_one, mixed = History(operator), History(operator), History(operator)
    together.add(keys)
    for key in keys.split(1, dim=1):
        one_by_one.add(key)
        one_by_one.solve(asked)
    for part in keys.flip(1).split([4, 1, 25], dim=1):
        mixed.add(part)
    expected = together.solve(asked)
    for history in (one_by_one, mixed):
        assert len(history) == 30
        assert near(history.solve(asked), expected)
    assert torch.equal(one_by_one.keys, keys)


@pytest.mark.parametrize("numbers", [1, 7 * D_IN])
def test_a_history_of_many_blocks_is_that_of_one(operator, monkeypatch, numbers):
    def solved() -> Tensor:
        history = History(operator)
        history.add(draw(D_IN, 30, seed=4))
        history.solve(draw(D_IN, 1))
        return history.solve(draw(D_IN, 2, seed=5))

    expected = solved()
    monkeypatch.setattr("factsmith.tasks.preservation.history._BLOCK", numbers)
    assert near(solved(), expected, 1e-9)


def test_solving_twice_gives_the_same(operator):
    history = History(operator)
    history.add(draw(D_IN, 4, seed=4))
    first = history.solve(draw(D_IN, 3))
    assert near(history.solve(draw(D_IN, 3)), first, 1e-12)


def test_no_history_is_the_operator_alone(operator):
    assert torch.equal(History(operator).solve(draw(D_IN, 3)), operator.solve(draw(D_IN, 3)))


def test_a_history_is_its_keys(operator):
    history = History(operator)
    for step in range(4):
        history.add(draw(D_IN, 5, seed=step))
        history.solve(draw(D_IN, 1))
    resumed = History(operator)
    resumed.add(history.keys.clone())
    assert near(resumed.solve(draw(D_IN, 3)), history.solve(draw(D_IN, 3)))


@pytest.mark.parametrize("count", [30, 3 * D_IN])
def test_compression_that_loses_nothing_changes_nothing(operator, count):
    whole, compressed = History(operator), History(operator)
    for history in (whole, compressed):
        history.add(draw(D_IN, count, seed=4))
    compressed.compress(energy=1, most=1000)
    assert len(compressed) == min(count, D_IN)
    assert near(compressed.solve(draw(D_IN, 3)), whole.solve(draw(D_IN, 3)))
    for history in (whole, compressed):
        history.add(draw(D_IN, 2, seed=6))
    assert near(compressed.solve(draw(D_IN, 3)), whole.solve(draw(D_IN, 3)))


@pytest.mark.parametrize("count", [12, 3 * D_IN])
def test_compression_keeps_the_leading_directions(count):
    keys = draw(D_IN, count, seed=4) * torch.logspace(0, -3, count, dtype=torch.float64)
    left, values, _ = torch.linalg.svd(keys, full_matrices=False)
    squares = values.square()
    kept = principal_directions(keys, 0.9, 1000)
    rank = kept.shape[1]
    assert squares[: rank - 1].sum() < 0.9 * squares.sum() <= squares[:rank].sum()
    assert near(kept @ kept.T, left[:, :rank] * squares[:rank] @ left[:, :rank].T)
    assert torch.equal(principal_directions(keys, 0.9, 2), kept[:, :2])


def test_a_history_that_is_absorbed_again_and_again_stays_what_dense_matrices_give(operator):
    """Ten times as many keys as d_in, absorbed after every d_in of them."""
    one, other, asked = History(operator), History(operator), draw(D_IN, 3)
    for step in range(10 * D_IN // BATCH):
        keys = draw(D_IN, BATCH, seed=step)
        one.add(keys)
        one.solve(keys)
        if len(one) >= D_IN:
            one.absorb()
        other.add(keys)
    assert len(one) < D_IN < len(other)
    assert near(one.solve(asked), other.solve(asked))
    one.add(asked)
    other.add(asked)
    assert near(one.solve(asked), other.solve(asked))


def test_absorbing_no_keys_is_no_matter(operator):
    history = History(operator)
    history.absorb()
    assert torch.equal(history.solve(draw(D_IN, 3)), operator.solve(draw(D_IN, 3)))


def test_compressing_no_keys_is_no_matter(operator):
    history = History(operator)
    history.compress(0.99, 10)
    assert len(history) == 0


def test_repeated_keys_do_no_harm(operator):
    """The same fact edited again and again: its direction is ever better preserved, and others stay as they were."""
    key = draw(D_IN, 1, seed=4)
    repeated, scaled = History(operator), History(operator)
    for _ in range(50):
        repeated.add(key)
        repeated.solve(key)
    scaled.add(50**0.5 * key)
    assert near(repeated.solve(draw(D_IN, 3)), scaled.solve(draw(D_IN, 3)))


# ----------------------------------------------------------------------------------------------- low-rank models


def test_a_full_rank_with_a_floor_is_the_full_covariance_with_a_ridge():
    """r0 = d and a floor of delta: lambda (C + delta I), the operator of MEMIT at that ridge."""
    floor = 1e-3
    delta = floor * float(covariance().diagonal().mean())
    low = LowRankPreservation(modelled(rank=D_IN, floor=floor), weight=3.0)
    full = FullPreservation.from_covariance(covariance(), weight=3.0, ridge=3 * delta)
    assert near(low.solve(draw(D_IN, BATCH)), full.solve(draw(D_IN, BATCH)))
    assert low.model.energy == pytest.approx(1)
    assert low.model.floored == D_IN


def test_the_model_is_the_leading_part_and_the_diagonal_of_the_rest():
    c = covariance()
    values, vectors = torch.linalg.eigh(c)
    model = modelled(rank=20)
    assert near(model.basis * model.values @ model.basis.T, vectors[:, -20:] * values[-20:] @ vectors[:, -20:].T)
    assert near(dense_model(model).diagonal(), c.diagonal())
    assert model.energy == pytest.approx(float(values[-20:].sum() / values.sum()))
    assert model.floored == 0
    raised = modelled(rank=20, floor=0.5)
    assert raised.diagonal.min() == pytest.approx(0.5 * float(c.diagonal().mean()))
    assert raised.floored == int((model.diagonal < 0.5 * c.diagonal().mean()).sum()) > 0


@pytest.mark.parametrize("energy", [0.3, 0.8, 0.99, 1.0])
@pytest.mark.parametrize("energy_of", ["eigenvalues", "squared_eigenvalues"])
def test_the_rank_is_the_least_that_holds_the_energy(energy, energy_of):
    values = torch.linalg.eigvalsh(covariance()).flip(0)
    power = 1 if energy_of == "eigenvalues" else 2
    held = values.pow(power).cumsum(0) / values.pow(power).sum()
    rank = modelled(rank=None, energy=energy, energy_of=energy_of).basis.shape[1]
    assert held[rank - 1] >= energy - 1e-12
    assert rank == 1 or held[rank - 2] < energy


def test_a_rank_that_is_not_there_is_refused():
    keys = draw(30, D_IN)
    for make in (
        lambda: LowRankModel.of_factor(fused_factor(keys, None, 0.0), rule(rank=30), FLOOR),
        lambda: LowRankModel.of_covariance(torch.cov(keys.T), rule(rank=30), FLOOR),
    ):
        with pytest.raises(RankError) as caught:
            make()
        assert caught.value.rank == 29  # one less than the keys, since they are centred


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.6])
def test_the_gram_side_gives_the_same_model(fraction, centred):
    """Fewer keys than dimensions: from the keys alone, without C_fused, as from C_fused."""
    keys = draw(25, D_IN, seed=7) * torch.logspace(0, -2, D_IN, dtype=torch.float64) + 3
    structure = prior(draw(D_OUT, D_IN, seed=8), 9)
    covariance = torch.cov(keys.T) if centred else keys.T @ keys / len(keys)
    fused = fused_covariance(covariance, structure, fraction)
    factor = fused_factor(keys, structure, fraction, centred=centred)
    assert near(factor @ factor.T, fused)
    thin = LowRankModel.of_factor(factor, rule(rank=12), FLOOR)
    whole = LowRankModel.of_covariance(fused, rule(rank=12), FLOOR)
    assert near(thin.basis.T @ thin.basis, torch.eye(12, dtype=torch.float64), 1e-12)
    asked = draw(D_IN, BATCH)
    assert near(LowRankPreservation(thin, 2.0).solve(asked), LowRankPreservation(whole, 2.0).solve(asked))
    assert thin.energy == pytest.approx(whole.energy)


@pytest.mark.parametrize("shape", [(D_OUT, D_IN), (D_IN, D_OUT)])
def test_the_prior_is_the_projections_leading_part_at_the_size_of_the_data(shape):
    weight = draw(*shape, seed=8)
    _, values, right = torch.linalg.svd(weight, full_matrices=False)
    structure = prior(weight.float(), 7)
    expected = right[:7].T * values[:7].square() @ right[:7]
    assert near(structure @ structure.T, expected, 1e-6)
    assert prior(weight, 1000).shape[1] <= shape[1]
    data = torch.cov(draw(shape[1], 200, seed=9))
    whole = fused_covariance(data, structure, 1.0)
    assert whole.norm() == pytest.approx(float(data.norm()))
    assert near(fused_covariance(data, structure, 0.25), 0.75 * data + 0.25 * whole)


# --------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("alpha", [0.1, 3.0])
def test_emmet_f_is_memit_f_at_another_weight(alpha):
    """EMMET-F(lambda, alpha) = MEMIT-F(alpha lambda), without history."""
    keys, residuals = draw(D_IN, BATCH, seed=2), draw(D_OUT, BATCH, seed=3)
    emmet = solve_edit(keys, residuals, LowRankPreservation(modelled(), 7.0), slack=alpha)
    memit = solve_edit(keys, residuals, LowRankPreservation(modelled(), 7.0 * alpha), slack=1.0)
    assert near(emmet.dense(), memit.dense())


def test_alphaedit_f_leaves_the_primary_directions_alone():
    """||Delta P_r|| < 1e-6 ||Delta||, after many edits, too."""
    basis = modelled().basis
    history = History(NullSpacePreservation(NullSpace(basis, complement=True), l2=10))
    for step in range(20):
        delta = solve_edit(draw(D_IN, BATCH, seed=step), draw(D_OUT, BATCH, seed=step), history, slack=1.0).dense()
        assert (delta @ basis).norm() < 1e-6 * delta.norm()
        history.add(draw(D_IN, BATCH, seed=step))


def test_the_order_of_facts_does_not_matter(operator):
    keys, residuals = draw(D_IN, BATCH, seed=2), draw(D_OUT, BATCH, seed=3)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    history = History(operator)
    history.add(draw(D_IN, 9, seed=4))
    one = solve_edit(keys, residuals, history, slack=1.0)
    other = solve_edit(keys[:, order], residuals[:, order], history, slack=1.0)
    assert near(other.dense(), one.dense(), 1e-9)
    assert one.rank == BATCH
    assert torch.linalg.matrix_rank(one.dense()) <= BATCH
