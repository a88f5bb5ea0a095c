"""Flow ``edit``: write facts, and if wanted hand over the edited model."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from factsmith.artifacts.store import Artifact
from factsmith.flows.configuration.parameters import RunSettings
from factsmith.flows.precompute import Prepared, finish, prepare
from factsmith.flows.reporting.reports import Report
from factsmith.tasks.edit.sequence_stage import edit_in_sequence
from factsmith.tasks.edit.stage import edit as edit_stage
from factsmith.tasks.export.stage import export
from factsmith.tasks.facts.stage import contexts
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.planning.preflight import open_bench
from factsmith.tasks.preservation.directions_stage import directions
from factsmith.tasks.tracking.runs import EDITS
from factsmith.tasks.values.stage import values

__all__ = ["edit", "write"]


def write(bench: Bench, prepared: Prepared) -> list[Artifact]:
    """contexts -> values -> edit; in sequence, where values belong to the weights as they are then, without values.

    Returns:
        One edit a batch; in sequence one after each number of batches that is scored, all batches the last.
    """
    templates = contexts(bench, prepared.model)
    if bench.in_sequence:
        leading = directions(bench, prepared.factors)
        edits = edit_in_sequence(bench, prepared.model, templates, prepared.factors, leading)
    else:
        vectors = values(bench, prepared.model, templates)
        edits = edit_stage(bench, prepared.model, templates, vectors, prepared.factors)
    bench.tracker.document([artifact.place for artifact in edits], EDITS)
    return edits


@flow(name="edit")
def edit(settings: RunSettings, out: Path | None = None) -> Report:
    """Write facts into a model.

    Args:
        settings: of the run: choices, and what is to differ from them.
        out: folder to write the edited model to, as a Hugging Face checkpoint.
    """
    with open_bench(settings, "edit", out=out) as bench:
        prepared = prepare(bench)
        edits = write(bench, prepared)
        if out is not None:
            export(bench, edits[-1], out)
        return finish(bench, prepared)
