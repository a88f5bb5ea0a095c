"""Laws of the one equation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from factsmith.tasks.covariance.cholesky import SingularMatrixError, cholesky, least_ridge
from factsmith.tasks.covariance.moments import Moments
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.edit.solve import CollidingKeysError, solve_edit
from factsmith.tasks.preservation.full import FullPreservation
from tests.algebra import BATCH, D_IN, D_OUT, covariance, draw


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor]:
    return covariance(), draw(D_IN, BATCH, seed=2), draw(D_OUT, BATCH, seed=3)


@pytest.mark.parametrize("weight", [0.03, 1.0, 15000.0])
@pytest.mark.parametrize("slack", [0.0, 0.1, 1.0])
def test_agrees_with_the_textbook(problem, weight, slack):
    """MEMIT: R K^T (lambda C + K K^T)^-1; EMMET: R (K^T C'^-1 K + alpha I)^-1 K^T C'^-1, C' = lambda C."""
    c, keys, residuals = problem
    delta = solve_edit(keys, residuals, FullPreservation.from_covariance(c, weight=weight), slack=slack).dense()
    inverse = torch.linalg.inv(weight * c)
    gram = keys.T @ inverse @ keys + slack * torch.eye(BATCH, dtype=torch.float64)
    textbook = residuals @ torch.linalg.inv(gram) @ keys.T @ inverse
    assert (delta - textbook).norm() < 1e-8 * textbook.norm()
    if slack == 1.0:
        memit = residuals @ keys.T @ torch.linalg.inv(weight * c + keys @ keys.T)
        assert (delta - memit).norm() < 1e-8 * memit.norm()


@pytest.mark.parametrize("alpha", [0.1, 3.0])
def test_emmet_is_memit_at_another_weight(problem, alpha):
    c, keys, residuals = problem
    emmet = solve_edit(keys, residuals, FullPreservation.from_covariance(c, weight=7.0), slack=alpha)
    memit = solve_edit(keys, residuals, FullPreservation.from_covariance(c, weight=7.0 * alpha), slack=1.0)
    assert (emmet.dense() - memit.dense()).norm() < 1e-9 * memit.dense().norm()


def test_with_a_ridge_the_two_differ(problem):
    c, keys, residuals = problem
    emmet = solve_edit(keys, residuals, FullPreservation.from_covariance(c, weight=7.0, ridge=0.5), slack=0.1)
    memit = solve_edit(keys, residuals, FullPreservation.from_covariance(c, weight=0.7, ridge=0.5), slack=1.0)
    assert (emmet.dense() - memit.dense()).norm() > 1e-3 * memit.dense().norm()


def test_the_less_preservation_weighs_the_nearer_the_target(problem):
    c, keys, residuals = problem
    misses = []
    for weight in (1e3, 1.0, 1e-3, 1e-6, 1e-9):
        delta = solve_edit(keys, residuals, FullPreservation.from_covariance(c, weight=weight), slack=1.0)
        misses.append(float((delta.dense() @ keys - residuals).norm() / residuals.norm()))
    assert misses == sorted(misses, reverse=True)
    assert misses[-1] < 1e-8


def test_no_slack_hits_every_target(problem):
    c, keys, residuals = problem
    delta = solve_edit(keys, residuals, FullPreservation.from_covariance(c, weight=15000.0), slack=0.0)
    assert (delta.dense() @ keys - residuals).norm() < 1e-8 * residuals.norm()


def test_it_minimises_what_it_says(problem):
    """No change of Delta lowers ||Delta K - R||^2 / slack + tr(Delta A Delta^T)."""
    c, keys, residuals = problem
    weight, slack = 2.0, 0.3

    def objective(delta: Tensor) -> Tensor:
        return (delta @ keys - residuals).square().sum() / slack + torch.trace(delta @ (weight * c) @ delta.T)

    best = solve_edit(keys, residuals, FullPreservation.from_covariance(c, weight=weight), slack=slack).dense()
    best.requires_grad_()
    (gradient,) = torch.autograd.grad(objective(best), best)
    assert gradient.norm() < 1e-8 * residuals.norm()


def test_the_order_of_facts_does_not_matter(problem):
    c, keys, residuals = problem
    operator = FullPreservation.from_covariance(c, weight=1.0)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    one = solve_edit(keys, residuals, operator, slack=1.0).dense()
    other = solve_edit(keys[:, order], residuals[:, order], operator, slack=1.0).dense()
    assert (one - other).norm() < 1e-11 * one.norm()


def test_the_rank_is_at_most_the_batch(problem):
    c, keys, residuals = problem
    delta = solve_edit(keys, residuals, FullPreservation.from_covariance(c, weight=1.0), slack=1.0)
    assert delta.rank == BATCH
    assert torch.linalg.matrix_rank(delta.dense()) <= BATCH
    assert delta.norm() == pytest.approx(float(delta.dense().norm()), rel=1e-12)


def test_reading_with_other_keys(problem):
    """ROME writes with one key and reads with another: Delta k_read = r exactly."""
    c, keys, residuals = problem
    write, read, residual = keys[:, :1], keys[:, 1:2], residuals[:, :1]
    operator = FullPreservation.from_covariance(c, weight=1.0)
    delta = solve_edit(write, residual, operator, slack=0.0, read_keys=read)
    assert (delta.dense() @ read - residual).norm() < 1e-8 * residual.norm()
    assert torch.allclose(delta.right, operator.solve(write))


def test_facts_that_collide_are_named(problem):
    c, keys, residuals = problem
    keys = keys.clone()
    keys[:, 4] = keys[:, 1]
    with pytest.raises(CollidingKeysError) as caught:
        solve_edit(keys, residuals, FullPreservation.from_covariance(c, weight=1.0), slack=0.0)
    assert caught.value.pairs[0] == (1, 4)


def test_a_singular_covariance_is_refused_with_its_rank():
    keys = draw(30, D_IN)
    with pytest.raises(SingularMatrixError) as caught:
        FullPreservation.from_covariance(keys.T @ keys / 30, weight=1.0)
    assert (caught.value.size, caught.value.rank) == (D_IN, 30)


@pytest.mark.parametrize(("size", "rank", "scale"), [(3, 1, 1.0), (40, 39, 1e-6), (40, 5, 1e6), (400, 300, 1.0)])
def test_the_least_ridge_is_enough_and_little(size, rank, scale):
    generator = torch.Generator().manual_seed(size)
    keys = scale * torch.randn(rank, size, generator=generator, dtype=torch.float64)
    covariance = keys.T @ keys / rank
    with pytest.raises(SingularMatrixError):
        cholesky(covariance)
    ridge = least_ridge(covariance)
    cholesky(covariance + ridge * torch.eye(size, dtype=torch.float64))
    assert ridge < 1e-9 * covariance.diagonal().mean() * size


def test_a_ridge_mends_a_singular_covariance():
    keys = draw(30, D_IN)
    FullPreservation.from_covariance(keys.T @ keys / 30, weight=1.0, ridge=1e-3)


def test_a_pivot_that_is_only_rounding_is_singular():
    """Cholesky may go through on a singular matrix; what it gives then is noise."""
    basis = draw(D_IN, D_IN - 1)
    _, info = torch.linalg.cholesky_ex(basis @ basis.T)
    assert info == 0  # LAPACK sees nothing wrong
    with pytest.raises(SingularMatrixError) as caught:
        cholesky(basis @ basis.T)
    assert caught.value.rank == D_IN - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_edited_weight_is_rounded_once(dtype):
    weight = draw(D_OUT, D_IN, seed=4).to(dtype)
    delta = LowRankDelta(draw(D_OUT, 3, seed=5), 1e-3 * draw(D_IN, 3, seed=6))
    exact = weight.float() + (delta.left @ delta.right.T).float()
    assert torch.equal(delta.added_to(weight), exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_moments_do_not_depend_on_how_rows_come(dtype):
    keys = draw(500, D_IN).to(dtype)
    moments = Moments(D_IN)
    for part in keys.split([1, 199, 300]):
        moments.update(part)
    exact = keys.double()
    assert moments.count == 500
    assert torch.allclose(moments.covariance, exact.T @ exact / 500, rtol=1e-13, atol=1e-15)
    assert torch.allclose(moments.mean, exact.mean(0), rtol=1e-13, atol=1e-15)
    assert torch.equal(moments.covariance, moments.covariance.T)
