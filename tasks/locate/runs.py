"""The clean run and the corrupted runs of some facts, with all that restorations read of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from factsmith.artifacts.recipe import digest_of
from factsmith.tasks.decoder.batching import pad
from factsmith.tasks.decoder.decoder import Decoder, Part
from factsmith.tasks.decoder.prefix_cache import PrefixCache
from factsmith.tasks.locate.settings import TraceSettings

__all__ = ["KINDS", "PARTS", "Kind", "Runs", "Traced", "draw_noise"]

Kind = Literal["hidden", "mlp", "attention"]
KINDS: tuple[Kind, ...] = ("hidden", "mlp", "attention")
"""What is restored: the output of a block, or the outputs of the MLPs or attentions of a window of layers."""

PARTS: tuple[Part, ...] = ("mlp", "attention")

_LOGITS = 2**27
_CPU_LOGITS = 2**23
"""Most logits in memory at the same time. On a CPU, memory of this size is used again; more would be asked for anew."""


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


class Runs:
    """The clean run of each of F facts, and its S corrupted runs, one for each draw of the noise.

    The prompts are padded on the left to T tokens, so that they end together. A *place* is an index into the padded
    prompts. A *row* is a corrupted run; the rows of a fact follow each other.

    Attributes:
        decoder: the model.
        length: T.
        padding: for each fact, the number of places before its first token.
        firsts: for each row, the place of the subject's first token.
        lasts: for each row, the place of the subject's last token.
        facts: (F S,) fact of each row.
        clean: for each kind, the (F, T, d_model) outputs of every layer in the clean runs.
        corrupted: for each layer, the (F S, T, d_model) output of its block in the corrupted runs.
        corrupted_mlps: for each layer, the (F S, d_model) output of its MLP at the subject's last token in the
            corrupted runs.
    """

    def __init__(self, decoder: Decoder, facts: Sequence[Traced], settings: TraceSettings, deviation: float) -> None:
        """Run the model on ``facts``, with noise of the standard deviation ``deviation``."""
        device = decoder.device
        self.decoder = decoder
        self.length = max(len(fact.tokens) for fact in facts)
        self.padding = [self.length - len(fact.tokens) for fact in facts]
        self.facts = torch.arange(len(facts), device=device).repeat_interleave(settings.samples)
        self.clean: dict[Kind, list[Tensor]] = {kind: [] for kind in KINDS}
        self.corrupted: list[Tensor] = []
        self.corrupted_mlps: list[Tensor] = []
        self._restored: dict[Kind, list[Tensor]] = {part: [] for part in PARTS}
        self._caches: list[PrefixCache] = []
        self._wanted = torch.tensor([fact.wanted for fact in facts], device=device)
        self._starts = torch.tensor(self.padding, device=device)
        paired = list(zip(self.padding, facts, strict=True))
        self.firsts = [padding + fact.first for padding, fact in paired for _ in range(settings.samples)]
        self.lasts = [padding + fact.last for padding, fact in paired for _ in range(settings.samples)]
        self._lasts = torch.tensor(self.lasts, device=device)

        every = torch.arange(len(facts), device=device)
        tokens = pad([fact.tokens[::-1] for fact in facts], device).flip(1)
        clean = decoder.embed(tokens, self._positions(0, self.length, every))
        corrupted = clean.repeat_interleave(settings.samples, 0)
        for at, (padding, fact) in enumerate(paired):
            rows = slice(at * settings.samples, (at + 1) * settings.samples)
            subject = slice(padding + fact.first, padding + fact.last + 1)
            corrupted[rows, subject] += (deviation * draw_noise(fact, settings, decoder.width)).to(corrupted)
        for layer in range(decoder.block_count):
            clean, corrupted = self._record(layer, clean, corrupted)

    def run(self, hidden: Tensor, layer: int, place: int, rows: Tensor, cache: PrefixCache | None = None) -> Tensor:
        """(n, length, d_model) output of block ``layer``.

        Args:
            hidden: (n, length, d_model), the block's input at the places from ``place`` on.
            layer: the block.
            place: the first place of ``hidden``.
            rows: (n,) the row that each run is a change of.
            cache: attention keys and values of all places before ``place``; ``None`` for those of ``rows``.
        """
        facts = self.facts[rows]
        return self.decoder.run(
            hidden,
            layer,
            layer + 1,
            positions=self._positions(place, hidden.shape[1], facts),
            mask=self._mask(place, hidden.shape[1], facts),
            cache=self.prefix(layer, place, rows) if cache is None else cache,
        )

    def prefix(self, layer: int, place: int, rows: Tensor) -> PrefixCache:
        """Attention keys and values of ``rows`` in block ``layer`` at the places before ``place``."""
        return self._caches[layer].select(rows, place)

    def restored(self, kind: Kind, layer: int, place: int, rows: Tensor) -> Tensor:
        """(n, d_model) output of block ``layer`` at ``place`` in ``rows``, with only this layer's ``kind`` restored."""
        if kind == "hidden":
            return self.clean["hidden"][layer][self.facts[rows], place]
        return self._restored[kind][layer][rows, place]

    def probability(self, hidden: Tensor, facts: Tensor) -> Tensor:
        """(n,) P(object), float64, from the last block's output (n, d_model) at the last place; ``facts`` is (n,)."""
        logits = _CPU_LOGITS if hidden.device.type == "cpu" else _LOGITS
        rows = max(1, logits // self.decoder.vocabulary_size)
        found = [
            self.decoder.logits(some).log_softmax(-1).gather(1, self._wanted[of][:, None])[:, 0]
            for some, of in zip(hidden.split(rows), facts.split(rows), strict=True)
        ]
        return torch.cat(found).double().exp()

    def _record(self, layer: int, clean: Tensor, corrupted: Tensor) -> tuple[Tensor, Tensor]:
        """Run block ``layer`` on the clean and the corrupted runs and keep what is read later. Returns its outputs."""
        count = len(clean)
        rows = torch.arange(len(corrupted), device=corrupted.device)
        every = torch.cat([torch.arange(count, device=rows.device), self.facts])

        def keep(part: Part) -> Callable[[int, Tensor], Tensor]:
            def record(_: int, output: Tensor) -> Tensor:
                self.clean[part].append(output[:count].clone())
                if part == "mlp":
                    self.corrupted_mlps.append(output[count:][rows, self._lasts])
                return output

            return record

        recorder = PrefixCache().recorder(self.decoder.block_count)
        with (
            self.decoder.rewritten("mlp", [layer], keep("mlp")),
            self.decoder.rewritten("attention", [layer], keep("attention")),
        ):
            outputs = self.decoder.run(
                torch.cat([clean, corrupted]),
                layer,
                layer + 1,
                positions=self._positions(0, self.length, every),
                mask=self._mask(0, self.length, every),
                cache=recorder,
            )
        self._caches.append(recorder.recorded().select(slice(count, None), self.length))
        self.clean["hidden"].append(outputs[:count])
        self.corrupted.append(outputs[count:])
        for part in PARTS:

            def restore(_: int, __: Tensor, part: Part = part) -> Tensor:
                return self.clean[part][layer][self.facts]

            # Attention reads only the block's input. To restore a part at every place therefore gives at each of them
            # what restoring it only there gives.
            with self.decoder.rewritten(part, [layer], restore):
                self._restored[part].append(self.run(corrupted, layer, 0, rows))
        return outputs[:count], outputs[count:]

    def _positions(self, place: int, length: int, facts: Tensor) -> Tensor:
        """(n or 1, length) positions of the tokens from ``place`` on. Padding has position 0."""
        places = torch.arange(place, place + length, device=facts.device)
        return (places - self._paddings(facts)[:, None]).clamp_min(0)

    def _mask(self, place: int, length: int, facts: Tensor) -> Tensor:
        """(n or 1, 1, length, place + length) mask of the places from ``place`` on."""
        keys = torch.arange(place + length, device=facts.device)
        queries = keys[place:, None]
        # Padding attends to itself, because the attention of a query without any key is NaN.
        real = (keys >= self._paddings(facts)[:, None, None]) | (keys == queries)
        return (real & (keys <= queries))[:, None]

    def _paddings(self, facts: Tensor) -> Tensor:
        """(n,) padding of ``facts``; (1,) if they have none, so that all share one row of positions and one mask."""
        return self._starts[facts] if any(self.padding) else self._starts[:1]


def draw_noise(fact: Traced, settings: TraceSettings, width: int) -> Tensor:
    """(samples, subject tokens, d_model) float32 standard normal noise. It is the same on every device."""
    seed = int(digest_of({"seed": settings.seed, "tokens": list(fact.tokens)})[:15], 16)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(settings.samples, fact.last + 1 - fact.first, width, generator=generator)
