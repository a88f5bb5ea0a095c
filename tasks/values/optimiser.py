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

from factsmith.tasks.decoder.batching import length_batches
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.text import PLACEHOLDER, EncodedPrompt, encode_prompt
from factsmith.tasks.facts.activations import FactActivations
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.values.settings import ValueSettings
from factsmith.tasks.values.suffixes import Suffixes

__all__ = ["NonFiniteValueError", "ValueVector", "optimise_values"]

ESSENCE_TEMPLATE = "{} is a"
"""The essence prompt, which the KL term uses: what the model predicts for it should not change."""


@dataclass(frozen=True)
class ValueVector:
    """The optimised value vector of one fact.

    Attributes:
        value: (d_model,) float32, wanted output of block L, or of its MLP, at the lookup token.
        start: (d_model,) float32, the same output before the change, on the clean prompt.
        loss: last loss, the sum of ``nll``, kl_weight ``divergence`` and the weight decay.
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


def optimise_values(
    decoder: Decoder,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
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

    Args:
        decoder: the model, with the weights that the edit starts from.
        requests: facts to write.
        contexts: context templates with one ``{}`` for the prompt, the clean one first.
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
    for first, last in _ranges(decoder, facts, layer, memory):
        mlp = FactActivations(decoder, requests[first:last]).mlp_outputs(layer).T if settings.site == "mlp" else None
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
    def encode(cls, decoder: Decoder, request: EditRequest, contexts: Sequence[str]) -> _Fact:
        templates = [context.replace(PLACEHOLDER, request.template, 1) for context in contexts]
        return cls(
            tuple(
                encode_prompt(decoder.tokenizer, one, request.subject, request.target_new, request.separator)
                for one in templates
            ),
            encode_prompt(decoder.tokenizer, ESSENCE_TEMPLATE, request.subject),
        )


def _ranges(decoder: Decoder, facts: Sequence[_Fact], layer: int, memory: int) -> Iterator[tuple[int, int]]:
    """Ranges of facts that run together, so that their constants and activations fit into ``memory``."""
    blocks = decoder.block_count - layer - 1
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
    """Value vectors of facts that take their steps together. Later passes leave out facts that are finished.

    A block adds its MLP's output to the residual stream, so changing either output by delta has the same effect. Only
    the output that delta is added to and measured against differs: ``mlp`` (facts, d_model), or the block's output if
    ``mlp`` is ``None``.
    """
    contexts = [[fact.rewrites[context] for fact in facts] for context in range(len(facts[0].rewrites))]
    parts = [Suffixes.prepare(decoder, layer, prompts) for prompts in (*contexts, [fact.essence for fact in facts])]
    start = parts[0].hidden[:, 0].float() if mlp is None else mlp.to(decoder.device).float()
    groups = _grouped(Suffixes.join(parts), [prompt for prompts in contexts for prompt in prompts], len(facts))
    largest = settings.clamp * start.norm(dim=1, keepdim=True)
    decay = settings.weight_decay / start.norm(dim=1).square()

    deltas = torch.zeros_like(start, requires_grad=True)
    optimiser = torch.optim.Adam([deltas], lr=settings.learning_rate)
    unchanged = torch.empty(0)
    found: dict[int, ValueVector] = {}
    for step in range(settings.steps):
        last = step == settings.steps - 1
        with torch.set_grad_enabled(not last):
            reads = _Reads.take(decoder, groups, deltas)
            if step == 0:
                unchanged = reads.essence.detach()
            nll = reads.nll(len(facts)) / len(contexts)
            kl = reads.divergence(unchanged, len(facts))
            loss = nll + settings.kl_weight * kl + decay * deltas.norm(dim=1)
        done = (loss.detach() < settings.stop_loss) | last
        for fact in done.nonzero()[:, 0].tolist():
            if fact not in found:
                found[fact] = ValueVector(
                    value=(start[fact] + deltas[fact]).detach().cpu(),
                    start=start[fact].cpu(),
                    loss=loss[fact].item(),
                    nll=nll[fact].item(),
                    divergence=kl[fact].item(),
                    steps=step + 1,
                )
        if len(found) == len(facts):
            break
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
        with torch.no_grad():
            deltas.mul_((largest / deltas.norm(dim=1, keepdim=True)).clamp(max=1))
        if done.any():
            unchanged = unchanged[~done[reads.essence_facts]]
            groups = [kept for group in groups if (kept := group.without(done)) is not None]
    return [found[fact] for fact in range(len(facts))]


@dataclass(frozen=True)
class _Group:
    """Prompts of about equal length, and the positions where the loss reads them.

    Attributes:
        suffixes: the prompts, from the lookup token on.
        facts: (prompts,) fact that each prompt belongs to.
        rows: (reads,) prompt of each read.
        places: (reads,) position of each read, counted from the lookup token.
        labels: (reads,) token to predict there; -1 for an essence prompt, where the loss reads all tokens.
        weights: (reads,) weight of the label in its prompt's mean.
    """

    suffixes: Suffixes
    facts: Tensor
    rows: Tensor
    places: Tensor
    labels: Tensor
    weights: Tensor

    def hidden(self, deltas: Tensor) -> Tensor:
        """(reads, d_model) output of the last block, with each fact's delta added at the lookup token."""
        return self.suffixes.run(deltas[self.facts])[self.rows, self.places]

    def without(self, done: Tensor) -> _Group | None:
        """The group without the facts that are done; ``None`` if no prompt is left."""
        kept = ~done[self.facts]
        if kept.all():
            return self
        if not kept.any():
            return None
        reads = kept[self.rows]
        rows = (kept.cumsum(0) - 1)[self.rows[reads]]
        return _Group(
            self.suffixes.select(kept.nonzero()[:, 0]),
            self.facts[kept],
            rows,
            self.places[reads],
            self.labels[reads],
            self.weights[reads],
        )


def _grouped(suffixes: Suffixes, rewrites: Sequence[EncodedPrompt], facts: int) -> list[_Group]:
    """The rows of ``suffixes`` in groups of about equal length.

    Args:
        suffixes: rows of the rewrite prompts, context by context, then of the essence prompts.
        rewrites: the rewrite prompts.
        facts: number of facts.
    """
    groups = []
    device = suffixes.hidden.device
    for batch in length_batches(suffixes.lengths.tolist(), len(suffixes.lengths) * suffixes.hidden.shape[1]):
        reads: list[tuple[int, int, int, float]] = []
        for row, index in enumerate(batch):
            if index >= len(rewrites):
                reads.append((row, 0, -1, 1.0))
                continue
            prompt = rewrites[index]
            first = len(prompt.inputs) - prompt.continued - prompt.lookup
            reads += [(row, first + place, label, 1 / prompt.continued) for place, label in enumerate(prompt.labels)]
        rows, places, labels, weights = zip(*reads, strict=True)
        groups.append(
            _Group(
                suffixes.select(torch.tensor(batch, device=device)),
                torch.tensor(batch, device=device) % facts,
                torch.tensor(rows, device=device),
                torch.tensor(places, device=device),
                torch.tensor(labels, device=device),
                torch.tensor(weights, device=device),
            )
        )
    return groups


@dataclass(frozen=True)
class _Reads:
    """What the loss reads of all prompts.

    Attributes:
        scores: (labels, vocabulary) logits at the positions where labels are predicted.
        labels: (labels,) tokens to predict.
        weights: (labels,) weight of each label in its prompt's mean.
        facts: (labels,) fact that each label belongs to.
        essence: (essences, vocabulary) log-probabilities at the essence prompts' lookup tokens.
        essence_facts: (essences,) fact that each essence prompt belongs to.
    """

    scores: Tensor
    labels: Tensor
    weights: Tensor
    facts: Tensor
    essence: Tensor
    essence_facts: Tensor

    @classmethod
    def take(cls, decoder: Decoder, groups: Sequence[_Group], deltas: Tensor) -> _Reads:
        labels = torch.cat([group.labels for group in groups])
        facts = torch.cat([group.facts[group.rows] for group in groups])
        weights = torch.cat([group.weights for group in groups])
        order = labels.argsort(descending=True, stable=True)  # Essence prompts come last: their label is -1.
        count = int((labels >= 0).sum())
        hidden = torch.cat([group.hidden(deltas) for group in groups])[order]
        return cls(
            decoder.logits(hidden[:count]),
            labels[order[:count]],
            weights[order[:count]],
            facts[order[:count]],
            decoder.logits(hidden[count:]).log_softmax(-1),
            facts[order[count:]],
        )

    def nll(self, facts: int) -> Tensor:
        """(facts,) sum over a fact's prompts of the mean NLL per label."""
        each = torch.nn.functional.cross_entropy(self.scores, self.labels, reduction="none") * self.weights
        return each.new_zeros(facts).index_add(0, self.facts, each)

    def divergence(self, unchanged: Tensor, facts: int) -> Tensor:
        """(facts,) KL(changed || unchanged) at the essence prompt's lookup token."""
        each = (self.essence.exp() * (self.essence - unchanged)).sum(1)
        return each.new_zeros(facts).index_add(0, self.essence_facts, each)
