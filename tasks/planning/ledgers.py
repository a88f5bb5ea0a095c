"""The ledgers of a run: what it wrote, on top of what was written into its model before."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from factsmith.artifacts.artifact import Artifact
from factsmith.tasks.facts.batches import FactBatches
from factsmith.tasks.ledger.entries import facts_of
from factsmith.tasks.ledger.ledger import Ledger, LedgerEdit, read_ledger
from factsmith.tasks.ledger.runs_stage import keep_ledgers
from factsmith.tasks.planning.run import Run
from factsmith.tasks.tracking.runs import EDITS

__all__ = ["base_ledger", "ledgers_of", "log_edits"]


def base_ledger(run: Run) -> Ledger:
    """The ledger of the model that a run edits. It has no edits unless the model is one that Factsmith has written.

    Raises:
        InputError: the model's ledger cannot be read.
    """
    found = read_ledger(run.model.checkpoint.path)
    return found or Ledger(base=run.settings.model.path, weights=run.model.fingerprint.weights)


def ledgers_of(run: Run, batches: FactBatches, edits: Sequence[Artifact]) -> list[Ledger]:
    """The ledger of each edit of a run that is under way: one for each batch, or one for a sequence.

    Args:
        run: the run.
        batches: the facts that were written.
        edits: the edits that ``write_batches`` returned for them.
    """
    about, base = run.about, base_ledger(run)
    final = edits[-1:] if batches.in_sequence else edits
    written = [batches.batches] if batches.in_sequence else [[batch] for batch in batches.batches]
    return [
        base.followed_by(
            LedgerEdit(
                edit=edit.place,
                run=run.workspace.tracker.run_id,
                written=datetime.now(UTC).replace(microsecond=0),
                model=about["model"],
                weights=run.model.fingerprint.weights,
                method=about["method"],
                settings=about["settings"],
                facts=facts_of(its),
            )
        )
        for edit, its in zip(final, written, strict=True)
    ]


def log_edits(run: Run, batches: FactBatches, edits: Sequence[Artifact]) -> None:
    """Keep the edits of a run and their ledgers in MLflow. Its scores are not known yet."""
    run.workspace.tracker.document([artifact.place for artifact in edits], EDITS)
    keep_ledgers(run.workspace.tracker, ledgers_of(run, batches, edits))
