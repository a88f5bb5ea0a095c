"""Stage ``locate``: how much each state carries of the facts a model knows, and the layers that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_table, save_json, save_table
from factsmith.artifacts.recipe import Series, digest_of
from factsmith.artifacts.rows import Row, RowSeries, holders
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.decoder.likelihood import continuation_likelihoods
from factsmith.tasks.decoder.text import EncodedPrompt, encode_prompt
from factsmith.tasks.locate.effects import LAST_SUBJECT, SCHEMA, SEVERED, average, probabilities, rows_of
from factsmith.tasks.locate.proposal import critical_layers, mediated
from factsmith.tasks.locate.trace import Traced, trace
from factsmith.tasks.model.stage import ModelName
from factsmith.tasks.pipeline.progress import work
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Bench

__all__ = ["TABLE", "Location", "locate"]

TABLE = "effects.parquet"
"""Rows of ``effects.SCHEMA``."""

_ASKED_AT_ONCE = 256
_TRACED_AT_ONCE = 32


@dataclass(frozen=True)
class Location:
    """Where a model keeps what it knows.

    Attributes:
        artifact: that holds the table of effects.
        effects: average indirect effect by kind and role, a number a layer.
        mediated: by layer, what of a state's effect at the subject's last token goes through the MLPs above.
        layers: to edit; none if no layer stands out.
        clean: mean P(object) of the traced facts.
        corrupted: that under noise.
        facts: that were traced.
        unknown: facts that were looked at and that the model does not know.
    """

    artifact: Artifact
    effects: dict[str, dict[str, list[float]]]
    mediated: list[float]
    layers: list[int]
    clean: float
    corrupted: float
    facts: int
    unknown: int


@stage("locate")
def locate(bench: Bench, model: ModelName) -> Outcome[Location]:
    """Trace the first facts of the dataset that the model knows: every token of ``target_true`` is its first choice.

    Raises:
        InputError: no record has a true object, or the model knows none of them.
    """
    facts = {digest_of(fact): fact for fact in _facts(bench)}
    known, looked_at, asked = _known(bench, model, facts)
    settings = bench.settings.trace
    series = Series(
        "effects",
        1,
        {
            **settings.model_dump(exclude={"facts", "window"}),
            "window": settings.window_of(bench.checkpoint.block_count),
            **model.parameters,
        },
        model.inputs,
    )
    blocks = bench.checkpoint.block_count
    with work("locate", blocks * len(known)) as advance:

        def build(draft: Draft, digests: list[str]) -> None:
            traced = [_encode(bench, facts[digest]) for digest in digests]
            effects = trace(
                bench.decoder,
                traced,
                settings,
                most_tokens=bench.settings.runtime.tokens_per_pass,
                advance=advance,
            )
            rows = [
                row
                for digest, fact, found in zip(digests, traced, effects, strict=True)
                for row in rows_of(digest, fact, found)
            ]
            save_table(draft.path / TABLE, pa.Table.from_pylist(rows, schema=SCHEMA))
            draft.summary = {"facts": len(digests), "rows": len(rows)}
            draft.made = bench.made

        rows, built = RowSeries(bench.store, series).get_or_build(known, build, at_once=_TRACED_AT_ONCE)
    artifact, summed_up = _sum_up(bench, series, known, rows)
    summary = artifact.summary
    location = Location(
        artifact,
        summary["effects"],
        summary["mediated"],
        summary["layers"],
        summary["clean"],
        summary["corrupted"],
        len(known),
        looked_at - len(known),
    )
    return Outcome(
        location,
        artifact.address,
        asked + built > 0 or summed_up,
        {"facts": location.facts, "facts_unknown": location.unknown, "facts_traced": built},
        {"layers": str(location.layers)},
    )


def _facts(bench: Bench) -> list[dict[str, str]]:
    requests = [record.request for record in bench.true_records]
    return [
        {"subject": request.subject, "template": request.template, "object": request.target_true}
        for request in requests
        if request.target_true is not None
    ]


def _known(bench: Bench, model: ModelName, facts: dict[str, dict[str, str]]) -> tuple[list[str], int, int]:
    """The first facts that the model knows, how many were looked at to find them, and how many it had to be asked."""
    series = RowSeries(bench.store, Series("recall", 1, model.parameters, model.inputs))
    everything = list(facts)
    known: list[str] = []
    looked_at = asked = 0

    def build(draft: Draft, digests: list[str]) -> None:
        prompts = [_encoded(bench, facts[digest]) for digest in digests]
        found = continuation_likelihoods(bench.decoder, prompts, most_tokens=bench.settings.runtime.tokens_per_pass)
        rows = [
            {**facts[digest], "fact": digest, "nll": one.nll, "tokens": one.tokens, "correct": one.correct}
            for digest, one in zip(digests, found, strict=True)
        ]
        save_table(draft.path / "recall.parquet", pa.Table.from_pylist(rows))
        draft.summary = {"facts": len(digests), "known": sum(one.exact for one in found)}
        draft.made = bench.made

    for first in range(0, len(everything), _ASKED_AT_ONCE):
        group = everything[first : first + _ASKED_AT_ONCE]
        rows, built = series.get_or_build(group, build, at_once=_ASKED_AT_ONCE)
        asked += built
        answers = {row["fact"]: row for table in _tables(rows, group, "recall.parquet") for row in table.to_pylist()}
        for digest in group:
            looked_at += 1
            if answers[digest]["correct"] == answers[digest]["tokens"]:
                known.append(digest)
            if len(known) == bench.settings.trace.facts:
                return known, looked_at, asked
    if not known:
        raise InputError(
            f"Model {bench.settings.model.name} knows none of the {looked_at} facts of "
            f"dataset={bench.settings.dataset.name}.",
            expected="a fact whose target_true is what the model says after the prompt",
            remedy="give facts that it knows, or raise dataset.limit",
        )
    return known, looked_at, asked


def _sum_up(bench: Bench, series: Series, known: list[str], rows: dict[str, Row]) -> tuple[Artifact, bool]:
    def build(draft: Draft) -> None:
        draft.read_from(*holders(rows[digest] for digest in known))
        everything = pa.concat_tables(_tables(rows, known, TABLE))
        # What else an artifact holds, and in which order, depends on who asked first.
        table = pa.concat_tables([everything.filter(pc.equal(everything["fact"], digest)) for digest in known])
        save_table(draft.path / TABLE, table)
        effects = average(table)
        gap = mediated(effects["hidden"][LAST_SUBJECT], effects[SEVERED][LAST_SUBJECT])
        clean, corrupted = probabilities(table)
        draft.summary = {
            "facts": len(known),
            "clean": clean,
            "corrupted": corrupted,
            "effects": effects,
            "mediated": gap,
            "layers": critical_layers(gap),
        }
        save_json(draft.path / "summary.json", draft.summary)

    location = Series("location", 1, {}, {"effects": series.digest})
    return bench.store.get_or_build(location.member(facts=known), build)


def _tables(rows: dict[str, Row], digests: Sequence[str], name: str) -> list[pa.Table]:
    return [load_table(artifact.path / name) for artifact in holders(rows[digest] for digest in digests)]


def _encoded(bench: Bench, fact: dict[str, str]) -> EncodedPrompt:
    return encode_prompt(bench.tokenizer, fact["template"], fact["subject"], fact["object"])


def _encode(bench: Bench, fact: dict[str, str]) -> Traced:
    prompt = _encoded(bench, fact)
    return Traced(prompt.tokens[: len(prompt.tokens) - prompt.continued], prompt.first, prompt.lookup, prompt.labels[0])
