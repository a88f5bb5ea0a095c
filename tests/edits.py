"""Facts to write into the tiny models, and what must be preserved."""

from __future__ import annotations

import torch

from factsmith.tasks.covariance.moments import Moments
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.keys.block_keys import block_keys


def facts() -> list[EditRequest]:
    rows = [
        ("Mara Flousano", "{} speaks", "Danish"),
        ("Iric Vezer", "The sport that {} practises is", "table tennis"),
        ("Pisel Skapek", "{}", "Oslo"),
        ("Kamira Tratum", "The instrument of {} is the", "organ"),
    ]
    return [EditRequest(index, *row) for index, row in enumerate(rows)]


def covariances(decoder, layers: list[int]) -> dict[int, torch.Tensor]:
    """C0 of each layer, of some random text."""
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randint(3, 400, (40,), generator=generator).tolist() for _ in range(30)]
    found = {}
    for layer, keys in block_keys(decoder, blocks, layers, most_tokens=10_000).items():
        moments = Moments(decoder.key_width)
        moments.update(keys)
        found[layer] = moments.covariance
    return found


def weights(decoder) -> list[torch.Tensor]:
    return [parameter.clone() for parameter in decoder.model.parameters()]
