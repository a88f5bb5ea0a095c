"""Ways of answering: which label a model gives to a prompt.

By likelihood, the label whose words have the lowest mean NLL per token after the prompt, as in the evaluation code of
AlphaEdit [Fang et al. 2025]. By generation, the label that comes first in what the model writes greedily after the
prompt, as whole words. Label words of different length are therefore compared per token.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from factsmith.tasks.abilities.task import AbilityTask
from factsmith.tasks.decoder.text import EncodedPrompt, encode_prompt
from factsmith.tasks.decoder.words import occurrences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from factsmith.tasks.decoder.decoder import Decoder

__all__ = ["SCHEMA", "WAYS", "Way", "first_label"]

SCHEMA = pa.schema(
    [
        ("example", pa.string()),
        ("asked", pa.bool_()),
        ("answer", pa.int32()),
        ("nll", pa.list_(pa.float64())),
        ("text", pa.string()),
    ]
)
"""Digest of the example; whether prompt and answer fit the model; index of the label that the model gives, null if it
gives none; mean NLL per token of each label, in nats (by likelihood); generated text (by generation)."""


class Way(ABC):
    """A way of answering.

    Attributes:
        name: name of the way.
        version: must be raised when the same model and prompts would give other rows.
    """

    name: ClassVar[str]
    version: ClassVar[int]

    @abstractmethod
    def answer(
        self,
        decoder: Decoder,
        task: AbilityTask,
        prompts: Sequence[str],
        *,
        most_tokens: int,
        advance: Callable[[int], None] = lambda done: None,
    ) -> list[dict[str, Any]]:
        """The columns of ``SCHEMA`` after the first, for each of ``prompts``.

        Args:
            decoder: the model, edited or not.
            task: the task.
            prompts: the prompts.
            most_tokens: most positions in one forward pass.
            advance: called with the amount of ``work`` just finished.
        """

    @abstractmethod
    def passes(self, tokenizer: PreTrainedTokenizerFast, task: AbilityTask, prompt: str) -> list[tuple[int, int]]:
        """An upper bound of what an answer feeds the model: positions, and positions where next tokens are scored."""

    def parameters(self, task: AbilityTask) -> dict[str, Any]:
        """Everything but the weights and the prompt that determines an answer."""
        return {**task.parameters, "way": self.name, "version": self.version}

    def work(self, task: AbilityTask) -> int:
        """The amount of work for an answer, for progress bars."""
        return 1


class ByLikelihood(Way):
    """The label whose words have the lowest mean NLL per token. A model that gives NaN answers nothing."""

    name = "likelihood"
    version = 1

    def answer(
        self,
        decoder: Decoder,
        task: AbilityTask,
        prompts: Sequence[str],
        *,
        most_tokens: int,
        advance: Callable[[int], None] = lambda done: None,
    ) -> list[dict[str, Any]]:
        from factsmith.tasks.decoder.likelihood import continuation_likelihoods

        encoded = [_continued(decoder.tokenizer, task, prompt) for prompt in prompts]
        fitting = [place for place, its in enumerate(encoded) if all(one.fits(decoder.context_length) for one in its)]
        advance((len(prompts) - len(fitting)) * self.work(task))
        asked = [one for place in fitting for one in encoded[place]]
        likelihoods = iter(continuation_likelihoods(decoder, asked, most_tokens=most_tokens, advance=advance))
        found: list[dict[str, Any]] = [{"asked": False} for _ in prompts]
        for place in fitting:
            nll = [next(likelihoods).nll for _ in task.labels]
            answer = None if any(map(math.isnan, nll)) else nll.index(min(nll))
            found[place] = {"asked": True, "answer": answer, "nll": nll}
        return found

    def passes(self, tokenizer: PreTrainedTokenizerFast, task: AbilityTask, prompt: str) -> list[tuple[int, int]]:
        encoded = _continued(tokenizer, task, prompt)
        return [(max(len(one.inputs) for one in encoded), sum(one.continued for one in encoded))]

    def work(self, task: AbilityTask) -> int:
        return len(task.labels)


class ByGeneration(Way):
    """The first label in at most ``task.most_generated`` tokens that the model writes greedily."""

    name = "generation"
    version = 1

    def answer(
        self,
        decoder: Decoder,
        task: AbilityTask,
        prompts: Sequence[str],
        *,
        most_tokens: int,
        advance: Callable[[int], None] = lambda done: None,
    ) -> list[dict[str, Any]]:
        from factsmith.tasks.decoder.generation import greedy_answers

        encoded = [encode_prompt(decoder.tokenizer, prompt).tokens for prompt in prompts]
        counts = [task.most_generated] * len(encoded)
        texts = greedy_answers(decoder, encoded, counts, most_tokens=most_tokens, advance=advance)
        return [
            {"asked": False} if text is None else {"asked": True, "answer": first_label(text, task), "text": text}
            for text in texts
        ]

    def passes(self, tokenizer: PreTrainedTokenizerFast, task: AbilityTask, prompt: str) -> list[tuple[int, int]]:
        count = task.most_generated
        return [(len(encode_prompt(tokenizer, prompt).tokens) + count - 1, count)]

    def parameters(self, task: AbilityTask) -> dict[str, Any]:
        generated = {"any_case": task.any_case, "most_generated": task.most_generated}
        return {**super().parameters(task), **generated}


WAYS: dict[str, Way] = {way.name: way for way in (ByLikelihood(), ByGeneration())}
"""The ways of answering, by name."""


def first_label(text: str, task: AbilityTask) -> int | None:
    """The label whose words come first in ``text`` as whole words; ``None`` if it has none of them."""
    fold = str.casefold if task.any_case else str
    places = {label: occurrences(fold(text), fold(words)) for label, words in enumerate(task.labels)}
    found = {label: its[0] for label, its in places.items() if its}
    return min(found, key=found.__getitem__, default=None)


def _continued(tokenizer: PreTrainedTokenizerFast, task: AbilityTask, prompt: str) -> list[EncodedPrompt]:
    """The prompt, continued with the words of each label."""
    return [encode_prompt(tokenizer, prompt, target=words) for words in task.labels]
