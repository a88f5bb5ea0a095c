"""GE, the fluency of generated text: how little its words repeat.

Each text is a ``generation`` prompt and its continuation, at most 100 tokens together. Every token is drawn among the 5
likeliest. With H_n the entropy in bits of the n-grams of its words, GE is the mean over texts of
(2/3 H_2 + 4/3 H_3) / 2. It is shown times 100, as in most tables.  [Meng et al. 2022a, section 3.4, after Zhang et al.
2018]

As in the public code, the prompt counts as part of the text, and a text continues after an end token, because a short
text has a small entropy only because it is short. Unlike in the public code, draws are seeded. A prompt that occurs
several times in a record is continued only once, and counts as often as it is asked.

Words are runs of letters and digits, with the apostrophes inside them. Every other mark is a separate word. The public
code uses NLTK's ``word_tokenize``, which needs a download. It also splits ``don't`` into ``do`` and ``n't``, and keeps
``well-known``, ``3.14`` and ``U.S.`` whole, so values differ a little from published ones.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.evaluation.family import ASKED, MetricFamily, Passes, mean_by_record
from factsmith.tasks.facts.record import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from factsmith.tasks.decoder.decoder import Decoder

__all__ = ["FAMILY", "entropy", "words"]

_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")

_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Weights of the entropies of the n-grams, by n."""


def words(text: str) -> list[str]:
    """The words and punctuation marks of ``text``, after Unicode NFC normalisation."""
    return _WORD.findall(unicodedata.normalize("NFC", text))


def entropy(parts: Sequence[str], n: int) -> float:
    """Entropy in bits of the ``n``-grams of ``parts``; 0 if there are none."""
    counts = Counter(zip(*(parts[first:] for first in range(n)), strict=False))
    total = counts.total()
    return math.fsum(count / total * math.log2(total / count) for count in counts.values())


class Generation(MetricFamily):
    """GE. A prompt that leaves no room for a generated token is not scored."""

    name = "generation"
    version = 1
    kinds = ("generation",)
    parameters: ClassVar[Mapping[str, Any]] = {"seed": 0, "top_k": 5, "length": 100}
    text = "text"
    schema = pa.schema([*ASKED, ("text", pa.string()), *((f"bits_{n}", pa.float64()) for n in _WEIGHTS)])
    metrics: ClassVar[Mapping[str, str]] = {"GE": "fluency: entropy of generated text, 100 x bits"}

    def score(
        self,
        decoder: Decoder,
        records: Sequence[Record],
        *,
        most_tokens: int,
        advance: Callable[[int], None] = lambda done: None,
    ) -> pa.Table:
        from factsmith.tasks.decoder.generation import TopK, continuations

        asked = self.asked(records)
        prompts = {one.prompt: encode_prompt(decoder.tokenizer, one.prompt).tokens for one in asked}
        advance(len(asked) - len(prompts))
        continued = continuations(
            decoder,
            list(prompts.values()),
            [self.parameters["length"]] * len(prompts),
            most_tokens=most_tokens,
            top_k=TopK(self.parameters["top_k"], self.parameters["seed"]),
            advance=advance,
        )
        measured: dict[str, dict[str, Any]] = {}
        for (prompt, tokens), generated in zip(prompts.items(), continued, strict=True):
            text = str(
                decoder.tokenizer.decode(
                    [*tokens, *generated], skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            )
            bits = {f"bits_{n}": entropy(words(text), n) for n in _WEIGHTS}
            measured[prompt] = {"text": text, **bits} if generated else {}
        return self.table(asked, [measured[one.prompt] for one in asked])

    def by_record(self, rows: pa.Table) -> pa.Table:
        weighted = [pc.multiply(rows[f"bits_{n}"], weight / len(_WEIGHTS)) for n, weight in _WEIGHTS.items()]
        return pa.concat_tables(mean_by_record(rows, {"GE": pc.add(*weighted)}))

    def passes(self, tokenizer: PreTrainedTokenizerFast, record: Record) -> Passes:
        length = self.parameters["length"]
        prompts = {one.prompt for one in self.asked([record])}
        room = [length - len(encode_prompt(tokenizer, prompt).tokens) for prompt in prompts]
        return [(length - 1, count) for count in room if count > 0]


FAMILY = Generation()
