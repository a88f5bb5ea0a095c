"""Stage ``answers``: what the unedited and the edited model answer to the prompts of the facts that were written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from factsmith.artifacts.artifact import Artifact
from factsmith.tasks.chat.template import can_chat
from factsmith.tasks.evaluation.family import MetricFamily, load_families
from factsmith.tasks.evaluation.stage import score_records
from factsmith.tasks.facts.batches import FactBatches
from factsmith.tasks.facts.record import Record
from factsmith.tasks.model.model import Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["Answer", "ChatAnswer", "answers"]


@dataclass(frozen=True)
class ChatAnswer:
    """The answers to one fact's question in the chat template, generated greedily.

    Attributes:
        question: the question.
        before: the unedited model's answer; ``None`` if the question does not fit the model.
        after: the edited model's answer; ``None`` if the question does not fit the model.
        holds: whether the edited model's answer contains the new object.
    """

    question: str
    before: str | None
    after: str | None
    holds: bool


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
        chat: the answers to the fact's question in a chat; ``None`` if the fact has no question, or the model no chat
            template.
    """

    case_id: int
    prompt: str
    target_new: str
    before: str | None
    after: str | None
    holds: bool
    held: bool = False
    chat: ChatAnswer | None = None


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
    greedy, chat = load_families(["greedy", "chat"])
    records = batches.records
    with_question = [one for one in records if one.question] if can_chat(model.tokenizer) else []
    with progress("answers", 2 * (len(records) + len(with_question))) as advance:
        plain = _ask(workspace, model, greedy, "rewrite", batches, edits, advance)
        asked = (
            _ask(workspace, model, chat, "question", batches, edits, advance) if with_question else _Asked([], 0, "")
        )
    in_chat = {
        id(record): ChatAnswer(question, before, after, holds)
        for record, question, (before, _), (after, holds) in asked.found
    }
    found = [
        Answer(one.request.case_id, prompt, one.request.target_new, before, after, holds, held, in_chat.get(id(one)))
        for one, prompt, (before, held), (after, holds) in plain.found
    ]
    built = plain.built + asked.built
    metrics = {"facts": len(found), "facts_held": sum(one.holds for one in found), "facts_asked": built}
    return Outcome(found, plain.address, built > 0, metrics)


@dataclass(frozen=True)
class _Asked:
    """What a metric family's prompts were answered.

    Attributes:
        found: each record, its prompt, and the answers before and after, each with whether it has the new object.
        built: number of records that had to be asked.
        address: the series of the last answers.
    """

    found: list[tuple[Record, str, tuple[str | None, bool], tuple[str | None, bool]]]
    built: int
    address: str


def _ask(
    workspace: Workspace,
    model: Model,
    family: MetricFamily,
    kind: str,
    batches: FactBatches,
    edits: Sequence[Artifact],
    advance: Callable[[int], None],
) -> _Asked:
    """Ask the first prompt of ``kind`` of every record that has one."""
    asked = [
        [(record, _only(record, kind)) for record in batch if record.prompts.get(kind)] for batch in batches.written
    ]
    before = score_records(workspace, model, family, None, [only for batch in asked for _, only in batch], advance)
    old, built, address, found = _by_record(before.rows), before.built, before.series.address, []
    for edit, batch in zip(edits, asked, strict=True):
        if batch:
            after = score_records(workspace, model, family, edit, [only for _, only in batch], advance)
            new, built, address = _by_record(after.rows), built + after.built, after.series.address
            for record, only in batch:
                digest = only.digest(family.kinds)
                found.append((record, only.prompts[kind][0], old[digest], new[digest]))
    return _Asked(found, built, address)


def _only(record: Record, kind: str) -> Record:
    """The record with the first of its prompts of ``kind`` alone."""
    return replace(record, prompts={kind: record.prompts[kind][:1]}, answers={})


def _by_record(rows: pa.Table) -> dict[str, tuple[str | None, bool]]:
    """The answer of each record, and whether it has the new object."""
    columns = (rows[name].to_pylist() for name in ("record", "answer", "correct"))
    return {record: (answer, bool(correct)) for record, answer, correct in zip(*columns, strict=True)}
