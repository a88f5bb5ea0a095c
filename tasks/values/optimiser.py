"""Value vectors: the output of block L at a subject's last token that makes the model give the new object.

Meng et al. 2022b, section 4.2 and eq. 16, as the public memit code computes them, but for many facts together. While
the change ``delta`` is optimised, everything before it stays the same. So blocks up to L run only once. Positions
before the lookup token also run only once, and their attention keys and values are kept. Each step runs only the
blocks above L, on the positions from the lookup token on, and computes logits only where the loss reads them. Prompts
run in groups of about equal length, whichever facts they belong to, so that few positions are padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.batching import length_batches
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.precision import tensor_float_32
from factsmith.tasks.decoder.text import EncodedPrompt, encode_prompt
from factsmith.tasks.facts.activations import FactActivations
from factsmith.tasks.facts.contexts import Context, in_context
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.values.objective import Objective
from factsmith.tasks.values.search import Search
from factsmith.tasks.values.settings import ValueSettings
from factsmith.tasks.values.suffixes import Suffixes

__all__ = ["NonFiniteValueError", "ValueVector", "not_finite", "optimise_values"]

ESSENCE_TEMPLATE = "{} is a"
"""The essence prompt, which the KL term uses: what the model predicts for it should not change."""


@dataclass(frozen=True)
class ValueVector:
    """The optimised value vector of one fact.

    Attributes:
        value: (d_model,) float32, wanted output of block L, or of its MLP, at the lookup token.
        start: (d_model,) float32, the same output before the change, on the clean prompt.
        loss: last loss, the sum of ``nll`` (which PMET may weigh less), kl_weight ``divergence`` and the weight decay.
        nll: mean NLL per token of the target, averaged over contexts.
        divergence: KL divergence on the essence prompt.
        steps: number of evaluations of the loss.
    """

    value: Tensor
    start: Tensor
    loss: float
    nll: float
    divergence: float
    steps: int


class NonFiniteValueError(Exception):
    """A value vector is NaN or infinite.

    Attributes:
        request: the fact.
    """

    def __init__(self, request: EditRequest) -> None:
        super().__init__(f"the value vector of case {request.case_id} is NaN or infinite")
        self.request = request


def not_finite(error: NonFiniteValueError, layer: int, *, kept: int = 0) -> InputError:
    """The error of a value vector that is not finite, after ``kept`` batches of its sequence were written."""
    remedy = "lower method.value.learning_rate, or set model.dtype=float32"
    if kept:
        remedy += (
            f"; if the model has collapsed under many edits, set dataset.batches={kept} to score the batches that were "
            "written"
        )
    return InputError(
        f"The value vector of case {error.request.case_id} is NaN or infinite.",
        got=f"prompt {error.request.prompt!r}, layer {layer}",
        remedy=remedy,
    )


def optimise_values(
    decoder: Decoder,
    requests: Sequence[EditRequest],
    contexts: Sequence[Context],
    layer: int,
    settings: ValueSettings,
    *,
    memory: int,
    advance: Callable[[int], None] = lambda facts: None,
) -> list[ValueVector]:
    """Optimise the value vectors of ``requests``. A vector does not depend on the other facts in ``requests``.

    For each fact, Adam minimises over delta
    the mean over contexts of the target's mean NLL per token
    + kl_weight KL(changed || unchanged) on "{subject} is a", read at the subject's last token
    + weight_decay ||delta|| / ||start||^2      [Meng et al. 2022b eq. 16; the norm of delta is not squared in the code]
    with ||delta|| kept at or below clamp ||start||.

    With ``settings.attention``, a second delta is optimised on the attention's output of block L. The weight decay is
    the sum over both, each is clamped by its own start, and only the MLP's is kept    [PMET: Li et al. 2024]. See
    ``Search`` for its rule about targets that are the likeliest tokens.

    Args:
        decoder: the model, with the weights that the edit starts from.
        requests: facts to write.
        contexts: contexts, the clean one first.
        layer: L, the last edited layer.
        settings: settings of the optimiser.
        memory: bytes for activations and for what is kept of the prompts; decides how many facts run together.
        advance: called with the number of facts just finished.

    Returns:
        One vector for each request, in the same order.

    Raises:
        NonFiniteValueError: a vector is NaN or infinite; names the fact.
    """
    facts = [_Fact.encode(decoder, request, contexts) for request in requests]
    found: list[ValueVector] = []
    for first, last in _ranges(decoder, facts, layer, memory, attention=settings.attention):
        mlp = (
            FactActivations(decoder, requests[first:last]).mlp_outputs(layer, layer).T
            if settings.site == "mlp"
            else None
        )
        with tensor_float_32(settings.tf32):
            found += _optimise(decoder, facts[first:last], layer, settings, mlp)
        for request, vector in zip(requests[first:last], found[first:], strict=True):
            if not torch.isfinite(vector.value).all():
                raise NonFiniteValueError(request)
        advance(last - first)
    return found


@dataclass(frozen=True)
class _Fact:
    """A request as tokens: the prompt in every context (the clean one first), and the essence prompt."""

    rewrites: tuple[EncodedPrompt, ...]
    essence: EncodedPrompt

    @classmethod
    def encode(cls, decoder: Decoder, request: EditRequest, contexts: Sequence[Context]) -> _Fact:
        return cls(
            tuple(
                in_context(context, request).encode(decoder.tokenizer, request.subject, request.target_new)
                for context in contexts
            ),
            encode_prompt(decoder.tokenizer, ESSENCE_TEMPLATE, request.subject),
        )


def _ranges(
    decoder: Decoder, facts: Sequence[_Fact], layer: int, memory: int, *, attention: bool
) -> Iterator[tuple[int, int]]:
    """Ranges of facts that run together, so that their constants and activations fit into ``memory``."""
    blocks = decoder.block_count - layer - (0 if attention else 1)
    constant = 4 * decoder.width * 2 * (2 * blocks + 1)  # Twice: the joined rows, and their copies in groups.
    activation = 4 * blocks * (12 * decoder.width + 4 * decoder.key_width)
    scores = 4 * 3 * decoder.vocabulary_size
    first, used = 0, 0
    for index, fact in enumerate(facts):
        size = sum(
            constant * prompt.lookup
            + activation * (len(prompt.inputs) - prompt.lookup)
            + scores * max(1, prompt.continued)
            for prompt in (*fact.rewrites, fact.essence)
        )
        if index > first and used + size > memory:
            yield first, index
            first, used = index, 0
        used += size
    yield first, len(facts)


def _optimise(
    decoder: Decoder, facts: Sequence[_Fact], layer: int, settings: ValueSettings, mlp: Tensor | None
) -> list[ValueVector]:
    """Value vectors of facts that take their steps together.

    A block adds its MLP's output to the residual stream, so changing either output by delta has the same effect. Only
    the output that delta is added to and measured against differs: ``mlp`` (facts, d_model), or the block's output if
    ``mlp`` is ``None``.

    Where a norm comes between the MLP and the residual stream, delta is a step of the norm's input, in multiples of its
    root mean square (``OutputNorm.effect``). It is measured against an input of this length, whose norm is
    sqrt(d_model).
    """
    objective, outputs, projected, attention = _prepare(decoder, facts, layer, attention=settings.attention)
    start = outputs.float() if mlp is None else mlp.to(decoder.device).float()
    measured = start if attention is None else torch.stack([start, attention], dim=1)
    norm = decoder.output_norm(layer)
    search = Search(
        objective, measured if norm is None else torch.ones_like(measured), len(facts[0].rewrites), settings
    )
    search.run()
    with torch.no_grad():
        deltas = search.deltas if attention is None else search.deltas[:, 0]
        changes = deltas if norm is None or projected is None else norm.effect(projected, deltas)
    return [
        ValueVector(value, before, loss, nll, divergence, steps)
        for value, before, (loss, nll, divergence), steps in zip(
            (start + changes).cpu(), start.cpu(), search.measures.tolist(), search.steps.tolist(), strict=True
        )
    ]


def _prepare(
    decoder: Decoder, facts: Sequence[_Fact], layer: int, *, attention: bool
) -> tuple[Objective, Tensor, Tensor | None, Tensor | None]:
    """The objective of ``facts``, and the (facts, d_model) outputs of block ``layer`` at their clean prompts.

    The third item is ``Suffixes.outputs`` at these prompts. The fourth is the output of the attention there, float32,
    with ``attention``.

    The prompts of a context are prepared together, because its tokens then run once for all facts. With few facts, that
    saves less than the additional passes cost. Prompts of about equal length are then prepared together.
    """
    prompts = [prompt for fact in facts for prompt in (*fact.rewrites, fact.essence)]
    of_fact = len(prompts) // len(facts)
    lengths = [len(prompt.inputs) for prompt in prompts]
    if sum(lengths) < of_fact * decoder.pass_cost:
        batches = list(length_batches(lengths, sum(lengths) * len(lengths), spare=decoder.pass_cost))
    else:
        batches = [list(range(context, len(prompts), of_fact)) for context in range(of_fact)]
    rows = [row for batch in batches for row in batch]
    suffixes = Suffixes.join(
        [Suffixes.prepare(decoder, layer, [prompts[row] for row in batch], attention=attention) for batch in batches]
    )
    clean = [rows.index(row) for row in range(0, len(prompts), of_fact)]
    objective = Objective.of(suffixes, [prompts[row] for row in rows], [row // of_fact for row in rows], len(facts))
    return (
        objective,
        suffixes.hidden[clean, 0],
        None if suffixes.outputs is None else suffixes.outputs[clean],
        suffixes.select(torch.tensor(clean, device=decoder.device)).attention() if attention else None,
    )
