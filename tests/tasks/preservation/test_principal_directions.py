"""Products with the covariance of keys that are read a few at a time."""

from __future__ import annotations

import pytest
import torch

from factsmith.tasks.preservation import principal_directions_stage as stage
from factsmith.tasks.preservation.kind import KeyMoments
from tests.algebra import D_IN, draw
from tests.conftest import DEVICES


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [1, 7, 25, 1000])
def test_products_with_keys_are_those_with_their_covariance(device, rows, monkeypatch):
    monkeypatch.setattr(stage, "_ROWS", rows)
    keys, vectors = draw(25, D_IN).float().to(device), draw(D_IN, 3, seed=1).to(device)
    covariance = keys.double().T @ keys.double() / len(keys)
    product, width, total = stage._covariance(keys)
    expected, whole, trace = stage._covariance(KeyMoments(covariance, keys.double().mean(0), len(keys)))
    assert torch.allclose(product(vectors), expected(vectors), rtol=1e-12)
    assert width == whole == D_IN
    assert total == pytest.approx(trace, rel=1e-12)
