"""Stage ``factor``: factorise what edits must preserve, once for all edits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_tensors, save_json, save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.tasks.corpus.budget import TokenBudget
from factsmith.tasks.covariance.stage import Covariances
from factsmith.tasks.keys.stage import KeyStream
from factsmith.tasks.model.model import Model
from factsmith.tasks.pipeline.layers import layer_artifacts
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.preservation.kind import Factor, FactorisationError, KeyMoments, PreservationKind, Statistics
from factsmith.tasks.preservation.operator import PreservationOperator

__all__ = ["FactorSource", "Factors", "check_sizes", "factor", "factor_series", "read_statistics"]

FactorSource: TypeAlias = Covariances | KeyStream | None
"""What the factors are made from: the result of an earlier stage, or nothing."""


@dataclass(frozen=True)
class Factors:
    """The factors of a method's preservation operators.

    Attributes:
        series: the series of the layers.
        layers: the artifact of each layer.
        kind: the kind of preservation.
        model: name of the model, for messages.
        device: where the operators compute.
        make: makes the tensors of a layer whose artifact does not hold them.
        held: the tensors that were made by this process and are still on its device, by layer.
    """

    series: Series
    layers: Mapping[int, Artifact]
    kind: PreservationKind
    model: str
    device: torch.device
    make: Callable[[int], Mapping[str, Tensor]] = field(repr=False, compare=False)
    held: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def operator(self, layer: int) -> PreservationOperator:
        """The preservation operator of ``layer``.

        Raises:
            InputError: the operator would allow no change.
        """
        artifact = self.layers[layer]
        try:
            return self.kind.operator(self.held.get(layer) or self._read(artifact, layer), artifact.summary)
        except FactorisationError as error:
            raise _explained(error, f"Layer {layer} of {self.model}") from None

    def _read(self, artifact: Artifact, layer: int) -> Mapping[str, Tensor]:
        file = artifact.path / self.kind.file
        return load_tensors(file, str(self.device)) if file.is_file() else self.make(layer)


def factor_series(kind: PreservationKind, source: str | None) -> Series:
    """The series of the factors made from a series of covariances or keys, given by its digest, or from nothing."""
    inputs: dict[str, str] = {} if source is None else {kind.source: source}
    return Series("factor", kind.version, kind.parameters, inputs)


def check_sizes(kind: PreservationKind, model: Model, budget: TokenBudget, tokens: int | None = None) -> None:
    """Check what the sizes of ``model`` and ``budget`` alone tell about its factors, before a key is read.

    Args:
        kind: the kind of preservation.
        model: the model.
        budget: the tokens that the run reads.
        tokens: those that C0 covers, if it is imported.

    Raises:
        InputError: no layer can be factorised; says what would help.
    """
    try:
        kind.check(budget.most if tokens is None else tokens)
    except FactorisationError as error:
        raise _explained(error, model.name, budget) from None


@stage("factor")
def factor(
    workspace: Workspace,
    model: Model,
    layers: list[int],
    kind: PreservationKind,
    source: FactorSource,
    budget: TokenBudget,
) -> Outcome[Factors]:
    """Factorise what must be preserved at every edited layer.

    A factor that is made again in less time than it is read is not stored. Its artifact then holds only the numbers
    that describe it.

    Args:
        workspace: the run's workspace.
        model: the model, whose own weights are part of a low-rank model.
        layers: the edited layers, ascending.
        kind: the kind of preservation.
        source: what the factors are made from.
        budget: the tokens that the run reads, for the remedies in messages.

    Raises:
        InputError: a layer cannot be factorised; the message names the layer and says what would help.
    """
    series = factor_series(kind, source.series.digest if source else None)
    held: dict[int, Mapping[str, Tensor]] = {}
    stored = workspace.is_worth_storing(kind.cost.flop, kind.cost.bytes)

    def make(layer: int) -> tuple[Factor, list[Artifact]]:
        def weight() -> Tensor:
            return model.decoder.weight(layer).detach().to(workspace.device)

        statistics, sources = read_statistics(source, layer, budget.most, workspace.device)
        try:
            return kind.factorise(statistics, weight, layer), sources
        except FactorisationError as error:
            raise _explained(error, f"Layer {layer} of {model.name}", budget) from None

    def build(draft: Draft, layer: int) -> None:
        found, sources = make(layer)
        draft.read_from(*sources)
        if stored:
            save_tensors(draft.path / kind.file, found.tensors)
        else:
            save_json(draft.path / "summary.json", found.summary)
        if workspace.can_hold(sum(tensor.nbytes for tensor in found.tensors.values())):
            held[layer] = found.tensors
        draft.summary = {"layer": layer, **found.summary}

    found, any_built = layer_artifacts(workspace, "factor", series, layers, build)
    return Outcome(
        Factors(series, found, kind, model.name, workspace.device, lambda layer: make(layer)[0].tensors, held),
        series.address,
        any_built,
        {
            "bytes": sum(artifact.manifest.size for artifact in found.values()),
            **{
                f"{name}/layer_{layer}": artifact.summary[name]
                for name in kind.measured
                for layer, artifact in found.items()
            },
        },
    )


def read_statistics(
    source: FactorSource, layer: int, count: int, device: torch.device
) -> tuple[Statistics, list[Artifact]]:
    """What a layer's factor is made from, and the artifacts that hold it.

    Args:
        source: the result of the stage that made it.
        layer: the layer.
        count: number of keys, if they are read themselves.
        device: where the tensors go.
    """
    if source is None:
        return None, []
    if isinstance(source, Covariances):
        artifact = source.layers[layer]
        moments = source.moments(layer, device)
        return KeyMoments(moments["covariance"], moments.get("mean"), artifact.summary["tokens"]), [artifact]
    parts, shards = [], list[Artifact]()
    for shard, rows in source.rows(layer, count):
        shards.append(shard)
        parts.append(rows)
    keys: Tensor = torch.from_numpy(np.concatenate(parts))
    return keys.to(device), shards


def _more(needed: int, budget: TokenBudget) -> str:
    """What to do about keys that do not span the space: read more tokens, unless there were enough of them."""
    if budget.most < needed:
        return budget.more_tokens(needed)
    return "use a corpus with more varied text: its keys are linearly dependent although there are enough of them"


def _explained(error: FactorisationError, where: str, budget: TokenBudget | None = None) -> InputError:
    """The error to raise for ``where``, with a remedy that follows from the ``budget`` if tokens are lacking."""
    return error.of(where, _more(error.tokens_needed, budget) if error.tokens_needed and budget else None)
