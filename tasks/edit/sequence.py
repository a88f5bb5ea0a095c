"""Batches of facts written one after the other into the same weights.

Every batch starts from the weights that the one before it left: its value vectors, keys and residuals are computed with
these weights. To preserve what earlier batches wrote, their keys are added to what must be preserved:
A = lambda C0 + H, H = K K^T of the earlier keys [Fang et al. 2025; the -F paper, algorithm 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.edit.batch import compute_edit
from factsmith.tasks.edit.delta import Delta, LowRankDelta
from factsmith.tasks.edit.delta_sum import DeltaSum
from factsmith.tasks.edit.edited_layer import EditedLayer, LayerMeasures
from factsmith.tasks.edit.refiners import sum_refiner
from factsmith.tasks.edit.settings import MethodSettings
from factsmith.tasks.edit.wrappers import load_wrapper
from factsmith.tasks.facts.activations import FactActivations
from factsmith.tasks.facts.contexts import Context, asked_facts
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.preservation.history import History
from factsmith.tasks.preservation.operator import PreservationOperator
from factsmith.tasks.values.optimiser import ValueVector, optimise_values

__all__ = ["NEAR", "FactMeasures", "LayerMeasures", "SequenceWriter", "Step", "Written"]

NEAR = 0.95
"""Two keys collide if their cosine under A^-1 is above this: they then differ too little to tell their facts apart."""


@dataclass(frozen=True)
class Step:
    """The changes of one batch, and everything that later batches need from it.

    Attributes:
        deltas: change of each layer, on top of the earlier changes, before a refiner of batches.
        keys: (d_in, B) float64 keys of each layer that are preserved from now on, or that a wrapper remembers; empty
            without a history or a wrapper.
    """

    deltas: dict[int, LowRankDelta]
    keys: dict[int, Tensor]


@dataclass(frozen=True)
class FactMeasures:
    """How well a fact was written, measured right after its batch.

    Attributes:
        request: the fact.
        steps: number of evaluations of the loss for its value vector.
        loss: last loss of its value vector.
        reached: 1 - ||value - output|| / ||value - output before||; 1 if the output equals the value vector.
    """

    request: EditRequest
    steps: int
    loss: float
    reached: float


@dataclass(frozen=True)
class Written:
    """A batch that has been written.

    Attributes:
        step: changes of the batch.
        layers: how far each layer has moved.
        facts: how well each fact was written.
        collisions: pairs of facts whose keys nearly coincide at some layer, as their places in the batch and the
            cosine of their keys; closest first.
    """

    step: Step
    layers: list[LayerMeasures]
    facts: list[FactMeasures]
    collisions: list[tuple[int, int, float]]


class SequenceWriter(AbstractContextManager["SequenceWriter"]):
    """Writes batches into a model, and restores the model's own weights when it is closed.

    The weights after t batches are W + (Delta_1 + ... + Delta_t). The sum is taken in float64 and rounded once, so that
    small changes are not lost one by one in a narrow dtype. A writer that replays the steps of another one continues
    with the same bits.

    Args:
        decoder: the model.
        method: how facts are written; ``method.sequence`` decides what is kept of earlier batches.
        layers: edited layers, ascending.
        operators: preservation operator of each layer, without earlier edits.
        contexts: contexts, the clean one first.
        directions: (d_in, r) float64 principal directions of each layer, orthonormal, to measure changes along; may be
            empty.
        most_tokens: most positions in one forward pass.
        memory: bytes for the activations of value vectors.
    """

    def __init__(
        self,
        decoder: Decoder,
        method: MethodSettings,
        layers: Sequence[int],
        operators: Mapping[int, PreservationOperator],
        contexts: Sequence[Context],
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
        self._wrapper = load_wrapper(method)
        refiner = sum_refiner(method)
        self._layers = {layer: EditedLayer(decoder, layer, directions.get(layer), refiner) for layer in layers}

    @property
    def sums(self) -> dict[int, DeltaSum]:
        """The sum of all changes of each layer so far."""
        return {number: layer.sum.sum for number, layer in self._layers.items()}

    def published(self) -> dict[int, Delta]:
        """The change of each layer so far, as a model has it that is scored."""
        return {number: layer.sum.published() for number, layer in self._layers.items()}

    def write(self, requests: Sequence[EditRequest], slack: float) -> Written:
        """Write a batch.

        Args:
            requests: B facts.
            slack: gamma of ``solve_edit``.

        Raises:
            CollidingKeysError: facts ask for different values at the same key.
            NonFiniteValueError: a value vector is NaN or infinite; names the fact.
        """
        method, last = self._method, max(self._layers)
        if self._wrapper is not None:  # It is given edits of the unedited weights.
            for layer in self._layers.values():
                layer.restore()
        vectors = optimise_values(self._decoder, requests, self._contexts, last, method.value, memory=self._memory)
        written_keys: dict[int, Tensor] = {}
        computed = compute_edit(
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
        # A product's last bits depend on the memory layout. A replay reads row-major factors.
        deltas = {layer: delta.contiguous() for layer, delta in computed.items()}
        facts = [*range(len(requests)), *asked_facts(self._contexts, requests)]
        collisions = _collisions(deltas, written_keys, facts)
        keys: dict[int, Tensor] = {}
        if self._wrapper is not None:
            keys = self._wrapper.keys(self._decoder, requests, list(self._layers), most_tokens=self._most_tokens)
            deltas = {
                number: self._wrapper.step(number, deltas[number], keys[number], layer.original, layer.total)
                for number, layer in self._layers.items()
            }
        refined = {number: self._layers[number].add(delta) for number, delta in deltas.items()}
        for layer in self._layers.values():
            layer.write()
        after, rewritten = self._read_back(requests)
        if self._histories:
            keys = written_keys if method.sequence.history_keys == "as_written" else rewritten
            self._remember(keys)
        return Written(
            Step(deltas, keys),
            [self._layers[number].measures(delta) for number, delta in refined.items()],
            [_fact(*one) for one in zip(requests, vectors, after, strict=True)],
            collisions,
        )

    def replay(self, steps: Iterable[Step]) -> None:
        """Repeat the steps of an earlier writer."""
        for step in steps:
            for number, delta in step.deltas.items():
                self._layers[number].add(delta)
                if self._wrapper is not None:
                    self._wrapper.remember(number, step.keys[number])
            for number, history in self._histories.items():
                # A history takes in new keys at its next ``solve``. Repeating the earlier calls gives the same bits.
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
        """(B, d_model) present outputs at the lookup tokens, and the keys of the batch if the history needs them."""
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
        outputs = (activations.mlp_outputs if self._method.value.site == "mlp" else activations.outputs)(last, last)
        return outputs.T.cpu(), keys

    def _remember(self, keys: Mapping[int, Tensor]) -> None:
        """Add ``keys`` to the history, and compress it to principal directions after every ``tau`` keys.

        A full history is absorbed into A after every d_in keys.
        """
        settings = self._method.sequence
        for layer, history in self._histories.items():
            history.add(keys[layer])
            if settings.history == "full" and len(history) >= len(keys[layer]):
                history.absorb()
        self._uncompressed += next(iter(keys.values())).shape[1]
        if settings.history == "compressed" and self._uncompressed >= settings.tau:
            for history in self._histories.values():
                history.compress(settings.energy, settings.most)
            self._uncompressed = 0


def _fact(request: EditRequest, vector: ValueVector, output: Tensor) -> FactMeasures:
    value, before = vector.value.double(), vector.start.double()
    left = (value - output).norm() / (value - before).norm()
    return FactMeasures(request, vector.steps, vector.loss, 1 - float(left))


def _collisions(
    deltas: Mapping[int, LowRankDelta], keys: Mapping[int, Tensor], facts: Sequence[int]
) -> list[tuple[int, int, float]]:
    """Pairs of ``facts`` whose keys nearly coincide at some layer, with the largest cosine over the layers."""
    found: dict[tuple[int, int], float] = {}
    for layer, delta in deltas.items():
        gram = delta.right.T @ keys[layer].to(delta.right)  # K^T A^-1 K, because the right factor is A^-1 K.
        scale = gram.diagonal().rsqrt()
        cosines = (gram * scale[:, None] * scale).triu(diagonal=1)
        for one, other in (cosines > NEAR).nonzero().tolist():
            pair = (min(facts[one], facts[other]), max(facts[one], facts[other]))
            found[pair] = max(found.get(pair, 0.0), float(cosines[one, other]))
    different = ((*pair, cosine) for pair, cosine in found.items() if pair[0] != pair[1])
    return sorted(different, key=lambda one: -one[2])
