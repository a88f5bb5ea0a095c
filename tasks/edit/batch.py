"""Turn value vectors into weight changes, and weight changes into an edited model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

from torch import Tensor

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.edit.settings import ReadKeys, Spread
from factsmith.tasks.edit.solve import solve_edit
from factsmith.tasks.facts.activations import FactActivations
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.preservation.operator import PreservationOperator

__all__ = ["applied", "compute_edit", "merge"]


def compute_edit(
    decoder: Decoder,
    requests: Sequence[EditRequest],
    values: Tensor,
    contexts: Sequence[str],
    layers: Sequence[int],
    preservation: Callable[[int], PreservationOperator],
    *,
    slack: float,
    site: Literal["block", "mlp"] = "block",
    spread: Spread = "even",
    clean_weight: float | None = 0.5,
    read_keys: ReadKeys = "averaged",
    most_tokens: int,
    on_keys: Callable[[int, Tensor], None] = lambda layer, keys: None,
) -> dict[int, LowRankDelta]:
    """Changes of the weights of ``layers`` that write ``requests`` together.

    Layers ascending, each with the weights written so far [Meng et al. 2022b, algorithm 1]. At layer l the residual
    is (value - present output of the last layer) / (layers still to write, this one included).

    Args:
        decoder: the model; its weights are those before the edit again when this returns.
        requests: B facts.
        values: (B, d_model) wanted outputs at ``site`` of the last of ``layers``, at the lookup tokens.
        contexts: templates, the clean one first.
        layers: edited layers.
        preservation: the operator of a layer.
        slack: gamma of ``solve_edit``.
        site: whose output the values are: the block's, or, where one layer is edited, its MLP's.
        spread: what the residual is divided by.
        clean_weight: of the clean prompt in an averaged key; ``None`` for the same as every other prompt.
        read_keys: keys that the change is read with.
        most_tokens: positions in one forward pass, at most.
        on_keys: called for each layer with the keys (d_in, B) that its change is written with.

    Returns:
        For each layer a change of rank at most B, float64.
    """
    layers = sorted(layers)
    activations = FactActivations(decoder, requests, contexts, clean_weight=clean_weight, most_tokens=most_tokens)
    deltas: dict[int, LowRankDelta] = {}
    with ExitStack() as written:
        for index, layer in enumerate(layers):
            remaining = len(layers) - index
            present = activations.mlp_outputs(layer) if site == "mlp" else activations.outputs(layer, layers[-1])
            residuals = (values.double().T - present) / (remaining if spread == "even" else remaining**0.5)
            averaged, clean = activations.keys(layer)
            on_keys(layer, averaged)
            read = clean if read_keys == "clean" else None
            deltas[layer] = solve_edit(averaged, residuals, preservation(layer), slack=slack, read_keys=read)
            written.enter_context(applied(decoder, {layer: deltas[layer]}))
    return deltas


def merge(decoder: Decoder, deltas: Mapping[int, LowRankDelta]) -> None:
    """Write ``deltas`` into the model for good."""
    for layer, delta in deltas.items():
        decoder.weight(layer).copy_(delta.added_to(decoder.weight(layer)))


@contextmanager
def applied(decoder: Decoder, deltas: Mapping[int, LowRankDelta]) -> Iterator[None]:
    """The model with ``deltas`` written into it; its exact former weights again afterwards."""
    originals = {layer: decoder.weight(layer).clone() for layer in deltas}
    try:
        merge(decoder, deltas)
        yield
    finally:
        for layer, original in originals.items():
            decoder.weight(layer).copy_(original)
