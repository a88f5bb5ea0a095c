"""The one equation that all locate-then-edit methods solve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.tasks.covariance.cholesky import SingularMatrixError, cholesky
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.preservation.operator import PreservationOperator

__all__ = ["CollidingKeysError", "colliding", "solve_edit"]


class CollidingKeysError(Exception):
    """K^T A^-1 K + slack I is singular: some facts ask for different values at the same key.

    Attributes:
        pairs: indices of facts whose keys nearly coincide under A^-1, closest first.
    """

    def __init__(self, pairs: list[tuple[int, int]]) -> None:
        super().__init__(f"the keys of facts {pairs} are linearly dependent")
        self.pairs = pairs


def colliding(requests: Sequence[EditRequest], error: CollidingKeysError) -> InputError:
    """The error of two facts of a batch that ask for different values at the same key."""
    first, second = (requests[index] for index in error.pairs[0])
    return InputError(
        f"Cases {first.case_id} and {second.case_id} cannot both be written exactly: their keys coincide.",
        got=f"{first.prompt!r} and {second.prompt!r}",
        remedy="drop one of them, or set method.slack above 0",
    )


def solve_edit(
    keys: Tensor,
    residuals: Tensor,
    preservation: PreservationOperator,
    *,
    slack: float,
    read_keys: Tensor | None = None,
) -> LowRankDelta:
    """The low-rank weight change that maps ``keys`` to ``residuals`` and preserves what ``preservation`` protects.

    With S = A^-1 K, the change is Delta = R (S^T K_read + slack I)^-1 S^T. If K_read = K, it minimises
    ||Delta K - R||^2 / slack + tr(Delta A Delta^T)    [Meng et al. 2022b eq. 14; Gupta et al. 2024 eq. 9]
    Slack 1 gives MEMIT, and slack 0 gives the equality constraint of ROME and EMMET.

    Args:
        keys: (d_in, B) inputs of the edited weight at the lookup tokens.
        residuals: (d_out, B) wanted changes of the MLP output.
        preservation: applies A^-1.
        slack: gamma, the weight of the memorisation error; 0 forces equality, 1 is least squares.
        read_keys: (d_in, B) keys that the change is read with, if they differ from ``keys`` (the original ROME).

    Returns:
        Factors (d_out, B) and (d_in, B), float64.

    Raises:
        CollidingKeysError: the B x B system is singular; gives the pairs of facts that collide.
    """
    solved = preservation.solve(keys)
    residuals = residuals.to(solved)
    system = solved.T @ (keys if read_keys is None else read_keys).to(solved)
    system.diagonal().add_(slack)
    if read_keys is not None:
        # The system is not symmetric. Facts cannot collide, because ROME writes one fact at a time.
        return LowRankDelta(torch.linalg.solve(system.T, residuals.T).T, solved)
    system = (system + system.T) / 2
    try:
        factor = cholesky(system)
    except SingularMatrixError:
        raise CollidingKeysError(_closest_pairs(system)) from None
    return LowRankDelta(torch.cholesky_solve(residuals.T, factor).T, solved)


def _closest_pairs(system: Tensor, most: int = 5) -> list[tuple[int, int]]:
    scale = system.diagonal().clamp(min=torch.finfo(system.dtype).tiny).rsqrt()
    cosine = (system * scale[:, None] * scale).triu(diagonal=1)
    order = cosine.flatten().argsort(descending=True)[:most].tolist()
    size = len(system)
    return [(index // size, index % size) for index in order if index // size < index % size]
