"""Packed symmetric matrices: half the bytes, the same bits."""

from __future__ import annotations

import pytest
import torch

from factsmith.tasks.covariance.packing import packed, packed_size, unpacked
from tests.conftest import DEVICES


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [1, 3, 511, 512, 513, 1300])
def test_a_matrix_comes_back_to_the_bit(width: int, device: str):
    matrix = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(width)).to(device)
    matrix = matrix + matrix.T
    blocks = packed(matrix)
    assert torch.equal(unpacked(blocks), matrix)
    assert torch.equal(unpacked(dict(reversed(blocks.items()))), matrix)
    assert sum(block.numel() for block in blocks.values()) * 8 == packed_size(width)


def test_large_ones_take_little_more_than_half():
    assert packed_size(14336) < 0.52 * 8 * 14336**2
