"""Stage ``answers``: what the unedited and the edited model answer to the prompts of the facts that were written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from factsmith.artifacts.artifact import Artifact
from factsmith.tasks.evaluation.family import load_families
from factsmith.tasks.evaluation.stage import score_records
from factsmith.tasks.facts.batches import FactBatches
from factsmith.tasks.facts.record import Record
from factsmith.tasks.model.model import Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["Answer", "answers"]


@dataclass(frozen=True)
class Answer:
    """The answers to one fact's prompt, generated greedily.

    Attributes:
        case_id: number of the fact.
        prompt: the prompt.
        target_new: the new object.
        before: the unedited model's answer; ``None`` if the prompt does not fit the model.
        after: the edited model's answer; ``None`` if the prompt does not fit the model.
        holds: whether the edited model's answer starts with the new object.
        held: whether the unedited model's answer did so already.
    """

    case_id: int
    prompt: str
    target_new: str
    before: str | None
    after: str | None
    holds: bool
    held: bool = False


@stage("answers")
def answers(
    workspace: Workspace, model: Model, batches: FactBatches, edits: Sequence[Artifact]
) -> Outcome[list[Answer]]:
    """Ask the unedited model for every fact, and each edit for the facts that it writes.

    Args:
        workspace: the run's workspace.
        model: the model.
        batches: the records.
        edits: the final edits, in the order of ``batches.written``.
    """
    (family,) = load_families(["greedy"])
    asked = [[_prompt_only(record) for record in batch] for batch in batches.written]
    records = [record for batch in asked for record in batch]
    with progress("answers", 2 * len(records)) as advance:
        before = score_records(workspace, model, family, None, records, advance)
        after = [
            score_records(workspace, model, family, edit, batch, advance)
            for edit, batch in zip(edits, asked, strict=True)
        ]
    old = _by_record(before.rows)
    found = []
    for scored in after:
        new = _by_record(scored.rows)
        for record in scored.records:
            digest, request = record.digest(family.kinds), record.request
            (first, known), (answer, holds) = old[digest], new[digest]
            found.append(
                Answer(request.case_id, request.prompt, request.target_new, first, answer, bool(holds), bool(known))
            )
    built = before.built + sum(one.built for one in after)
    held = sum(one.holds for one in found)
    return Outcome(
        found, after[-1].series.address, built > 0, {"facts": len(found), "facts_held": held, "facts_asked": built}
    )


def _prompt_only(record: Record) -> Record:
    """The record without the prompts that only score it."""
    return replace(record, prompts={"rewrite": (record.request.prompt,)}, answers={})


def _by_record(rows: pa.Table) -> dict[str, tuple[str | None, bool | None]]:
    """The answer of each record, and whether it starts with the new object."""
    columns = (rows[name].to_pylist() for name in ("record", "answer", "correct"))
    return {record: (answer, correct) for record, answer, correct in zip(*columns, strict=True)}
