"""Turn value vectors into weight changes, and weight changes into an edited model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Literal

from torch import Tensor

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.edit.delta import Delta, LowRankDelta, add_to, added_to, overflow
from factsmith.tasks.edit.refiners import load_refiner
from factsmith.tasks.edit.settings import MethodSettings, ReadKeys, Spread
from factsmith.tasks.edit.solve import CollidingKeysError, colliding, solve_edit
from factsmith.tasks.facts.activations import FactActivations
from factsmith.tasks.facts.contexts import Context
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.preservation.operator import PreservationOperator

__all__ = ["applied", "batch_edit", "compute_edit", "merge"]


def batch_edit(
    decoder: Decoder,
    requests: Sequence[EditRequest],
    values: Tensor,
    contexts: Sequence[Context],
    layers: Sequence[int],
    preservation: Callable[[int], PreservationOperator],
    method: MethodSettings,
    *,
    most_tokens: int,
) -> dict[int, Delta]:
    """What ``method`` makes of one batch: the changes that ``compute_edit`` gives, refined if the method says so.

    The other arguments are those of ``compute_edit``.

    Raises:
        InputError: as in ``compute_edit``, or facts ask for different values at the same key; names them.
    """
    try:
        deltas = compute_edit(
            decoder,
            requests,
            values,
            contexts,
            layers,
            preservation,
            slack=method.slack_for(len(requests)),
            site=method.value.site,
            spread=method.spread,
            clean_weight=method.clean_weight,
            read_keys=method.read_keys,
            most_tokens=most_tokens,
        )
    except CollidingKeysError as error:
        raise colliding(requests, error) from None
    refiner = load_refiner(method)
    if refiner is None:
        return dict(deltas)
    # All changes were computed with the others as they were.
    return {layer: refiner.refine(layer, one, decoder.weight(layer)) for layer, one in deltas.items()}


def compute_edit(
    decoder: Decoder,
    requests: Sequence[EditRequest],
    values: Tensor,
    contexts: Sequence[Context],
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
    """Compute the weight changes of ``layers`` that write ``requests`` together.

    Layers are solved in ascending order, each with the changes of the lower ones already applied [Meng et al. 2022b,
    algorithm 1]. At each layer, the residual is (value - present output of the last layer), divided by the number of
    layers still to write, this one included, or by its square root. A block that normalises its MLP's output needs
    another change of that output: see ``OutputNorm.needed``. A fact that is also written as a question has two keys,
    with the same residual.

    Args:
        decoder: the model. Its weights are restored before this returns.
        requests: B facts.
        values: (B, d_model) wanted outputs at ``site`` of the last of ``layers``, at the lookup tokens.
        contexts: contexts, the clean one first.
        layers: edited layers.
        preservation: returns the preservation operator of a layer.
        slack: gamma of ``solve_edit``.
        site: whose output the values are: the last block's, or that of its MLP (ROME, PMET). In PMET too, the residual
            at every layer is the value minus the present output of the *last* layer's MLP, as in EasyEdit's code.
        spread: how the residual is divided among the layers: by their number, or by its square root.
        clean_weight: weight of the clean prompt in an averaged key; ``None`` for equal weights.
        read_keys: keys that the change is read with.
        most_tokens: most positions in one forward pass.
        on_keys: called for each layer with the keys (d_in, keys) that its change is written with.

    Returns:
        The change of each layer, of rank at most the number of keys, float64.

    Raises:
        InputError: a key, an output or a changed weight is NaN or infinite; names the layer.
        CollidingKeysError: facts ask for different values at the same key.
    """
    layers = sorted(layers)
    activations = FactActivations(decoder, requests, contexts, clean_weight=clean_weight, most_tokens=most_tokens)
    owners = activations.owners
    deltas: dict[int, LowRankDelta] = {}
    with ExitStack() as written:
        for index, layer in enumerate(layers):
            remaining = len(layers) - index
            present = (activations.mlp_outputs if site == "mlp" else activations.outputs)(layer, layers[-1])
            residuals = (values.to(present).T - present) / (remaining if spread == "even" else remaining**0.5)
            if (norm := decoder.output_norm(layer)) is not None:
                residuals = norm.needed(activations.projected(layer).T, residuals.T).T
            averaged, clean = activations.keys(layer)
            if not (averaged.isfinite().all() & residuals.isfinite().all()):
                raise overflow(decoder.weight(layer).dtype, f"Keys or outputs of layer {layer} are NaN or infinite.")
            on_keys(layer, averaged)
            read = clean if read_keys == "clean" else None
            try:
                deltas[layer] = solve_edit(
                    averaged, residuals[:, owners], preservation(layer), slack=slack, read_keys=read
                )
            except CollidingKeysError as error:
                pairs = [(owners[one], owners[other]) for one, other in error.pairs]
                raise CollidingKeysError([pair for pair in pairs if pair[0] != pair[1]] or pairs) from None
            written.enter_context(applied(decoder, {layer: deltas[layer]}))
    return deltas


def merge(decoder: Decoder, deltas: Mapping[int, Delta]) -> None:
    """Write ``deltas`` into the model permanently.

    Raises:
        InputError: a changed weight is NaN or infinite in the model's data type; names the layer.
    """
    add_to({layer: decoder.weight(layer) for layer in deltas}, deltas, _layer)


def applied(decoder: Decoder, deltas: Mapping[int, Delta]) -> AbstractContextManager[None]:
    """Write ``deltas`` into the model while open, then restore its exact former weights."""
    return added_to({layer: decoder.projection(layer) for layer in deltas}, deltas, _layer)


def _layer(layer: int) -> str:
    return f"layer {layer}"
