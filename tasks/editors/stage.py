"""Stage ``edit`` of an editor: the edit of every batch, or of a sequence up to some batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_json, load_table, load_tensors, save_table
from factsmith.artifacts.recipe import Recipe, Series, digest_of
from factsmith.tasks.edit.edit import OTHER_EDIT, OTHER_TENSORS, Edit, WeightEdit
from factsmith.tasks.edit.sequence import LayerMeasures
from factsmith.tasks.edit.sequence_shards_stage import FACTS, MEASURES
from factsmith.tasks.edit.stage import (
    SECONDS_WRITTEN,
    read_deltas,
    save_edit,
    seconds_written,
)
from factsmith.tasks.editors.editor import Editor, NotWrittenError, Task, edit_kind
from factsmith.tasks.editors.settings import WritingSettings
from factsmith.tasks.facts.batches import FactBatches, fact_digests, ordered_facts
from factsmith.tasks.facts.contexts import CLEAN, Context
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.stage import Contexts
from factsmith.tasks.model.model import Fingerprint, Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import SECONDS_AN_EDIT, Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.values.checks import check_requests

__all__ = ["editor_recipes", "editor_series", "read_edit", "write_facts"]

logger = logging.getLogger(__name__)

_FACTS = pa.schema(
    [
        ("batch", pa.int64()),
        ("edits", pa.int64()),
        ("case_id", pa.int64()),
        ("subject", pa.string()),
        ("template", pa.string()),
        ("target_new", pa.string()),
        ("steps", pa.int64()),
        ("loss", pa.float64()),
        ("reached", pa.float64()),
    ]
)
"""The columns of ``FACTS``. An editor has no value vector that could be ``reached``."""

_NO_MEASURES = pa.schema(
    [
        (name, pa.int64() if name in ("batch", "edits", "layer") else pa.float64())
        for name in ("batch", "edits", *(field.name for field in fields(LayerMeasures)))
    ]
)
"""``MEASURES`` of an edit whose layers are not measured."""


def read_edit(artifact: Artifact | None) -> Edit:
    """The edit that an artifact holds, of any kind. For ``None``, it is one that changes nothing."""
    if artifact is None:
        return WeightEdit({})
    path = artifact.path / OTHER_EDIT
    if not path.is_file():
        return WeightEdit(read_deltas(artifact))
    stored = load_json(path)
    return edit_kind(stored["kind"]).read(load_tensors(artifact.path / OTHER_TENSORS), stored["values"])


def editor_series(
    model: Fingerprint,
    editor: Editor,
    layers: Sequence[int],
    method: WritingSettings,
    contexts: str | None,
    counterfactual: Fingerprint | None = None,
) -> Series:
    """The series of an editor's edits, whatever their facts. Contexts are given by their digest."""
    parameters = {"layers": list(layers), **editor.recipe(method), **model.parameters}
    inputs = {**model.inputs, **({"contexts": contexts} if contexts else {})}
    if counterfactual is not None:
        parameters["counterfactual"] = counterfactual.parameters
        inputs |= {f"counterfactual {name}": digest for name, digest in counterfactual.inputs.items()}
    return Series("edit", 1, parameters, inputs)


def editor_recipes(series: Series, batches: FactBatches) -> list[Recipe]:
    """The recipe of each edit: one for each batch, or one for each number of batches at which a sequence is scored."""
    facts = [fact_digests(batch) for batch in batches.batches]
    if batches.scored is None:
        return [series.member(facts=its) for its in facts]
    return [_state(series, facts[:number]) for number in batches.scored]


def _state(series: Series, facts: Sequence[Any]) -> Recipe:
    """The recipe of the edit that the batches with these facts, written one after the other, leave."""
    return series.member(batches=len(facts), facts=digest_of(list(facts)))


@stage("edit")
def write_facts(
    workspace: Workspace,
    model: Model,
    layers: list[int],
    editor: Editor,
    method: WritingSettings,
    batches: FactBatches,
    contexts: Contexts | None,
    counterfactual: Model | None = None,
) -> Outcome[list[Artifact]]:
    """Write each batch into the unedited model, or each on top of those before it.

    Args:
        workspace: the run's workspace.
        model: the unedited model.
        layers: the edited layers, ascending.
        editor: the editor.
        method: how facts are written.
        batches: the records of each batch, and for a sequence after which batches the model is scored.
        contexts: the contexts, if the editor uses them.
        counterfactual: the model that the editor names, if it names one.

    Returns:
        One edit for each batch. In a sequence, one edit for each number of batches that is scored.

    Raises:
        InputError: a fact is too long for the model, or its loss is NaN or infinite; names the fact.
    """
    templates: Sequence[Context] = contexts.templates if contexts else (CLEAN,)
    check_requests(model.tokenizer, batches.requests, templates, model.context_length)
    digest, other = contexts.digest if contexts else None, counterfactual.fingerprint if counterfactual else None
    series = editor_series(model.fingerprint, editor, layers, method, digest, other)
    work = _Work(workspace, model, layers, editor, method, templates, series, batches, counterfactual)
    recipes = editor_recipes(series, batches)
    metrics = {"facts": float(len(batches.requests)), "batches": float(len(batches.batches))}
    with progress("edit", len(batches.requests)) as advance:
        if batches.scored is None:
            written = work.independent(recipes, advance)
        else:
            with workspace.store.lock(series.digest):
                written = work.sequence(recipes, advance)
    edits = [workspace.store.get(recipe) for recipe in recipes]
    last = edits[-1:] if batches.scored is not None else edits
    seconds = sum(seconds_written(edit) or 0.0 for edit in last)
    metrics |= {"facts_written": written, SECONDS_AN_EDIT: seconds / len(batches.requests)}
    return Outcome(edits, series.address, written > 0, metrics)


@dataclass(frozen=True)
class _State:
    """What the first ``number`` batches left.

    Attributes:
        number: number of batches.
        edit: the edit; ``None`` before the first batch.
        facts: a row for each fact, for the table ``FACTS``.
        seconds: how long they took.
    """

    number: int = 0
    edit: Edit | None = None
    facts: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0


class _Work:
    """An editor at work on a model, and the edits that it leaves."""

    def __init__(
        self,
        workspace: Workspace,
        model: Model,
        layers: list[int],
        editor: Editor,
        method: WritingSettings,
        contexts: Sequence[Context],
        series: Series,
        batches: FactBatches,
        counterfactual: Model | None,
    ) -> None:
        self._workspace = workspace
        self._store = workspace.store
        self._model = model
        self._counterfactual = counterfactual
        self._layers = layers
        self._editor = editor
        self._method = method
        self._contexts = contexts
        self._series = series
        self._batches = [ordered_facts(batch) for batch in batches.batches]
        self._facts = [fact_digests(batch) for batch in batches.batches]
        self._scored = batches.scored

    def independent(self, recipes: Sequence[Recipe], advance: Callable[[int], None]) -> int:
        """Build an edit for each batch. Returns the number of facts that had to be written."""
        facts = 0
        for place, (recipe, batch) in enumerate(zip(recipes, self._batches, strict=True)):

            def build(draft: Draft, place: int = place) -> None:
                self._save(draft, self._write(_State(), place, advance), self._batches[place])

            built = self._store.get_or_build(recipe, build)[1]
            facts += built * len(batch)
            if not built:
                advance(len(batch))
        return facts

    def sequence(self, recipes: Sequence[Recipe], advance: Callable[[int], None]) -> int:
        """Build the edits of a sequence that are scored. Returns the number of facts that had to be written.

        An edit is also stored after every ``checkpoint_every`` batches, and when the sequence is interrupted. A
        sequence continues from the last edit that is stored.
        """
        scored = dict(zip(self._scored or (), recipes, strict=True))
        missing = [number for number, recipe in scored.items() if self._store.find(recipe) is None]
        if not missing:
            return 0
        state = self._stored(before=min(missing))
        first, last, saved = state.number, max(missing), state.number
        advance(sum(map(len, self._batches[:first])))
        try:
            while state.number < last:
                state = self._write(state, state.number, advance)
                if state.number in missing or state.number % self._method.sequence.checkpoint_every == 0:
                    self._store_state(state)
                    saved = state.number
        except BaseException:  # Keep what has been written, whatever ends the sequence early.
            if state.number > saved:
                self._store_state(state)
            raise
        return sum(map(len, self._batches[first:last]))

    def _stored(self, before: int) -> _State:
        """The last stored state of fewer than ``before`` batches."""
        numbers = {one.key["batches"] for one in self._store.members(self._series) if "batches" in one.key}
        for number in sorted((one for one in numbers if one < before), reverse=True):
            if (found := self._store.find(_state(self._series, self._facts[:number]))) is not None:
                rows = load_table(found.path / FACTS).to_pylist()
                logger.info("edit: continuing after %d batches", number)
                return _State(number, read_edit(found), tuple(rows), seconds_written(found) or 0.0)
        return _State()

    def _store_state(self, state: _State) -> None:
        written = [record for batch in self._batches[: state.number] for record in batch]
        recipe = _state(self._series, self._facts[: state.number])
        self._store.get_or_build(recipe, lambda draft: self._save(draft, state, written))

    def _write(self, state: _State, place: int, advance: Callable[[int], None]) -> _State:
        """Write the batch at ``place`` on top of ``state``."""
        started = time.perf_counter()
        requests = [record.request for record in self._batches[place]]
        other = self._counterfactual.decoder if self._counterfactual else None
        task = Task(requests, self._contexts, self._layers, self._method, self._model.limits.most_tokens, other)
        try:
            written = self._editor.write(self._model.decoder, state.edit, task)
        except NotWrittenError as error:
            kept = f"; or set dataset.batches={state.number} to score what was written" if state.number else ""
            raise InputError(
                f"The loss of case {error.request.case_id} is NaN or infinite.",
                got=f"prompt {error.request.prompt!r}",
                remedy=f"lower {self._editor.rate}, or set model.dtype=float32{kept}",
            ) from None
        number = state.number + 1
        edits = len(state.facts) + len(requests)
        rows = [
            {"batch": number, "edits": edits, "case_id": one.case_id, **one.fact, **asdict(fit), "reached": None}
            for one, fit in zip(requests, written.fits, strict=True)
        ]
        advance(len(requests))
        seconds = state.seconds + time.perf_counter() - started
        return _State(number, written.edit, (*state.facts, *rows), seconds)

    def _save(self, draft: Draft, state: _State, records: Sequence[Record]) -> None:
        assert state.edit is not None
        save_edit(draft, state.edit, [record.request for record in records])
        save_table(draft.path / FACTS, pa.Table.from_pylist(list(state.facts), schema=_FACTS))
        save_table(draft.path / MEASURES, _NO_MEASURES.empty_table())
        draft.made = {**self._workspace.made, **self._model.made, SECONDS_WRITTEN: round(state.seconds, 3)}
