"""Symmetric matrices in half the bytes: rows up to the end of their diagonal block. Nothing is rounded."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["packed", "packed_size", "unpacked"]

_ROWS = 512
"""Rows of a block. It is a format: stored matrices have been divided so."""


def packed(matrix: Tensor) -> dict[str, Tensor]:
    """The lower blocks of a symmetric ``matrix`` (d, d), by name: ``rows.N`` (rows, columns) starts in row N.

    Its columns end where the matrix's block on the diagonal does.
    """
    return {f"rows.{first}": matrix[first : first + _ROWS, : first + _ROWS] for first in range(0, len(matrix), _ROWS)}


def unpacked(blocks: Mapping[str, Tensor]) -> Tensor:
    """The (d, d) matrix that ``packed`` has made into ``blocks``."""
    places = {int(name.partition(".")[2]): block for name, block in blocks.items()}
    last = places[max(places)]
    matrix = last.new_empty(last.shape[1], last.shape[1])
    for first, block in places.items():
        rows = slice(first, first + len(block))
        matrix[rows, : block.shape[1]] = block
        matrix[:first, rows] = block[:, :first].T
    return matrix


def packed_size(width: int, item: int = 8) -> int:
    """Bytes of a packed matrix with ``width`` rows of numbers of ``item`` bytes."""
    return item * sum(min(_ROWS, width - first) * min(width, first + _ROWS) for first in range(0, width, _ROWS))
