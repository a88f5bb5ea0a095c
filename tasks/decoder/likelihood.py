"""Likelihoods that a model assigns to continuations of prompts, under teacher forcing."""

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
    """The likelihood of one continuation.

    Attributes:
        nll: mean negative log-likelihood per token, in nats.
        tokens: number of tokens of the continuation.
        correct: number of these tokens that are the model's first choice.
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
        """The values as columns of a table row."""
        return asdict(self)


@torch.inference_mode()
def continuation_likelihoods(
    decoder: Decoder,
    prompts: Sequence[EncodedPrompt],
    *,
    most_tokens: int,
    advance: Callable[[int], None] = lambda prompts: None,
) -> list[Likelihood]:
    """Likelihoods of the continuations of ``prompts``, in the order of ``prompts``.

    Inputs that share a pass run only once. Different continuations of a prompt often have the same inputs, because
    the last token is only predicted. The pass of an input also covers every input that is a prefix of it.

    Args:
        decoder: the model.
        prompts: prompts, each with a continuation.
        most_tokens: most positions in one forward pass.
        advance: called with the number of prompts just finished.
    """
    ends = [len(prompt.inputs) - prompt.continued for prompt in prompts]
    # A first number keeps apart what may not share a pass: prompts that a memory would look up at different places.
    kinds = ends if decoder.has_memory else [0] * len(ends)
    merged, pass_of = _merged([(kind, *prompt.inputs) for kind, prompt in zip(kinds, prompts, strict=True)])
    passes = [tokens for _, *tokens in merged]
    readers: list[list[int]] = [[] for _ in passes]
    for index, place in enumerate(pass_of):
        readers[place].append(index)
    found: dict[int, Likelihood] = {}
    for batch in length_batches([len(tokens) for tokens in passes], most_tokens, spare=decoder.pass_cost):
        tokens = pad([passes[place] for place in batch], decoder.device)
        with decoder.prompted([ends[readers[place][0]] for place in batch]):
            hidden = decoder.run(decoder.embed(tokens), 0, decoder.block_count)
        asked = [(row, index) for row, place in enumerate(batch) for index in readers[place]]
        rows: list[int] = []
        columns: list[int] = []
        labels: list[int] = []
        for row, index in asked:
            prompt = prompts[index]
            first = ends[index]
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
    """The distinct inputs that are not a prefix of another, and for each input the index of the one that covers it."""
    passes: list[tuple[int, ...]] = []
    pass_of = [0] * len(inputs)
    # In reverse lexicographic order, an input that is a prefix of others directly follows one that starts with it.
    for index in sorted(range(len(inputs)), key=lambda i: inputs[i], reverse=True):
        tokens = inputs[index]
        if not passes or passes[-1][: len(tokens)] != tokens:
            passes.append(tokens)
        pass_of[index] = len(passes) - 1
    return passes, pass_of
