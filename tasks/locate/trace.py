"""Causal tracing: which states of a model carry a fact that it knows  [Meng et al. 2022a, section 2, appendix B.1].

Noise is added to the subject's embeddings, and the object's probability falls. Then one state of the clean run is
restored, at one token and one layer. The probability that this brings back is the state's *indirect effect*:
P(object | noise, state restored) - P(object | noise), averaged over draws of the noise.

A state is the output of a block, or the outputs of the MLPs or attentions of a window of layers. Nothing below the
restored layer changes, so a run with a restoration starts there, from the states of the corrupted run. Noise does not
affect the positions before the subject, so they are not traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from factsmith.artifacts.recipe import digest_of
from factsmith.tasks.decoder.batching import length_batches, pad
from factsmith.tasks.decoder.decoder import Decoder, Part
from factsmith.tasks.locate.settings import TraceSettings

__all__ = ["KINDS", "Effects", "Kind", "Traced", "embedding_deviation", "trace", "window"]

Kind = Literal["hidden", "mlp", "attention"]
KINDS: tuple[Kind, ...] = ("hidden", "mlp", "attention")
"""What is restored: the output of a block, or the outputs of the MLPs or attentions of a window of layers."""

_PARTS: tuple[Part, ...] = ("mlp", "attention")


@dataclass(frozen=True)
class Traced:
    """A fact that a model knows, as tokens.

    Attributes:
        tokens: tokens of the prompt.
        first: index of the subject's first token.
        last: index of the subject's last token.
        wanted: the object's first token, which the model predicts after the prompt.
    """

    tokens: tuple[int, ...]
    first: int
    last: int
    wanted: int


@dataclass(frozen=True)
class Effects:
    """The effects that tracing finds for one fact.

    Attributes:
        clean: P(object) of the clean run.
        corrupted: P(object) with noise, mean over draws.
        indirect: for each kind, (layers, positions) float64 on the CPU: the mean over draws of what the restoration
            adds to ``corrupted``. Positions count from the subject's first token. A row of ``mlp`` or ``attention``
            is for the window around that layer.
        severed: (layers,) effect of restoring a block's output at the subject's last token while the MLPs above keep
            their outputs of the corrupted run at that token. This is the part of the effect that does not need these
            MLPs  [Meng et al. 2022b, section 4.1 and figure 3].
    """

    clean: float
    corrupted: float
    indirect: dict[Kind, Tensor]
    severed: Tensor


def window(layer: int, size: int, block_count: int) -> tuple[int, int]:
    """The first layer of the window of ``size`` layers around ``layer``, and the layer after its last one.

    The window is cut off at the ends of the model.
    """
    return max(0, layer - size // 2), min(block_count, layer - size // 2 + size)


@torch.inference_mode()
def embedding_deviation(decoder: Decoder, *, most_tokens: int) -> float:
    """Standard deviation over the vocabulary of the token embeddings that enter block 0.

    It is the root mean square over dimensions of the standard deviation in each dimension. A position embedding adds
    the same to every token, so it does not count.
    """
    total = torch.zeros(decoder.width, dtype=torch.float64, device=decoder.device)
    squares = torch.zeros_like(total)
    position = torch.zeros(1, 1, dtype=torch.long, device=decoder.device)
    for chunk in torch.arange(decoder.vocabulary_size, device=decoder.device).split(most_tokens):
        rows = decoder.embed(chunk[:, None], position)[:, 0].double()
        total += rows.sum(0)
        squares += rows.square().sum(0)
    count = decoder.vocabulary_size
    return float((squares / count - (total / count).square()).clamp_min(0).mean().sqrt())


@torch.inference_mode()
def trace(
    decoder: Decoder,
    facts: Sequence[Traced],
    settings: TraceSettings,
    *,
    most_tokens: int,
    advance: Callable[[int], None] = lambda layers: None,
) -> list[Effects]:
    """The effects of every restoration for each of ``facts``, in their order.

    A fact's noise is seeded by ``settings.seed`` and the fact's own tokens. Its effects therefore do not depend on the
    facts or the passes that it is traced with.

    Args:
        decoder: the model.
        facts: facts that the model knows.
        settings: settings of the trace.
        most_tokens: most positions in one forward pass, unless one prompt or the draws of one fact have more.
        advance: called with the number of layers just finished, counted once for each fact.
    """
    deviation = settings.noise * embedding_deviation(decoder, most_tokens=most_tokens)
    found: dict[int, Effects] = {}
    lengths = [len(fact.tokens) for fact in facts]
    for places in length_batches(lengths, max(1, most_tokens // settings.samples)):
        group = _Group(decoder, [facts[place] for place in places], settings, deviation, most_tokens)
        found |= zip(places, group.trace(settings.window_of(decoder.block_count), advance), strict=True)
    return [found[place] for place in range(len(facts))]


class _Group:
    """F facts of about the same length T that are traced together, each with S draws of noise.

    Attributes:
        corrupted: (F S, T, d_model) states of the corrupted run before the block that is traced next.
        corrupted_mlps: for each layer, (F S, d_model) output of its MLP at the subject's last token in the corrupted
            run.
        clean: for each kind, the (F, T, d_model) outputs of each layer in the clean run.
        rows: (N,) row of ``corrupted``, which is a fact and a draw, for each restoration.
        positions: (N,) position of each restoration.
    """

    def __init__(
        self, decoder: Decoder, facts: Sequence[Traced], settings: TraceSettings, deviation: float, most_tokens: int
    ) -> None:
        self.decoder = decoder
        self.facts = facts
        self.samples = settings.samples
        device = decoder.device
        tokens = pad([fact.tokens for fact in facts], device)
        self.length = tokens.shape[1]
        self.ends = torch.tensor([len(fact.tokens) - 1 for fact in facts], device=device)
        self.wanted = torch.tensor([fact.wanted for fact in facts], device=device)
        self.at_once = max(1, most_tokens // self.length)

        embedded = decoder.embed(tokens)
        self.clean = self._clean(embedded)
        self.corrupted = embedded.repeat_interleave(self.samples, 0)
        for place, fact in enumerate(facts):
            noise = deviation * _noise(fact, settings, decoder.width)
            rows = slice(place * self.samples, (place + 1) * self.samples)
            self.corrupted[rows, fact.first : fact.last + 1] += noise.to(self.corrupted)
        self.lasts = torch.tensor([fact.last for fact in facts], device=device)
        self.corrupted_mlps = self._corrupted_mlps()

        restorations = [
            (place * self.samples + draw, position)
            for place, fact in enumerate(facts)
            for draw in range(self.samples)
            for position in range(fact.first, len(fact.tokens))
        ]
        self.rows, self.positions = torch.tensor(restorations, device=device).T

    def trace(self, size: int, advance: Callable[[int], None]) -> list[Effects]:
        """Try every restoration, from the bottom layer up.

        Args:
            size: number of layers in a window.
            advance: see ``trace``.
        """
        count = self.decoder.block_count
        probabilities: dict[Kind, list[Tensor]] = {kind: [torch.empty(0)] * count for kind in KINDS}
        severed = []
        starts = [window(layer, size, count) for layer in range(count)]
        for layer in range(count):
            for centre, (start, stop) in enumerate(starts):
                if start == layer:
                    for part in _PARTS:
                        probabilities[part][centre] = self._restored_parts(part, start, stop)
            self.corrupted = self.decoder.run(self.corrupted, layer, layer + 1)
            probabilities["hidden"][layer] = self._restored_hidden(layer)
            severed.append(self._restored_severed(layer))
            advance(len(self.facts))
        every = torch.arange(len(self.corrupted), device=self.corrupted.device)
        corrupted = self._probability(self.corrupted, every // self.samples)
        clean = self._probability(self.clean["hidden"][-1], every[: len(self.facts)])
        without = (torch.stack(severed) - corrupted).view(count, len(self.facts), self.samples).mean(-1)
        return [
            self._effects(place, clean, corrupted, probabilities, without[:, place]) for place in range(len(self.facts))
        ]

    def _clean(self, embedded: Tensor) -> dict[Kind, list[Tensor]]:
        kept: dict[Kind, list[Tensor]] = {kind: [] for kind in KINDS}

        def keep(part: Part) -> Callable[[int, Tensor], Tensor]:
            def record(_: int, output: Tensor) -> Tensor:
                kept[part].append(output.clone())
                return output

            return record

        layers = range(self.decoder.block_count)
        hidden = embedded
        with (
            self.decoder.rewritten("mlp", layers, keep("mlp")),
            self.decoder.rewritten("attention", layers, keep("attention")),
        ):
            for layer in layers:
                hidden = self.decoder.run(hidden, layer, layer + 1)
                kept["hidden"].append(hidden)
        return kept

    def _corrupted_mlps(self) -> list[Tensor]:
        kept = []
        rows = torch.arange(len(self.corrupted), device=self.corrupted.device)
        lasts = self.lasts[rows // self.samples]

        def keep(_: int, output: Tensor) -> Tensor:
            kept.append(output[rows, lasts])
            return output

        layers = range(self.decoder.block_count)
        with self.decoder.rewritten("mlp", layers, keep):
            self.decoder.run(self.corrupted, 0, len(layers))
        return kept

    def _restored_hidden(self, layer: int) -> Tensor:
        """(N,) P(object) with the output of block ``layer`` restored. ``corrupted`` must be that block's output."""
        found = []
        for rows, facts, mask in self._chunks():
            hidden = torch.where(mask, self.clean["hidden"][layer][facts], self.corrupted[rows])
            found.append(self._probability(self.decoder.run(hidden, layer + 1, self.decoder.block_count), facts))
        return torch.cat(found)

    def _restored_severed(self, layer: int) -> Tensor:
        """(F S,) P(object) with the output of block ``layer`` restored at the subject's last token.

        The MLPs above keep their outputs of the corrupted run at that token.
        """
        count = self.decoder.block_count
        every = torch.arange(len(self.corrupted), device=self.corrupted.device)
        found = []
        for rows in every.split(self.at_once):
            facts = rows // self.samples
            here = torch.arange(len(rows), device=rows.device), self.lasts[facts]

            def sever(above: int, output: Tensor, rows: Tensor = rows, here: tuple[Tensor, Tensor] = here) -> Tensor:
                return output.index_put(here, self.corrupted_mlps[above][rows])

            hidden = self.corrupted[rows].index_put(here, self.clean["hidden"][layer][facts, self.lasts[facts]])
            with self.decoder.rewritten("mlp", range(layer + 1, count), sever):
                found.append(self._probability(self.decoder.run(hidden, layer + 1, count), facts))
        return torch.cat(found)

    def _restored_parts(self, part: Part, start: int, stop: int) -> Tensor:
        """(N,) P(object) with the MLPs or attentions of layers ``start`` to ``stop - 1`` restored."""
        found = []
        for rows, facts, mask in self._chunks():

            def restore(layer: int, output: Tensor, facts: Tensor = facts, mask: Tensor = mask) -> Tensor:
                return torch.where(mask, self.clean[part][layer][facts], output)

            with self.decoder.rewritten(part, range(start, stop), restore):
                hidden = self.decoder.run(self.corrupted[rows], start, self.decoder.block_count)
            found.append(self._probability(hidden, facts))
        return torch.cat(found)

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The restorations, in chunks of n that fit into one pass.

        Yields:
            Rows of ``corrupted`` (n,), their facts (n,), and a mask (n, T, 1) that is true where states are restored.
        """
        everywhere = torch.arange(self.length, device=self.rows.device)
        for rows, positions in zip(self.rows.split(self.at_once), self.positions.split(self.at_once), strict=True):
            yield rows, rows // self.samples, (everywhere == positions[:, None])[..., None]

    def _probability(self, hidden: Tensor, facts: Tensor) -> Tensor:
        """(n,) P(object), float64 on the CPU, from the last block's output (n, T, d_model)."""
        rows = torch.arange(len(hidden), device=hidden.device)
        logits = self.decoder.logits(hidden[rows, self.ends[facts]])
        chosen: Tensor = logits.log_softmax(-1)[rows, self.wanted[facts]]
        return chosen.double().exp().cpu()

    def _effects(
        self,
        place: int,
        clean: Tensor,
        corrupted: Tensor,
        probabilities: dict[Kind, list[Tensor]],
        severed: Tensor,
    ) -> Effects:
        draws = corrupted[place * self.samples : (place + 1) * self.samples]
        mine = (self.rows // self.samples == place).cpu()
        indirect = {
            kind: torch.stack([(row[mine].view(self.samples, -1) - draws[:, None]).mean(0) for row in by_layer])
            for kind, by_layer in probabilities.items()
        }
        return Effects(float(clean[place]), float(draws.mean()), indirect, severed)


def _noise(fact: Traced, settings: TraceSettings, width: int) -> Tensor:
    """(samples, subject tokens, d_model) float32 standard normal noise. It is the same on every device."""
    seed = int(digest_of({"seed": settings.seed, "tokens": list(fact.tokens)})[:15], 16)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(settings.samples, fact.last + 1 - fact.first, width, generator=generator)
