"""CounterFact's metrics, from the likelihoods of both objects after each prompt.

Lower NLL is likelier. ES, PS: share of rewrite and paraphrase prompts where the new object is likelier than the true
one; NS: share of neighbourhood prompts where the true one still is; S: their harmonic mean. EM, PM, NM: the matching
difference of geometric-mean token probabilities. Eff*, Gen*, Spe*: share of prompts where every token of the wanted
object is the first choice. Means are taken within a record, then over records.  [Meng et al. 2022a, section 3.4;
Meng et al. 2022b, section 5.2.2; the starred ones as in Fang et al. 2025]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerFast

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.likelihood import continuation_likelihoods
from factsmith.tasks.decoder.text import EncodedPrompt, encode_prompt
from factsmith.tasks.evaluation.family import ASKED, Asked, MetricFamily, Passes, mean_by_record
from factsmith.tasks.facts.record import Record

__all__ = ["FAMILY"]

_METRICS_OF = {
    "rewrite": ("ES", "EM", "Eff*"),
    "paraphrase": ("PS", "PM", "Gen*"),
    "neighborhood": ("NS", "NM", "Spe*"),
}


class CounterFact(MetricFamily):
    """ES, PS, NS and what goes with them. A record without a true object leaves its columns null."""

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
        "ES": "efficacy: the new object beats the true one",
        "PS": "paraphrase: so it does in other words",
        "NS": "neighbourhood: other subjects keep theirs",
        "S": "score: harmonic mean of the three",
        "EM": "by how much, rewrite prompts",
        "PM": "by how much, paraphrases",
        "NM": "by how much, neighbours",
        "Eff*": "the new object is the model's first choice",
        "Gen*": "so it is in other words",
        "Spe*": "neighbours: the true object is",
    }
    mean = ("S", ("ES", "PS", "NS"))

    def score(
        self,
        decoder: Decoder,
        records: Sequence[Record],
        *,
        most_tokens: int,
        advance: Callable[[int], None] = lambda done: None,
    ) -> pa.Table:
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
                f"{what}_{target}": value
                for target, place in zip(("new", "true"), pair, strict=True)
                if place is not None
                for what, value in found[place].columns.items()
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
    """The prompt with each of the two objects behind it."""
    targets = (asked.record.request.target_new, asked.record.request.target_true)
    return [None if one is None else encode_prompt(tokenizer, asked.prompt, target=one) for one in targets]


def _probability(rows: pa.Table, target: str) -> pa.ChunkedArray:
    return pc.exp(pc.negate(rows[f"nll_{target}"]))


FAMILY = CounterFact()
