"""Stage ``locate``: how strongly each state carries the facts that a model knows, and the layers to edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_table, save_json, save_table
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.rows import Row, RowSeries, holders
from factsmith.artifacts.store import Store
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.locate.effects import LAST_SUBJECT, SCHEMA, SEVERED, average, probabilities, rows_of
from factsmith.tasks.locate.proposal import critical_layers, mediated
from factsmith.tasks.locate.recall_stage import digest, encoded, recall, with_true_object
from factsmith.tasks.locate.runs import Traced
from factsmith.tasks.locate.settings import TraceSettings
from factsmith.tasks.locate.trace import trace
from factsmith.tasks.model.model import Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["TABLE", "Location", "locate"]

TABLE = "effects.parquet"
"""The file with rows of ``effects.SCHEMA``."""

_FACTS_PER_TRACE = 32


@dataclass(frozen=True)
class Location:
    """Where a model keeps the facts that it knows.

    Attributes:
        artifact: holds the table of effects.
        effects: average indirect effect by kind and role, one number per layer.
        mediated: by layer, the part of a state's effect at the subject's last token that the MLPs above mediate.
        layers: the layers to edit; empty if no layer stands out.
        clean: mean P(object) of the traced facts.
        corrupted: mean P(object) with noise on the subject.
        facts: number of facts that were traced.
        unknown: number of facts that were tried and that the model does not know.
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
def locate(
    workspace: Workspace, model: Model, records: Sequence[Record], settings: TraceSettings, dataset: str
) -> Outcome[Location]:
    """Trace the first facts that the model knows, those whose ``target_true`` is its first choice at every token.

    Args:
        workspace: the run's workspace.
        model: the model.
        records: records with a true object.
        settings: the settings of the trace.
        dataset: name of the dataset, for messages.

    Raises:
        InputError: the model knows none of the facts.
    """
    facts = {digest(fact): fact for fact in (with_true_object(record.request) for record in records)}
    known, tried, recalled = _known(workspace, model, facts, settings.facts, dataset)
    fingerprint = model.fingerprint
    series = Series(
        "effects",
        1,
        {
            **settings.model_dump(exclude={"facts", "window"}),
            "window": settings.window_of(model.block_count),
            **fingerprint.parameters,
        },
        fingerprint.inputs,
    )
    with progress("locate", model.block_count * len(known)) as advance:

        def build(draft: Draft, digests: list[str]) -> None:
            traced = [_traced(model, facts[digest]) for digest in digests]
            effects = trace(
                model.decoder,
                traced,
                settings,
                most_tokens=model.limits.most_tokens,
                advance=advance,
            )
            rows = [
                row
                for digest, fact, found in zip(digests, traced, effects, strict=True)
                for row in rows_of(digest, fact, found)
            ]
            save_table(draft.path / TABLE, pa.Table.from_pylist(rows, schema=SCHEMA))
            draft.summary = {"facts": len(digests), "rows": len(rows)}
            draft.made = {**workspace.made, **model.made}

        rows, built = RowSeries(workspace.store, series).get_or_build(known, build, at_once=_FACTS_PER_TRACE)
    artifact, summarised = _summarise(workspace.store, series, known, rows)
    summary = artifact.summary
    location = Location(
        artifact,
        summary["effects"],
        summary["mediated"],
        summary["layers"],
        summary["clean"],
        summary["corrupted"],
        len(known),
        tried - len(known),
    )
    return Outcome(
        location,
        artifact.address,
        recalled + built > 0 or summarised,
        {"facts": location.facts, "facts_unknown": location.unknown, "facts_traced": built},
        {"layers": str(location.layers)},
    )


def _known(
    workspace: Workspace, model: Model, facts: dict[str, EditRequest], wanted: int, dataset: str
) -> tuple[list[str], int, int]:
    """The first ``wanted`` facts that the model knows, how many were tried, and how many had to be run."""
    found: list[str] = []
    tried = run = 0
    for part, built in recall(workspace, model, facts):
        run += built
        for fact, likelihood in part.items():
            tried += 1
            if likelihood.exact:
                found.append(fact)
            if len(found) == wanted:
                return found, tried, run
    if not found:
        raise InputError(
            f"Model {model.name} knows none of the {tried} facts of dataset={dataset}.",
            expected="a fact whose target_true the model gives after the prompt",
            remedy="use facts that it knows, or raise dataset.limit",
        )
    return found, tried, run


def _summarise(store: Store, series: Series, known: list[str], rows: dict[str, Row]) -> tuple[Artifact, bool]:
    def build(draft: Draft) -> None:
        draft.read_from(*holders(rows[digest] for digest in known))
        tables = [load_table(one.path / TABLE) for one in holders(rows[digest] for digest in known)]
        everything = pa.concat_tables(tables)
        # An artifact may hold other facts too, in an order that depends on the run that asked first.
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
    return store.get_or_build(location.member(facts=known), build)


def _traced(model: Model, fact: EditRequest) -> Traced:
    prompt = encoded(model, fact)
    return Traced(prompt.tokens[: len(prompt.tokens) - prompt.continued], prompt.first, prompt.lookup, prompt.labels[0])
