"""Value vectors: what block L should put out at a subject's last token for the model to say the new object.

Meng et al. 2022b, section 4.2 and eq. 16, as the public memit code computes it, but many facts at a time. While the
change ``delta`` is optimised, everything before it stands still. So blocks up to L run once; positions before the
lookup token run once, and their attention keys and values are kept; logits are taken where the loss reads them. Each
step runs the blocks above L on the positions from the lookup token on, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from factsmith.tasks.editing.request import EditRequest
from factsmith.tasks.models.batching import length_batches, pad
from factsmith.tasks.models.decoder import Decoder
from factsmith.tasks.models.prefix_cache import PrefixCache
from factsmith.tasks.models.text import PLACEHOLDER, EncodedPrompt, encode_prompt

__all__ = ["NonFiniteValueError", "ValueSettings", "ValueVector", "optimise_values"]

ESSENCE_TEMPLATE = "{} is a"
"""What the model says here should not change: the prompt of the KL term."""


class ValueSettings(BaseModel):
    """How a value vector is optimised. Everything here changes the vectors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(25, ge=1, description="evaluations of the loss at most; one update fewer")
    learning_rate: float = Field(0.5, gt=0, description="of Adam")
    clamp: float = Field(4.0, gt=0, description="largest change, as a multiple of the hidden state's norm")
    weight_decay: float = Field(0.5, ge=0, description="of the change's norm")
    kl_weight: float = Field(0.0625, ge=0, description="of the divergence on '{subject} is a'")
    stop_loss: float = Field(0.05, ge=0, description="a fact whose loss is below this is done")


@dataclass(frozen=True)
class ValueVector:
    """One fact's optimised value.

    Attributes:
        value: (d_model,) float32, the wanted output of block L at the lookup token.
        start: (d_model,) float32, that output before the change (clean prompt).
        loss: the last loss, of which ``nll`` and ``kl`` are parts.
        steps: evaluations of the loss.
    """

    value: Tensor
    start: Tensor
    loss: float
    nll: float
    kl: float
    steps: int


class NonFiniteValueError(Exception):
    """Optimisation left the numbers.

    Attributes:
        request: the fact.
    """

    def __init__(self, request: EditRequest) -> None:
        super().__init__(f"value of case {request.case_id} holds NaN or infinity")
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
    """Value vectors of ``requests``, each independent of the others it is computed with.

    Minimises, for each fact over delta, the mean over contexts of the target's mean NLL per token
    + kl_weight KL(changed || unchanged) on "{subject} is a", read at the subject's last token
    + weight_decay ||delta|| / ||start||^2      [Meng et al. 2022b eq. 16; the norm of delta is not squared in the code]
    with Adam, ||delta|| held below clamp ||start||.

    Args:
        decoder: the model, with the weights the edit starts from.
        requests: facts to write.
        contexts: templates with one ``{}`` for the prompt, the clean one first.
        layer: L, the last edited layer.
        settings: of the optimiser.
        memory: bytes that activations may take; decides how many facts run together.
        advance: told how many more facts are done.

    Returns:
        One vector a request, in their order.

    Raises:
        NonFiniteValueError: NaN or infinity; names the fact.
    """
    facts = [_Fact.encode(decoder, request, contexts) for request in requests]
    found: dict[int, ValueVector] = {}
    # Facts of like length share a batch, so that few positions are padding.
    budget = max(1, memory // _bytes_per_position(decoder, layer))
    for batch in length_batches([fact.positions for fact in facts], budget, waste=0.2):
        vectors = _optimise([facts[index] for index in batch], decoder, layer, settings)
        for index, vector in zip(batch, vectors, strict=True):
            if not torch.isfinite(vector.value).all():
                raise NonFiniteValueError(requests[index])
            found[index] = vector
        advance(len(batch))
    return [found[index] for index in range(len(requests))]


@dataclass(frozen=True)
class _Fact:
    """A request as the model is fed it: the prompt in every context, and the essence prompt."""

    rewrites: tuple[EncodedPrompt, ...]
    essence: EncodedPrompt

    @classmethod
    def encode(cls, decoder: Decoder, request: EditRequest, contexts: Sequence[str]) -> _Fact:
        rewrites = tuple(
            encode_prompt(
                decoder.tokenizer,
                context.replace(PLACEHOLDER, request.template, 1),
                request.subject,
                request.target_new,
            )
            for context in contexts
        )
        return cls(rewrites, encode_prompt(decoder.tokenizer, ESSENCE_TEMPLATE, request.subject))

    @property
    def positions(self) -> int:
        """Positions from the lookup token on that every step runs through."""
        return len(self.rewrites) * max(len(prompt.inputs) - prompt.lookup for prompt in self.rewrites) + 1


def _bytes_per_position(decoder: Decoder, layer: int) -> int:
    """Bytes that autograd keeps for one position in the blocks above ``layer``, and for its logits."""
    blocks = decoder.block_count - layer - 1
    return 4 * (blocks * (12 * decoder.width + 4 * decoder.key_width) + decoder.vocabulary_size)


def _optimise(
    facts: Sequence[_Fact], decoder: Decoder, layer: int, settings: ValueSettings
) -> list[ValueVector]:
    rewrites = _Suffixes.prepare(decoder, [prompt for fact in facts for prompt in fact.rewrites], len(facts), layer)
    essence = _Suffixes.prepare(decoder, [fact.essence for fact in facts], len(facts), layer)
    start = rewrites.hidden.unflatten(0, (len(facts), -1))[:, 0, 0].float()  # clean prompt, lookup token
    longest = settings.clamp * start.norm(dim=1)

    deltas = [torch.zeros_like(row, requires_grad=True) for row in start]
    optimiser = torch.optim.Adam(deltas, lr=settings.learning_rate)
    running = torch.arange(len(facts))
    unchanged = Tensor()
    found: list[ValueVector | None] = [None] * len(facts)
    for step in range(settings.steps):
        # A fact that is done drops out: the stack, and with it every later pass, holds only the running ones.
        delta = torch.stack([deltas[index] for index in running])
        nll = rewrites.mean_nll(delta)
        current = essence.next_token_log_probabilities(delta)
        if step == 0:
            unchanged = current.detach()
        kl = (current.exp() * (current - unchanged)).sum(1)
        penalty = settings.weight_decay * delta.norm(dim=1) / start[running].norm(dim=1).square()
        loss = nll + settings.kl_weight * kl + penalty

        last = step == settings.steps - 1
        done = (loss.detach() < settings.stop_loss).cpu() | last
        for row in done.nonzero()[:, 0].tolist():
            index = int(running[row])
            found[index] = ValueVector(
                value=(start[index] + deltas[index]).detach().cpu(),
                start=start[index].cpu(),
                loss=loss[row].item(),
                nll=nll[row].item(),
                kl=kl[row].item(),
                steps=step + 1,
            )
        if done.all():
            break
        optimiser.zero_grad()
        loss[~done].sum().backward()
        optimiser.step()
        if done.any():
            rest = (~done).nonzero()[:, 0]
            running, unchanged = running[rest], unchanged[rest]
            rewrites, essence = rewrites.select(rest), essence.select(rest)
        with torch.no_grad():
            for index in running:
                norm = deltas[index].norm()
                if norm > longest[index]:
                    deltas[index].mul_(longest[index] / norm)
    return [vector for vector in found if vector is not None]


@dataclass(frozen=True)
class _Suffixes:
    """Prompts of some facts from the lookup token on, with all that comes before kept as constants.

    Rows are prompts, the prompts of a fact next to each other.

    Attributes:
        hidden: (rows, length, d_model) output of block L, right-padded; index 0 is the lookup token.
        positions: (rows, length) of the tokens in their prompts.
        mask: (rows, 1, length, prefix + length), true where a query may look.
        prefix: attention keys and values before the lookup token, in the blocks above L.
        label_positions: (rows, most labels) where labels are predicted, -1 behind the last.
        labels: (rows, most labels) token ids.
    """

    decoder: Decoder
    layer: int
    facts: int
    hidden: Tensor
    positions: Tensor
    mask: Tensor
    prefix: PrefixCache | None
    label_positions: Tensor
    labels: Tensor

    @classmethod
    @torch.no_grad()
    def prepare(cls, decoder: Decoder, prompts: Sequence[EncodedPrompt], facts: int, layer: int) -> _Suffixes:
        device = decoder.device
        full = decoder.run(decoder.embed(pad([prompt.inputs for prompt in prompts], device)), 0, layer + 1)
        lookups = torch.tensor([prompt.lookup for prompt in prompts], device=device)
        before = int(lookups.max())
        after = max(len(prompt.inputs) - prompt.lookup for prompt in prompts)

        prefix = None
        if before:
            prefix = PrefixCache()
            decoder.run(full[:, :before], layer + 1, decoder.block_count, cache=prefix)
            prefix.recording = False

        steps = torch.arange(after, device=device)
        positions = lookups[:, None] + steps
        inside = positions.clamp(max=full.shape[1] - 1)
        hidden = full.gather(1, inside[..., None].expand(-1, -1, full.shape[2]))
        in_prefix = torch.arange(before, device=device) < lookups[:, None]
        causal = (steps[:, None] >= steps).expand(len(prompts), -1, -1)
        mask = torch.cat([in_prefix[:, None].expand(-1, after, -1), causal], dim=2)[:, None]

        most = max(prompt.continued for prompt in prompts)
        label_positions = torch.full((len(prompts), most), -1)
        labels = torch.zeros_like(label_positions)
        for row, prompt in enumerate(prompts):
            count = prompt.continued
            first = len(prompt.inputs) - count - prompt.lookup
            label_positions[row, :count] = torch.arange(first, first + count)
            labels[row, :count] = torch.tensor(prompt.labels, dtype=torch.long)
        return cls(
            decoder, layer, facts, hidden, positions, mask, prefix, label_positions.to(device), labels.to(device)
        )

    def select(self, facts: Tensor) -> _Suffixes:
        """The prompts of some facts, in that order."""
        each = len(self.hidden) // self.facts
        rows = (facts[:, None] * each + torch.arange(each)).flatten().to(self.hidden.device)
        return _Suffixes(
            self.decoder,
            self.layer,
            len(facts),
            self.hidden[rows],
            self.positions[rows],
            self.mask[rows],
            self.prefix and self.prefix.select(rows),
            self.label_positions[rows],
            self.labels[rows],
        )

    def mean_nll(self, delta: Tensor) -> Tensor:
        """(facts,): mean over a fact's prompts of the mean NLL per label, with ``delta`` (facts, d_model) added."""
        hidden = self._run(delta)
        wanted = self.label_positions >= 0
        row, _ = wanted.nonzero(as_tuple=True)
        scores = self.decoder.logits(hidden[row, self.label_positions[wanted]])
        nll = torch.nn.functional.cross_entropy(scores, self.labels[wanted], reduction="none")
        per_row = nll.new_zeros(len(hidden)).index_add(0, row, nll / wanted.sum(1)[row])
        return per_row.view(self.facts, -1).mean(1)

    def next_token_log_probabilities(self, delta: Tensor) -> Tensor:
        """(rows, vocabulary): what is predicted at the lookup token, with ``delta`` added there."""
        return self.decoder.logits(self._run(delta)[:, 0]).log_softmax(-1)

    def _run(self, delta: Tensor) -> Tensor:
        each = len(self.hidden) // self.facts
        changed = self.hidden[:, :1] + delta.repeat_interleave(each, 0)[:, None].to(self.hidden.dtype)
        return self.decoder.run(
            torch.cat([changed, self.hidden[:, 1:]], dim=1),
            self.layer + 1,
            self.decoder.block_count,
            positions=self.positions,
            mask=self.mask,
            cache=self.prefix,
        )
