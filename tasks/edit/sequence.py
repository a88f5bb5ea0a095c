"""Batches of facts written one after the other into the same weights.

Every batch starts from what the one before has left: its value vectors, keys and residuals are those of the model as it
is then. What earlier batches wrote is held by their keys, which join what must be preserved:
A = lambda C0 + H, H = K K^T of the earlier keys [Fang et al. 2025; the -F paper, algorithm 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.edit.batch import compute_edit
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.edit.delta_sum import DeltaSum
from factsmith.tasks.edit.settings import MethodSettings
from factsmith.tasks.facts.activations import FactActivations
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.preservation.history import History
from factsmith.tasks.preservation.operator import PreservationOperator
from factsmith.tasks.values.optimiser import ValueVector, optimise_values

__all__ = ["NEAR", "FactMeasures", "LayerMeasures", "SequenceWriter", "Step", "Written"]

NEAR = 0.95
"""Keys collide when their cosine under A^-1 is beyond this: little of them is left to tell their facts apart."""


@dataclass(frozen=True)
class Step:
    """What a batch does to the model, and all that later batches need of it.

    Attributes:
        deltas: of each layer, on top of those before.
        keys: (d_in, B) float64 of each layer, that are preserved from now on; empty without history.
    """

    deltas: dict[int, LowRankDelta]
    keys: dict[int, Tensor]


@dataclass(frozen=True)
class LayerMeasures:
    """How far a layer has moved. Norms are Frobenius norms; "leading" and "rest" are its parts along the leading
    directions P of the corpus's keys and across them: ||Delta P|| and ||Delta (I - P P^T)||, the safety of an edit
    [the -F paper, section 5]; NaN where no directions are given.

    Attributes:
        layer: which.
        step: norm of this batch's change.
        step_leading: its leading part.
        step_rest: its rest.
        total: norm of all changes so far, added up.
        total_leading: its leading part.
        total_rest: its rest.
        relative: ``total`` as a share of the norm of the unedited weight.
    """

    layer: int
    step: float
    step_leading: float
    step_rest: float
    total: float
    total_leading: float
    total_rest: float
    relative: float


@dataclass(frozen=True)
class FactMeasures:
    """How well a fact was written, right after its batch.

    Attributes:
        request: the fact.
        steps: evaluations of the loss its value vector took.
        loss: the last of them.
        reached: 1 - ||value - output|| / ||value - output before||: 1 if the layer puts out the wanted value.
    """

    request: EditRequest
    steps: int
    loss: float
    reached: float


@dataclass(frozen=True)
class Written:
    """A batch that has been written.

    Attributes:
        step: what it did.
        layers: how far each layer has moved.
        facts: how well each fact was written.
        collisions: places in the batch of facts whose keys nearly coincide at some layer, and their cosine there;
            closest first.
    """

    step: Step
    layers: list[LayerMeasures]
    facts: list[FactMeasures]
    collisions: list[tuple[int, int, float]]


class SequenceWriter(AbstractContextManager["SequenceWriter"]):
    """Writes batches into a model, which has its own weights again once this is closed.

    The weights after t batches are W + (Delta_1 + ... + Delta_t), the sum taken in float64 and rounded once: small
    changes are not lost one by one in a narrow dtype. A writer that replays the steps of another goes on to the same
    bits.

    Args:
        decoder: the model.
        method: how facts are written; ``method.sequence`` says what is kept of earlier batches.
        layers: edited layers, ascending.
        operators: what each layer must preserve apart from earlier edits.
        contexts: templates, the clean one first.
        directions: (d_in, r) float64 of each layer, orthonormal: what the changes are measured along; may be empty.
        most_tokens: positions in one forward pass, at most.
        memory: bytes for the activations of value vectors.
    """

    def __init__(
        self,
        decoder: Decoder,
        method: MethodSettings,
        layers: Sequence[int],
        operators: Mapping[int, PreservationOperator],
        contexts: Sequence[str],
        *,
        directions: Mapping[int, Tensor],
        most_tokens: int,
        memory: int,
    ) -> None:
        self._decoder = decoder
        self._method = method
        self._contexts = contexts
        self._most_tokens = most_tokens
        self._memory = memory
        kept = method.sequence.history in ("full", "compressed")
        self._histories = {layer: History(operators[layer]) for layer in layers} if kept else {}
        self._operators: Mapping[int, PreservationOperator] = self._histories or operators
        self._uncompressed = 0
        self._layers = {layer: _Layer(decoder, layer, directions.get(layer)) for layer in layers}

    @property
    def sums(self) -> dict[int, DeltaSum]:
        """All changes of each layer so far."""
        return {number: layer.sum for number, layer in self._layers.items()}

    def write(self, requests: Sequence[EditRequest], slack: float) -> Written:
        """Write a batch.

        Args:
            requests: B facts.
            slack: gamma of ``solve_edit``.

        Raises:
            CollidingKeysError: facts ask for different values at one key.
            NonFiniteValueError: a value vector is NaN or infinite; names the fact.
        """
        method, last = self._method, max(self._layers)
        vectors = optimise_values(self._decoder, requests, self._contexts, last, method.value, memory=self._memory)
        written_keys: dict[int, Tensor] = {}
        deltas = compute_edit(
            self._decoder,
            requests,
            torch.stack([vector.value for vector in vectors]),
            self._contexts,
            list(self._layers),
            lambda layer: self._operators[layer],
            slack=slack,
            site=method.value.site,
            spread=method.spread,
            clean_weight=method.clean_weight,
            read_keys=method.read_keys,
            most_tokens=self._most_tokens,
            on_keys=written_keys.__setitem__,
        )
        for layer, delta in deltas.items():
            self._layers[layer].add(delta)
            self._layers[layer].write()
        after, rewritten = self._read_back(requests)
        keys: dict[int, Tensor] = {}
        if self._histories:
            keys = written_keys if method.sequence.history_keys == "as_written" else rewritten
            self._remember(keys)
        return Written(
            Step(deltas, keys),
            [self._layers[layer].measures(delta) for layer, delta in deltas.items()],
            [_fact(*one) for one in zip(requests, vectors, after, strict=True)],
            _collisions(deltas, written_keys),
        )

    def replay(self, steps: Iterable[Step]) -> None:
        """Do what an earlier writer did."""
        for step in steps:
            for number, delta in step.deltas.items():
                self._layers[number].add(delta)
            for number, history in self._histories.items():
                # A history takes up keys when it is next asked, and to the same bits if it is asked as it was then.
                history.solve(step.keys[number])
            if self._histories:
                self._remember(step.keys)
        for layer in self._layers.values():
            layer.write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for layer in self._layers.values():
            layer.restore()

    def _read_back(self, requests: Sequence[EditRequest]) -> tuple[Tensor, dict[int, Tensor]]:
        """(B, d_model) present outputs at the lookup tokens, and the keys of the batch if history wants them."""
        keys_wanted = bool(self._histories) and self._method.sequence.history_keys == "after_write"
        last = max(self._layers)
        activations = FactActivations(
            self._decoder,
            requests,
            self._contexts if keys_wanted else self._contexts[:1],
            clean_weight=self._method.clean_weight,
            most_tokens=self._most_tokens,
        )
        keys = {layer: activations.keys(layer)[0] for layer in self._layers} if keys_wanted else {}
        outputs = activations.mlp_outputs(last) if self._method.value.site == "mlp" else activations.outputs(last, last)
        return outputs.T, keys

    def _remember(self, keys: Mapping[int, Tensor]) -> None:
        """Preserve ``keys``, too; every so many of them, keep only their leading directions."""
        settings = self._method.sequence
        for layer, history in self._histories.items():
            history.add(keys[layer])
        self._uncompressed += next(iter(keys.values())).shape[1]
        if settings.history == "compressed" and self._uncompressed >= settings.tau:
            for history in self._histories.values():
                history.compress(settings.energy, settings.most)
            self._uncompressed = 0


class _Layer:
    """An edited weight: what it was, and what has been added to it."""

    def __init__(self, decoder: Decoder, number: int, directions: Tensor | None) -> None:
        self.number = number
        self.sum = DeltaSum()
        self._weight = decoder.weight(number)
        self._original = self._weight.clone()
        self._norm = float(self._original.double().norm())
        self._directions = directions
        self._leading = DeltaSum()
        """The sum of all changes, times the directions, (d_out, r): kept up to date, since that product is dear."""

    def add(self, delta: LowRankDelta) -> None:
        """Add ``delta`` to the sum; the weight follows with ``write``."""
        self.sum.add(delta)
        if self._directions is not None:
            self._leading.add(LowRankDelta(delta.left, self._directions.T @ delta.right))

    def write(self) -> None:
        """Make the weight what it was plus all that has been added, if anything has."""
        if not self.sum.total.numel():
            return
        change = self.sum.total.to(self._original.device, torch.float32)
        self._weight.copy_(self._original.float() + change)

    def measures(self, delta: LowRankDelta) -> LayerMeasures:
        """Of the layer, where ``delta`` was added last."""
        step, whole = delta.norm(), float(self.sum.total.norm())
        step_leading = total_leading = torch.nan
        if self._directions is not None:
            step_leading = LowRankDelta(delta.left, self._directions.T @ delta.right).norm()
            total_leading = float(self._leading.total.norm())
        return LayerMeasures(
            self.number,
            step,
            step_leading,
            _across(step, step_leading),
            whole,
            total_leading,
            _across(whole, total_leading),
            whole / self._norm,
        )

    def restore(self) -> None:
        self._weight.copy_(self._original)


def _across(norm: float, along: float) -> float:
    """Norm of what is left of a matrix of ``norm`` without its part ``along`` some orthonormal directions."""
    return torch.nan if math.isnan(along) else float(max(norm**2 - along**2, 0.0) ** 0.5)


def _fact(request: EditRequest, vector: ValueVector, output: Tensor) -> FactMeasures:
    value, before = vector.value.double(), vector.start.double()
    left = (value - output).norm() / (value - before).norm()
    return FactMeasures(request, vector.steps, vector.loss, 1 - float(left))


def _collisions(deltas: Mapping[int, LowRankDelta], keys: Mapping[int, Tensor]) -> list[tuple[int, int, float]]:
    """Pairs of facts whose keys are nearly the same direction, and how nearly, at the layer where they are most so."""
    found: dict[tuple[int, int], float] = {}
    for layer, delta in deltas.items():
        gram = delta.right.T @ keys[layer].to(delta.right)  # K^T A^-1 K: the right factor is A^-1 K
        scale = gram.diagonal().rsqrt()
        cosines = (gram * scale[:, None] * scale).triu(diagonal=1)
        for first, second in (cosines > NEAR).nonzero().tolist():
            found[first, second] = max(found.get((first, second), 0.0), float(cosines[first, second]))
    return sorted(((*pair, cosine) for pair, cosine in found.items()), key=lambda one: -one[2])
