"""CounterFact's metrics, from the likelihoods of both objects after each prompt.

Lower NLL is likelier. ES, PS: share of rewrite and paraphrase prompts where the new object is likelier than the true
one; NS: share of neighbourhood prompts where the true one still is; S: their harmonic mean. EM, PM, NM: the matching
difference of geometric-mean token probabilities. Eff*, Gen*, Spe*: share of prompts where every token of the wanted
object is the first choice. Means are taken within a record, then over records.  [Meng et al. 2022a, section 3.4;
Meng et al. 2022b, section 5.2.2; the starred ones as in Fang et al. 2025]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from factsmith.tasks.metrics.likelihood import continuation_likelihoods
from factsmith.tasks.models.decoder import Decoder
from factsmith.tasks.models.text import EncodedPrompt, encode_prompt
from factsmith.tasks.records.record import Record

__all__ = ["METRICS", "NAME", "SCHEMA", "VERSION", "score", "skipped", "summarise"]

NAME = "counterfact"
VERSION = 1

SCHEMA = pa.schema(
    [
        ("record", pa.string()),
        ("case_id", pa.int64()),
        ("kind", pa.string()),
        ("index", pa.int32()),
        ("prompt", pa.string()),
        ("nll_new", pa.float64()),
        ("tokens_new", pa.int32()),
        ("correct_new", pa.int32()),
        ("nll_true", pa.float64()),
        ("tokens_true", pa.int32()),
        ("correct_true", pa.int32()),
    ]
)
"""One row a (record, kind of prompt, prompt). A record without a true object leaves its columns null; a prompt that
does not fit the model leaves those of both objects null, and counts in no metric."""

METRICS = ("ES", "PS", "NS", "S", "EM", "PM", "NM", "Eff*", "Gen*", "Spe*")

_KINDS = {"rewrite": ("ES", "EM", "Eff*"), "paraphrase": ("PS", "PM", "Gen*"), "neighborhood": ("NS", "NM", "Spe*")}


def score(
    decoder: Decoder,
    records: Sequence[Record],
    *,
    most_tokens: int,
    advance: Callable[[int], None] = lambda prompts: None,
) -> pa.Table:
    """Rows of ``SCHEMA`` for every prompt of ``records``, in their order.

    Args:
        decoder: the model, edited or not.
        records: with their prompts.
        most_tokens: positions in one forward pass, at most.
        advance: told how many more (prompt, object) pairs are done.
    """
    asked = [
        (record, kind, index, prompt)
        for record in records
        for kind, prompts in record.prompts.items()
        for index, prompt in enumerate(prompts)
    ]
    encoded: list[EncodedPrompt] = []
    places: list[list[int | None]] = []
    for record, _, _, prompt in asked:
        targets = (record.request.target_new, record.request.target_true)
        continued = [encode_prompt(decoder.tokenizer, prompt, target=one) for one in targets if one is not None]
        fits = all(_fits(one, decoder.context_length) for one in continued)
        places.append([len(encoded) + i if one is not None and fits else None for i, one in enumerate(targets)])
        if fits:
            encoded += continued
        else:
            advance(len(continued))
    found = continuation_likelihoods(decoder, encoded, most_tokens=most_tokens, advance=advance)
    rows = []
    for (record, kind, index, prompt), pair in zip(asked, places, strict=True):
        row = {
            "record": record.digest,
            "case_id": record.request.case_id,
            "kind": kind,
            "index": index,
            "prompt": prompt,
        }
        for name, place in zip(("new", "true"), pair, strict=True):
            if place is not None:
                likelihood = found[place]
                row |= {
                    f"nll_{name}": likelihood.nll,
                    f"tokens_{name}": likelihood.tokens,
                    f"correct_{name}": likelihood.correct,
                }
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _fits(prompt: EncodedPrompt, context_length: int) -> bool:
    """Whether the model can be fed all of a prompt, and both it and its continuation have tokens."""
    return 0 < prompt.continued <= len(prompt.inputs) <= context_length


def skipped(rows: pa.Table) -> int:
    """How many prompts were not scored, because they do not fit the model."""
    return int(rows["nll_new"].null_count)


def summarise(rows: pa.Table) -> dict[str, float | None]:
    """Metrics in percent; ``None`` for one that no row can tell."""
    summary: dict[str, float | None] = dict.fromkeys(METRICS)
    for kind, names in _KINDS.items():
        of_kind = rows.filter(pc.equal(rows["kind"], kind))
        wanted, other = ("true", "new") if kind == "neighborhood" else ("new", "true")
        likelier = pc.less(of_kind[f"nll_{wanted}"], of_kind[f"nll_{other}"])
        margin = pc.subtract(_probability(of_kind, wanted), _probability(of_kind, other))
        exact = pc.equal(of_kind[f"correct_{wanted}"], of_kind[f"tokens_{wanted}"])
        for name, column in zip(names, (likelier, margin, exact), strict=True):
            summary[name] = _mean_over_records(of_kind["record"], column)
    parts = [summary[name] for name in ("ES", "PS", "NS")]
    known = [part for part in parts if part is not None]
    if len(known) == len(parts):
        summary["S"] = len(known) / sum(1 / part for part in known) if all(known) else 0.0
    return summary


def _probability(rows: pa.Table, target: str) -> pa.ChunkedArray:
    return pc.exp(pc.negate(rows[f"nll_{target}"]))


def _mean_over_records(records: pa.ChunkedArray, column: pa.ChunkedArray) -> float | None:
    table = pa.table({"record": records, "value": pc.cast(column, pa.float64())}).drop_null()
    if not len(table):
        return None
    within = table.group_by("record", use_threads=False).aggregate([("value", "mean")])
    return 100 * float(pc.mean(within["value_mean"]).as_py())
