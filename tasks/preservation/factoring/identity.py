"""``method.preservation=identity``: lambda I, which no key has been looked at for."""

from __future__ import annotations

import torch

from factsmith.artifacts.formats import load_tensors, save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.planning.settings import MethodSettings
from factsmith.tasks.preservation.factoring.factorisation import Cost, Factorisation, Source, Statistics
from factsmith.tasks.preservation.identity import IdentityPreservation

__all__ = ["choose"]

TENSORS = "identity.safetensors"
"""Holds ``weight`` lambda, a float64."""


class _Identity(Factorisation):
    def source(self, bench: Bench) -> Source:
        return "nothing"

    def series(self, bench: Bench, source: str | None) -> Series:
        weight = bench.settings.method.preservation_weight
        return Series("factor", 1, {"preservation": "identity", "preservation_weight": weight})

    def build(self, bench: Bench, draft: Draft, layer: int, statistics: Statistics) -> None:
        weight = bench.settings.method.preservation_weight
        save_tensors(draft.path / TENSORS, {"weight": torch.tensor(weight, dtype=torch.float64)})
        draft.summary = {"layer": layer, "weight": weight}

    def operator(self, bench: Bench, artifact: Artifact) -> IdentityPreservation:
        return IdentityPreservation(float(load_tensors(artifact.path / TENSORS)["weight"]))

    def cost(self, bench: Bench, width: int) -> Cost:
        return Cost(0.0, 8, 0, width)


def choose(method: MethodSettings) -> Factorisation:
    return _Identity()
