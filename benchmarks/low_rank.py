"""Time low-rank against full preservation, and late against early edits of a sequence, on random keys.

    python benchmarks/low_rank.py factors [1536] [3072]
    python benchmarks/low_rank.py [6400] [16384]

The first compares the leading eigenvectors of a covariance, which low-rank models and null spaces keep, with a full
decomposition. It uses the GPU, if there is one.

The second compares the operators. The widths and ranks are those of GPT-2 XL and GPT-J in the paper. Only the algebra
is measured. For d = 16,384 the full operator needs 7 GB of memory while it is factorised.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from factsmith.tasks.covariance.cholesky import cholesky
from factsmith.tasks.covariance.eigenpairs import eigenpairs
from factsmith.tasks.edit.delta_sum import DeltaSum
from factsmith.tasks.edit.solve import solve_edit
from factsmith.tasks.preservation.full import FullPreservation
from factsmith.tasks.preservation.history import History
from factsmith.tasks.preservation.low_rank import LowRankPreservation
from factsmith.tasks.preservation.low_rank_model import LowRankModel
from factsmith.tasks.preservation.operator import PreservationOperator

RANKS = {6400: 1852, 16384: 5911}
FACTORISED = {"cpu": [1536, 3072], "cuda": [6400, 14336]}
PARTS = (40, 20, 10, 8, 4, 2)
"""Ranks, as divisors of the width. The paper's are between a tenth and two thirds of it."""

ROUNDS = 3

BATCHES = (1, 100)
EARLY, LATE, EDITS = 100, 2000, 40
OUTPUTS = 4
"""d_in over d_out of a GPT-2's projection."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def timed(work: Callable[[], object], repetitions: int = 5) -> float:
    """Median seconds of a repetition, after a warm-up."""
    times = []
    for _ in range(repetitions + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[repetitions // 2]


def seconds(work: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def factors(width: int, device: str, console: Console) -> None:
    """Leading eigenvectors of a covariance, in turn with a full decomposition.

    The eigenvalues fall as i^-0.7, with which the paper's ranks hold about the energies that it gives.
    """
    keys = draw(2 * width, width) * torch.arange(1, width + 1, dtype=torch.float64) ** -0.35
    covariance = (keys.T @ keys / len(keys)).to(device)
    _, vectors = torch.linalg.eigh(covariance)
    asked, ranks = draw(width, 20).to(device), [width // part for part in PARTS]
    works: list[Callable[[], object]] = [partial(torch.linalg.eigh, covariance)]
    leading = {rank: partial(eigenpairs, covariance, rank) for rank in ranks}
    works += leading.values()
    rounds = [[seconds(work, device) for work in works] for _ in range(ROUNDS)]
    medians = [sorted(times)[ROUNDS // 2] for times in zip(*rounds, strict=True)]
    table = Table(title=f"d = {width:,} on {device}: all eigenvectors take {medians[0]:.2f} s, median of {ROUNDS}")
    for column in ("leading", "s", "all / leading", "least", "most", "difference of projections"):
        table.add_column(column, justify="right")
    for place, (rank, work) in enumerate(leading.items(), start=1):
        ratios = sorted(times[0] / times[place] for times in rounds)
        projected, expected = (basis @ (basis.T @ asked) for basis in (work().vectors, vectors[:, -rank:]))
        difference = float((projected - expected).norm() / (asked - expected).norm())
        shown = [f"{ratio:.1f}" for ratio in (ratios[ROUNDS // 2], ratios[0], ratios[-1])]
        table.add_row(f"{rank:,}", f"{medians[place]:.2f}", *shown, f"{difference:.0e}")
    console.print(table)


def low_rank(width: int, rank: int) -> LowRankPreservation:
    """A low-rank model with random directions and a spectrum that falls like that of keys."""
    basis, _ = torch.linalg.qr(draw(width, rank))
    values = torch.logspace(1, -1, rank, dtype=torch.float64)
    diagonal = 0.1 + draw(width).square()
    scaled = basis * values.sqrt()
    core = scaled.T @ (scaled / diagonal[:, None])
    core.diagonal().add_(1)
    model = LowRankModel(basis, values, diagonal, cholesky(core), energy=0.7, floored=0)
    return LowRankPreservation(model, 1.0)


def full(width: int) -> tuple[FullPreservation, float]:
    """A dense operator of the same width, and the seconds of its Cholesky factorisation."""
    matrix = torch.zeros(width, width, dtype=torch.float64)
    for seed in range(2):
        keys = draw(width, 256, seed=seed)
        matrix.addmm_(keys, keys.T)
    matrix.diagonal().add_(10)
    started = time.perf_counter()
    factor = torch.linalg.cholesky(matrix)
    return FullPreservation(factor), time.perf_counter() - started


def size(operator: PreservationOperator) -> int:
    """Bytes of the stored factor."""
    if isinstance(operator, LowRankPreservation):
        model = operator.model
        return sum(8 * one.numel() for one in (model.basis, model.values, model.diagonal, model.core))
    assert isinstance(operator, FullPreservation)
    return 8 * operator.factor.numel()


def compare(width: int, console: Console) -> FullPreservation:
    dense, seconds = full(width)
    thin = low_rank(width, RANKS[width])
    table = Table(title=f"d = {width:,}: rank {RANKS[width]:,} against full; one Cholesky takes {seconds:,.1f} s")
    for column in ("operator", "GB", *(f"B = {batch}, ms" for batch in BATCHES), "Cholesky / B = 1"):
        table.add_column(column, justify="right")
    for name, operator in (("full", dense), ("low rank", thin)):
        times = [timed(partial(operator.solve, draw(width, batch))) for batch in BATCHES]
        milliseconds = [f"{1e3 * one:,.1f}" for one in times]
        table.add_row(name, f"{size(operator) / 1e9:.2f}", *milliseconds, f"{seconds / times[0]:,.0f}")
    console.print(table)
    return dense


class Sequence:
    """A sequence of edits with a full history.

    Args:
        operator: what must be preserved besides the history.
        width: d_in.
        earlier: number of keys that are in the history from the start.
    """

    def __init__(self, operator: PreservationOperator, width: int, earlier: int) -> None:
        self._history = History(operator)
        self._history.add(draw(width, earlier, seed=earlier))
        self._original = torch.zeros(width // OUTPUTS, width)
        self._weight = self._original.clone()
        self._sum = DeltaSum()

    def edit(self, seed: int) -> float:
        """Solve, sum up, write and remember one fact, as ``SequenceWriter`` does. Returns seconds."""
        rows, width = self._weight.shape
        key, residual = draw(width, 1, seed=seed), draw(rows, 1, seed=seed)
        started = time.perf_counter()
        self._sum.add(solve_edit(key, residual, self._history, slack=1.0))
        self._weight.copy_(self._original + self._sum.total.float())
        self._history.add(key)
        return time.perf_counter() - started


def in_turn(operator: PreservationOperator, width: int) -> dict[int, float]:
    """Median seconds of an early and a late edit. They take turns, so the load of the machine affects both alike."""
    sequences = {count: Sequence(operator, width, count - EDITS // 2) for count in (EARLY, LATE)}
    times: dict[int, list[float]] = {count: [] for count in sequences}
    for seed in range(EDITS + 1):
        for count, one in sequences.items():
            times[count].append(one.edit(seed))
    return {count: sorted(one[1:])[EDITS // 2] for count, one in times.items()}


def main() -> None:
    console = Console(width=100)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if sys.argv[1:2] == ["factors"]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for width in [int(one) for one in sys.argv[2:]] or FACTORISED[device]:
            factors(width, device, console)
        return
    widths = [int(one) for one in sys.argv[1:]] or list(RANKS)
    for width in widths:
        dense = compare(width, console)
        if width != min(RANKS):
            continue
        table = Table(title=f"d = {width:,}: one fact after the other, full history")
        for column in ("operator", f"edit {EARLY:,}, ms", f"edit {LATE:,}, ms", "ratio"):
            table.add_column(column, justify="right")
        for name, operator in (("full", dense), ("low rank", low_rank(width, RANKS[width]))):
            times = in_turn(operator, width)
            ratio = times[LATE] / times[EARLY]
            table.add_row(name, f"{1e3 * times[EARLY]:,.1f}", f"{1e3 * times[LATE]:,.1f}", f"{ratio:.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
