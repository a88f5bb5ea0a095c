"""How likely a model finds continuations of prompts, under teacher forcing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from factsmith.tasks.decoder.batching import length_batches, pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.text import EncodedPrompt

__all__ = ["Likelihood", "continuation_likelihoods"]


@dataclass(frozen=True)
class Likelihood:
    """Of one continuation.

    Attributes:
        nll: mean negative log-likelihood per token, nats.
        tokens: number of its tokens.
        correct: how many of them are the model's first choice.
    """

    nll: float
    tokens: int
    correct: int

    @property
    def exact(self) -> bool:
        """Whether every token is the model's first choice."""
        return self.correct == self.tokens

    @property
    def columns(self) -> dict[str, Any]:
        """For a row of a table."""
        return asdict(self)


@torch.inference_mode()
def continuation_likelihoods(
    decoder: Decoder,
    prompts: Sequence[EncodedPrompt],
    *,
    most_tokens: int,
    advance: Callable[[int], None] = lambda prompts: None,
) -> list[Likelihood]:
    """Likelihoods of the continuations of ``prompts``, in their order.

    Two continuations of one prompt often need the same pass (a one-token target needs only the prompt's), and one
    prompt's pass holds that of every beginning of it: such inputs run once.

    Args:
        decoder: the model.
        prompts: with a continuation each.
        most_tokens: positions in one forward pass, at most.
        advance: told how many more prompts are done.
    """
    passes, pass_of = _merged([prompt.inputs for prompt in prompts])
    readers: list[list[int]] = [[] for _ in passes]
    for index, place in enumerate(pass_of):
        readers[place].append(index)
    found: dict[int, Likelihood] = {}
    for batch in length_batches([len(tokens) for tokens in passes], most_tokens):
        hidden = decoder.run(
            decoder.embed(pad([passes[place] for place in batch], decoder.device)), 0, decoder.block_count
        )
        asked = [(row, index) for row, place in enumerate(batch) for index in readers[place]]
        rows: list[int] = []
        columns: list[int] = []
        labels: list[int] = []
        for row, index in asked:
            prompt = prompts[index]
            first = len(prompt.inputs) - prompt.continued
            rows += [row] * prompt.continued
            columns += range(first, first + prompt.continued)
            labels += prompt.labels
        wanted = torch.tensor(labels, device=decoder.device)
        scores = decoder.logits(hidden[rows, columns])
        nll = torch.nn.functional.cross_entropy(scores, wanted, reduction="none").double().tolist()
        correct = (scores.argmax(-1) == wanted).tolist()
        place = 0
        for _, index in asked:
            count = prompts[index].continued
            found[index] = Likelihood(
                nll=sum(nll[place : place + count]) / count,
                tokens=count,
                correct=sum(correct[place : place + count]),
            )
            place += count
        advance(len(asked))
    return [found[index] for index in range(len(prompts))]


def _merged(inputs: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The inputs that are no other's beginning, and for each input the one that holds it."""
    passes: list[tuple[int, ...]] = []
    pass_of = [0] * len(inputs)
    # From the last in dictionary order: whatever begins another input comes right after one that holds it.
    for index in sorted(range(len(inputs)), key=lambda i: inputs[i], reverse=True):
        tokens = inputs[index]
        if not passes or passes[-1][: len(tokens)] != tokens:
            passes.append(tokens)
        pass_of[index] = len(passes) - 1
    return passes, pass_of
