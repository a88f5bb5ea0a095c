"""CounterFact's metrics, from the likelihoods of both objects after each prompt.

An object is likelier than another if its mean NLL per token is lower. ES and PS are the share of rewrite and paraphrase
prompts where the new object is likelier than the true one. NS is the share of neighbourhood prompts where the true
object is still the likelier one. S is the harmonic mean of the three. EM, PM and NM are the corresponding differences
of geometric-mean token probabilities. Eff*, Gen* and Spe* are the share of prompts where every token of the wanted
object is the model's first choice. Means are taken within a record, then over records.  [Meng et al. 2022a, section
3.4; Meng et al. 2022b, section 5.2.2; the starred metrics as in Fang et al. 2025]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from factsmith.tasks.decoder.text import EncodedPrompt, encode_prompt
from factsmith.tasks.evaluation.family import ASKED, Asked, MetricFamily, Passes, mean_by_record
from factsmith.tasks.facts.record import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from factsmith.tasks.decoder.decoder import Decoder

__all__ = ["FAMILY"]

_METRICS_OF = {
    "rewrite": ("ES", "EM", "Eff*"),
    "paraphrase": ("PS", "PM", "Gen*"),
    "neighborhood": ("NS", "NM", "Spe*"),
}


class CounterFact(MetricFamily):
    """ES, PS, NS and the related metrics. If a record has no true object, the columns of the true object are null."""

    name = "counterfact"
    version = 1
    kinds = ("rewrite", "paraphrase", "neighborhood")
    schema = pa.schema(
        [
            *ASKED,
            ("nll_new", pa.float64()),
            ("tokens_new", pa.int32()),
            ("correct_new", pa.int32()),
            ("nll_true", pa.float64()),
            ("tokens_true", pa.int32()),
            ("correct_true", pa.int32()),
        ]
    )
    metrics: ClassVar[Mapping[str, str]] = {
        "ES": "efficacy: new object likelier than true object",
        "PS": "paraphrase: new object likelier than true object",
        "NS": "neighbourhood: true object likelier than new object",
        "S": "score: harmonic mean of ES, PS and NS",
        "EM": "efficacy magnitude: P(new) - P(true)",
        "PM": "paraphrase magnitude: P(new) - P(true)",
        "NM": "neighbourhood magnitude: P(true) - P(new)",
        "Eff*": "efficacy: new object is the first choice",
        "Gen*": "paraphrase: new object is the first choice",
        "Spe*": "neighbourhood: true object is the first choice",
    }
    mean = ("S", ("ES", "PS", "NS"))
    efficacy = ("ES", "Eff*")

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
        encoded: list[EncodedPrompt] = []
        places: list[list[int | None]] = []
        for one in asked:
            continued = _continued(decoder.tokenizer, one)
            pair: list[int | None] = [None] * len(continued)
            if all(prompt.fits(decoder.context_length) for prompt in continued if prompt):
                for side, prompt in enumerate(continued):
                    if prompt:
                        pair[side] = len(encoded)
                        encoded.append(prompt)
            else:
                advance(self.work(one.record, 1))
            places.append(pair)
        found = continuation_likelihoods(decoder, encoded, most_tokens=most_tokens, advance=advance)
        measured = [
            {
                f"{column}_{target}": value
                for target, place in zip(("new", "true"), pair, strict=True)
                if place is not None
                for column, value in found[place].columns.items()
            }
            for pair in places
        ]
        return self.table(asked, measured)

    def work(self, record: Record, prompts: int) -> int:
        return prompts * (1 if record.request.target_true is None else 2)

    def by_record(self, rows: pa.Table) -> pa.Table:
        tables: list[pa.Table] = []
        for kind, names in _METRICS_OF.items():
            of_kind = rows.filter(pc.equal(rows["kind"], kind))
            wanted, other = ("true", "new") if kind == "neighborhood" else ("new", "true")
            columns = (
                pc.less(of_kind[f"nll_{wanted}"], of_kind[f"nll_{other}"]),
                pc.subtract(_probability(of_kind, wanted), _probability(of_kind, other)),
                pc.equal(of_kind[f"correct_{wanted}"], of_kind[f"tokens_{wanted}"]),
            )
            tables += mean_by_record(of_kind, dict(zip(names, columns, strict=True)))
        return pa.concat_tables(tables)

    def passes(self, tokenizer: PreTrainedTokenizerFast, record: Record) -> Passes:
        continued = [prompt for one in self.asked([record]) for prompt in _continued(tokenizer, one) if prompt]
        return [(len(prompt.inputs), prompt.continued) for prompt in continued]


def _continued(tokenizer: PreTrainedTokenizerFast, asked: Asked) -> list[EncodedPrompt | None]:
    """The prompt continued with the new and with the true object; ``None`` if the true object is not known.

    The true object of a neighbourhood prompt with an answer of its own is that answer.
    """
    request = asked.record.request
    true = asked.answer if asked.kind == "neighborhood" and request.target_true is not None else request.target_true
    return [
        None if one is None else encode_prompt(tokenizer, asked.prompt, target=one, separator=request.separator)
        for one in (request.target_new, true)
    ]


def _probability(rows: pa.Table, target: str) -> pa.ChunkedArray:
    return pc.exp(pc.negate(rows[f"nll_{target}"]))


FAMILY = CounterFact()
