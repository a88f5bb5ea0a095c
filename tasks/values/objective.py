"""The loss of value vectors, for many facts together  [Meng et al. 2022b, eq. 16]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from factsmith.tasks.decoder.batching import length_batches
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.text import EncodedPrompt
from factsmith.tasks.values.suffixes import Suffixes

__all__ = ["Objective", "Reads"]


@dataclass(frozen=True)
class Reads:
    """What the loss reads of all prompts. Sums and divergences of facts without prompts are 0.

    Attributes:
        nll: (facts,) sum over a fact's rewrite prompts of the mean NLL per label.
        essence: (essences, vocabulary) log-probabilities at the essence prompts' lookup tokens.
        essence_facts: (essences,) fact that each essence prompt belongs to.
        misses: (facts,) number of labels that are not the likeliest token, if they are counted.
    """

    nll: Tensor
    essence: Tensor
    essence_facts: Tensor
    misses: Tensor | None = None

    def divergence(self, unchanged: Tensor) -> Tensor:
        """(facts,) KL(changed || unchanged) at the essence prompt's lookup token."""
        each = (self.essence.exp() * (self.essence - unchanged)).sum(1)
        return torch.zeros_like(self.nll).index_add(0, self.essence_facts, each)


@dataclass(frozen=True)
class _Group:
    """Prompts of about equal length, and the positions where the loss reads them.

    Attributes:
        suffixes: the prompts, from the lookup token on.
        facts: (prompts,) fact that each prompt belongs to.
        rows: (labels,) prompt of each label.
        places: (labels,) position that predicts it, counted from the lookup token.
        labels: (labels,) token to predict there.
        weights: (labels,) weight of the label in its prompt's mean.
        essences: (essences,) the essence prompts.
    """

    suffixes: Suffixes
    facts: Tensor
    rows: Tensor
    places: Tensor
    labels: Tensor
    weights: Tensor
    essences: Tensor

    def without(self, done: Tensor) -> _Group | None:
        """The group without the facts that are done; ``None`` if no prompt is left."""
        kept = ~done[self.facts]
        if kept.all():
            return self
        if not kept.any():
            return None
        place = kept.cumsum(0) - 1
        reads, essences = kept[self.rows], kept[self.essences]
        return _Group(
            self.suffixes.select(kept.nonzero()[:, 0]),
            self.facts[kept],
            place[self.rows[reads]],
            self.places[reads],
            self.labels[reads],
            self.weights[reads],
            place[self.essences[essences]],
        )


@dataclass(frozen=True)
class Objective:
    """The prompts of F facts, and what the loss reads of them.

    ``read`` only launches work on tensors of constant shapes. It waits for no result, so that it can be recorded on a
    GPU and replayed.

    Attributes:
        decoder: the model.
        groups: the prompts, in groups of about equal length.
        facts: F.
    """

    decoder: Decoder
    groups: Sequence[_Group]
    facts: int

    @classmethod
    def of(cls, suffixes: Suffixes, prompts: Sequence[EncodedPrompt], facts_of: Sequence[int], facts: int) -> Objective:
        """The objective of prompts that are prepared.

        Args:
            suffixes: a row for each prompt.
            prompts: the prompts; those without a continuation are essence prompts.
            facts_of: fact of each prompt.
            facts: F.
        """
        decoder, device = suffixes.decoder, suffixes.hidden.device
        lengths = suffixes.lengths.tolist()
        groups = []
        for batch in length_batches(lengths, len(lengths) * max(lengths), spare=decoder.pass_cost):
            reads: list[tuple[int, int, int, float]] = []
            for row, index in enumerate(batch):
                prompt = prompts[index]
                first = len(prompt.inputs) - prompt.continued - prompt.lookup
                reads += [(row, first + at, label, 1 / prompt.continued) for at, label in enumerate(prompt.labels)]
            rows, places, labels, weights = zip(*reads, strict=True) if reads else ((), (), (), ())
            essences = [row for row, index in enumerate(batch) if not prompts[index].continued]
            groups.append(
                _Group(
                    suffixes.select(torch.tensor(batch, device=device)),
                    torch.tensor([facts_of[index] for index in batch], device=device),
                    torch.tensor(rows, dtype=torch.long, device=device),
                    torch.tensor(places, dtype=torch.long, device=device),
                    torch.tensor(labels, dtype=torch.long, device=device),
                    torch.tensor(weights, dtype=torch.float32, device=device),
                    torch.tensor(essences, dtype=torch.long, device=device),
                )
            )
        return cls(decoder, groups, facts)

    def read(self, deltas: Tensor, *, misses: bool = False) -> Reads:
        """Run the prompts with each fact's delta added at its lookup token.

        Args:
            deltas: (F, d_model), or (F, 2, d_model) for the MLP and the attention. See ``Suffixes.run``.
            misses: whether to count labels that are not the likeliest token.
        """
        hidden = [group.suffixes.run(deltas[group.facts]) for group in self.groups]
        labelled = [each[group.rows, group.places] for group, each in zip(self.groups, hidden, strict=True)]
        essences = [each[group.essences, 0] for group, each in zip(self.groups, hidden, strict=True)]
        scores = self.decoder.logits(torch.cat(labelled))
        each = torch.nn.functional.cross_entropy(scores, self._labels, reduction="none") * self._weights
        missed = (scores.detach().argmax(-1) != self._labels).to(each) if misses else None
        return Reads(
            each.new_zeros(self.facts).index_add(0, self._label_facts, each),
            self.decoder.logits(torch.cat(essences)).log_softmax(-1),
            self.essence_facts,
            None if missed is None else each.new_zeros(self.facts).index_add(0, self._label_facts, missed),
        )

    def without(self, done: Tensor) -> Objective:
        """The objective without the prompts of the facts that are done, (F,) bool. Facts keep their places."""
        groups = [kept for group in self.groups if (kept := group.without(done)) is not None]
        return Objective(self.decoder, groups, self.facts)

    @cached_property
    def essence_facts(self) -> Tensor:
        """(essences,) fact that each essence prompt belongs to."""
        return torch.cat([group.facts[group.essences] for group in self.groups])

    @cached_property
    def _labels(self) -> Tensor:
        return torch.cat([group.labels for group in self.groups])

    @cached_property
    def _weights(self) -> Tensor:
        return torch.cat([group.weights for group in self.groups])

    @cached_property
    def _label_facts(self) -> Tensor:
        return torch.cat([group.facts[group.rows] for group in self.groups])
