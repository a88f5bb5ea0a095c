"""Which edit of which earlier run is exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from factsmith.artifacts.artifact import Artifact
from factsmith.artifacts.errors import InputError
from factsmith.tasks.deltas.file import Keeps
from factsmith.tasks.edit.stage import stored_edits
from factsmith.tasks.export.form import Form, load_form
from factsmith.tasks.export.forms.delta import DeltaForm
from factsmith.tasks.facts.batches import FactBatches
from factsmith.tasks.planning.home import open_store
from factsmith.tasks.planning.run import Run
from factsmith.tasks.tracking.runs import LATEST, PastRun, find_run, past_runs

__all__ = ["EXPORTED", "Chosen", "Source", "choose", "chosen_edit", "chosen_form", "find_source"]

_EDIT = "edit/"
"""The beginning of an edit's address."""

EXPORTED = "exported.json"
"""The file of a run of the flow ``export`` that names the run whose edit it has exported."""


@dataclass(frozen=True)
class Source:
    """Where an edit comes from.

    Attributes:
        run: the run that made or scored it.
        place: where the store keeps it, if its address was given.
    """

    run: PastRun
    place: str | None = None


@dataclass(frozen=True)
class Chosen:
    """An edit of a run.

    Attributes:
        edit: the edit.
        number: number of its batch, counted from 1; in a sequence, number of batches that it holds.
        is_whole: whether it holds all facts of the run.
    """

    edit: Artifact
    number: int
    is_whole: bool

    def batches(self, batches: FactBatches) -> FactBatches:
        """Those of the run's batches that the edit writes."""
        if batches.scored is None:
            return FactBatches([batches.batches[self.number - 1]])
        return FactBatches(batches.batches[: self.number], [self.number])


def find_source(home: Path, name: str) -> Source:
    """The run called ``name``, or the last run that has the edit of this address, one with scores if there is one.

    Args:
        home: the home of the runs and of the store.
        name: ``latest``, an id as ``find_run`` takes it, or ``edit/DIGEST``, which may be abbreviated.

    Raises:
        InputError: there is no such run or edit, more than one has this name, or no run has this edit.
    """
    if not name.startswith(_EDIT):
        run = find_run(home, name)
        if name == LATEST and run.flow == "export" and not run.has(EXPORTED):  # It was killed before it said of what.
            run = next((one for one in past_runs(home) if one.flow != "export"), run)
        # An export is a run too, and the last one after itself.
        return Source(find_run(home, run.document(EXPORTED)["run"]) if run.flow == "export" else run)
    places = open_store().resolve(name)
    runs = [run for run in past_runs(home) if run.flow != "export" and set(places) & set(_edits(run))]
    if not runs:
        raise InputError(
            f"No run has the edit {name}, so the settings that made it are not known.",
            expected="the last edit of a run, or one at which a sequence was scored",
            remedy="`factsmith runs` lists the runs",
        )
    run = next((run for run in runs if run.score), runs[0])
    return Source(run, places[0] if len(places) == 1 else None)


def _edits(run: PastRun) -> Sequence[str]:
    try:
        return run.edits
    except InputError:  # It made none, or did not finish.
        return ()


def chosen_form(name: str, keep: Keeps | None) -> Form:
    """The form called ``name``, with what the user chose for it.

    Args:
        name: the name.
        keep: what a delta keeps of the weights before it; ``None`` for its default.

    Raises:
        InputError: there is no such form, or it does not read what was chosen.
    """
    form = load_form(name)
    if keep is None:
        return form
    if not isinstance(form, DeltaForm):
        raise InputError(
            f"The form {name} keeps nothing of the weights before an edit.",
            got=f"--keep {keep}",
            remedy="leave out --keep, or set --to delta",
        )
    return DeltaForm(keep)


def choose(run: Run, source: Source, batch: int | None) -> Chosen:
    """The edit of a run that the user means. See ``chosen_edit``."""
    edits = stored_edits(run.workspace.store, source.run, run.model)
    return chosen_edit(source, edits, in_sequence=run.settings.method.in_sequence, batch=batch)


def chosen_edit(source: Source, edits: Sequence[Artifact], *, in_sequence: bool, batch: int | None) -> Chosen:
    """The edit to export.

    Args:
        source: where it comes from.
        edits: the edits of the run: one for each batch, or one for each number of batches at which a sequence was
            scored.
        in_sequence: whether they are those of a sequence.
        batch: number of the batch that the edit writes, counted from 1; in a sequence, number of batches that it holds.
            ``None`` for the only batch, or for all batches of a sequence.

    Raises:
        InputError: the run has no such edit, or has several and none is chosen.
    """
    by_number = {one.key["batches"] if in_sequence else number: one for number, one in enumerate(edits, 1)}
    if source.place is not None:
        if batch is not None:
            raise InputError("The address of an edit names its batch already.", got=f"--batch {batch}")
        batch = next(number for number, one in by_number.items() if one.place == source.place)
    elif batch is None and (in_sequence or len(edits) == 1):
        batch = max(by_number)
    if batch is None or batch not in by_number:
        what = "numbers of batches after which the sequence was scored" if in_sequence else "batches, each an edit"
        shown = [f"{number} ({one.summary['facts']:,} facts)" for number, one in by_number.items()]
        raise InputError(
            f"Run {source.run.id[:8]} has no edit of {'the first ' if in_sequence else ''}batch {batch}."
            if batch is not None
            else f"Run {source.run.id[:8]} has {len(edits)} edits, because its batches are independent.",
            got=None if batch is None else f"--batch {batch}",
            expected=f"one of the {what}: {', '.join(shown[:12])}{', ...' if len(shown) > 12 else ''}",
            remedy="choose one with --batch N",
        )
    is_whole = batch == max(by_number) if in_sequence else len(edits) == 1
    return Chosen(by_number[batch], batch, is_whole)
