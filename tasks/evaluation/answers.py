"""Questions with answers, and how many of an answer's tokens a model gives under teacher forcing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from factsmith.tasks.decoder.text import EncodedPrompt, encode_prompt
from factsmith.tasks.evaluation.family import ASKED, Asked, MetricFamily, Passes, mean_by_kind
from factsmith.tasks.facts.record import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from factsmith.tasks.decoder.decoder import Decoder

__all__ = ["SCHEMA", "AnswerAccuracy"]

SCHEMA = pa.schema(
    [*ASKED, ("nll", pa.float64()), ("tokens", pa.int32()), ("correct", pa.int32()), ("answer", pa.string())]
)
"""Mean NLL per token of the answer, number of its tokens, number of those that are the model's first choice, and the
answer. If prompt and answer do not fit the model, the other three are null."""


class AnswerAccuracy(MetricFamily):
    """Metrics that are the share of an answer's tokens that are the model's first choice, one for each kind of prompt.

    Prompts whose answer is not known are not asked.

    Attributes:
        metric_of: metric of each kind of prompt.
    """

    schema = SCHEMA
    metric_of: ClassVar[Mapping[str, str]]

    def asked(self, records: Sequence[Record]) -> list[Asked]:
        return [one for one in super().asked(records) if one.answer]

    def score(
        self,
        decoder: Decoder,
        records: Sequence[Record],
        *,
        most_tokens: int,
        advance: Callable[[int], None] = lambda done: None,
    ) -> pa.Table:
        from factsmith.tasks.decoder.likelihood import continuation_likelihoods

        asked = self.asked(records)
        prompts = _continued(decoder.tokenizer, asked)
        fitting = [place for place, prompt in enumerate(prompts) if prompt.fits(decoder.context_length)]
        advance(len(asked) - len(fitting))
        found = continuation_likelihoods(
            decoder, [prompts[place] for place in fitting], most_tokens=most_tokens, advance=advance
        )
        measured: list[dict[str, Any]] = [{"answer": one.answer} for one in asked]
        for place, likelihood in zip(fitting, found, strict=True):
            measured[place] |= likelihood.columns
        return self.table(asked, measured)

    def by_record(self, rows: pa.Table) -> pa.Table:
        return mean_by_kind(
            rows, self.metric_of, lambda asked: pc.divide(pc.cast(asked["correct"], pa.float64()), asked["tokens"])
        )

    def passes(self, tokenizer: PreTrainedTokenizerFast, record: Record) -> Passes:
        return [(len(prompt.inputs), prompt.continued) for prompt in _continued(tokenizer, self.asked([record]))]


def _continued(tokenizer: PreTrainedTokenizerFast, asked: Sequence[Asked]) -> list[EncodedPrompt]:
    """Each prompt, continued with its answer."""
    return [
        encode_prompt(tokenizer, one.prompt, target=one.answer, separator=one.record.request.separator) for one in asked
    ]
