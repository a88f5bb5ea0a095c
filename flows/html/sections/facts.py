"""The facts that were written: whether each holds, and what the model answered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from factsmith.artifacts.formats import load_table
from factsmith.flows.html.blocks import Block, Fact, FactTable, Section, Text
from factsmith.tasks.evaluation.answers_stage import Answer
from factsmith.tasks.evaluation.family import MetricFamily
from factsmith.tasks.evaluation.stage import Scores, prompt_table
from factsmith.tasks.facts.batches import FactBatches
from factsmith.tasks.facts.record import Record
from factsmith.tasks.tracking.runs import ANSWERS, RECORDS

__all__ = ["facts"]

_MOST_FACTS = 2_000
"""Most facts of a report. A browser stays quick with so many rows."""

_MOST_CHARACTERS = 1_000_000
"""Most characters of texts besides the answers, for all facts together."""

_LONGEST = 300
"""Most characters of one text."""

_EXACT = 1 - 1e-9
"""A mean over prompts that is at least this is 1."""

_WRITTEN = ("rewrite", "question")
"""Kinds of prompts whose answers are shown first: the prompt that was written, and the fact's question in a chat."""

Values = Mapping[str, Mapping[str, tuple[float | None, float | None]]]
"""Each metric of a fact before and after the edit, by the fact's digest and the metric."""


@dataclass(frozen=True)
class _Texts:
    """The texts of one metric family, by the digest that the family gives a record."""

    family: MetricFamily
    by_record: Mapping[str, Sequence[Text]]

    def of(self, record: Record) -> Sequence[Text]:
        return self.by_record.get(record.digest(self.family.kinds), ())


def facts(
    batches: FactBatches,
    families: Sequence[MetricFamily],
    scores: Scores | None = None,
    answers: Sequence[Answer] = (),
) -> Section:
    """The facts of a run.

    Args:
        batches: the facts.
        families: the metric families that scored them.
        scores: their scores, if they were scored.
        answers: the model's answers, in the order of the facts, if it was asked.
    """
    records = batches.records
    values = _values(load_table(scores.artifact.path / RECORDS)) if scores else {}
    judged = [_judged(record, values, families) for record in records] if scores else []
    holds = [held for _, held in judged] if scores else [one.holds for one in answers]
    judging = list(dict.fromkeys(name for name, _ in judged if name))
    chosen = _chosen(holds or [None] * len(records))
    generated = [_texts(family, scores) for family in families] if scores else []
    metrics = _metrics(families, values)
    numbers = {id(record): number for number, batch in enumerate(batches.batches, start=1) for record in batch}
    room = _MOST_CHARACTERS
    found, cut = [], False
    for place in chosen:
        record = records[place]
        request, mine = record.request, values.get(record.fact, {})
        texts = _asked(answers[place]) if answers else [text for family in generated for text in family.of(record)]
        answer = next((one for kind in _WRITTEN for one in texts if one.kind == kind), None)
        others = [one for one in texts if one is not answer]
        length = sum(len(one.prompt) + len(one.before or "") + len(one.after or "") for one in others)
        if length > room:
            others, cut = [], True
        else:
            room -= length
        found.append(
            Fact(
                place=place + 1,
                batch=numbers[id(record)],
                subject=request.subject,
                prompt=request.prompt,
                old=request.target_true or "",
                new=request.target_new,
                holds=holds[place] if holds else None,
                answer=answer,
                values=[mine.get(name, (None, None)) for name in metrics],
                texts=others,
            )
        )
    table = FactTable(
        found,
        list(metrics.items()),
        batches=len(batches.batches),
        answers=any(one.answer for one in found),
        judged=any(one is not None for one in holds),
    )
    return Section("Facts", [*_about(table, records, holds, bool(answers), judging, cut, generated), table])


def _about(
    table: FactTable,
    records: Sequence[Record],
    holds: Sequence[bool | None],
    asked: bool,
    judging: Sequence[str],
    cut: bool,
    texts: Sequence[_Texts],
) -> Iterator[Block]:
    """What the table shows, and what it leaves out."""
    if asked:
        yield "A fact holds if the edited model's greedy answer starts with the new object."
    elif table.judged:
        yield f"A fact holds if its {' or '.join(judging)} is 100. Numbers are percent after the edit."
    if len(table.facts) < len(records):
        failed = sum(one is False for one in holds)
        shown = sum(one.holds is False for one in table.facts)
        whole = ANSWERS if asked else RECORDS
        yield (
            f"{len(table.facts):,} of {len(records):,} facts are shown: {shown:,} of the {failed:,} that do not hold, "
            f"and the first {len(table.facts) - shown:,} others. In MLflow, {whole} has all of them."
        )
    if cut:
        names = " and ".join(prompt_table(one.family.name) for one in texts if one.by_record)
        yield f"Some texts are left out. In MLflow, {names} has all of them."


def _chosen(holds: Sequence[bool | None]) -> list[int]:
    """The places of the facts to show, ascending: those that do not hold come before others."""
    failed = [place for place, one in enumerate(holds) if one is False][:_MOST_FACTS]
    others = [place for place, one in enumerate(holds) if one is not False]
    return sorted([*failed, *others[: _MOST_FACTS - len(failed)]])


def _values(table: pa.Table) -> Values:
    """The metrics of each fact, in percent."""
    found: dict[str, dict[str, tuple[float | None, float | None]]] = defaultdict(dict)
    columns = (table[name].to_pylist() for name in ("phase", "record", "metric", "value"))
    for phase, record, metric, value in zip(*columns, strict=True):
        before, after = found[record].get(metric, (None, None))
        found[record][metric] = (before, 100 * value) if phase == "after" else (100 * value, after)
    return found


def _judged(record: Record, values: Values, families: Sequence[MetricFamily]) -> tuple[str, bool | None]:
    """The metric that says whether a fact holds, the first that it has, and whether it does."""
    mine = values.get(record.fact, {})
    for name in (name for family in families for name in family.efficacy):
        if name in mine and (after := mine[name][1]) is not None:
            return name, after >= 100 * _EXACT
    return "", None


def _metrics(families: Sequence[MetricFamily], values: Values) -> dict[str, str]:
    """The metrics to show of each fact, with their descriptions: those that a harmonic mean combines, or else all."""
    known = {name for one in values.values() for name in one}
    found: dict[str, str] = {}
    for family in families:
        parts = [name for name in (family.mean[1] if family.mean else ()) if name in known]
        found |= {name: family.metrics[name] for name in parts or family.metrics if name in known}
    return found


def _texts(family: MetricFamily, scores: Scores) -> _Texts:
    """What the models wrote, from the rows of a metric family."""
    if family.text is None:
        return _Texts(family, {})
    table = load_table(scores.artifact.path / prompt_table(family.name))
    judged = ["correct"] if "correct" in table.column_names else []
    rows = table.select(["phase", "record", "kind", "index", "prompt", family.text, *judged]).to_pylist()
    before = {_place(row): row[family.text] for row in rows if row["phase"] == "before"}
    found: dict[str, list[Text]] = defaultdict(list)
    for row in rows:
        if row["phase"] == "after":
            text = _text(row["kind"], row["prompt"], before.get(_place(row)), row[family.text], row.get("correct"))
            found[row["record"]].append(text)
    return _Texts(family, found)


def _place(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["record"], row["kind"], row["index"]


def _clipped(text: str | None, prompt: str) -> str | None:
    """What a model wrote after the prompt, on one line."""
    if text is None:
        return None
    line = " ".join(text.removeprefix(prompt).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"


def _text(kind: str, prompt: str, before: str | None, after: str | None, right: bool | None) -> Text:
    return Text(kind, prompt, _clipped(before, prompt), _clipped(after, prompt), right)


def _asked(answer: Answer) -> list[Text]:
    """The answers to the prompt, and to the question in a chat if there is one."""
    found = [_text("rewrite", answer.prompt, answer.before, answer.after, answer.holds)]
    if chat := answer.chat:
        found.append(_text("question", chat.question, chat.before, chat.after, chat.holds))
    return found
