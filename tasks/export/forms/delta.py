"""The form ``delta``: the change alone, which can be applied to the model that it was made for, stacked and undone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from factsmith.tasks.deltas.file import Keeps
from factsmith.tasks.deltas.weights import changes_of, stored_bytes
from factsmith.tasks.deltas.writing import write_delta
from factsmith.tasks.edit.edit import Edit, WeightEdit
from factsmith.tasks.export.form import Form
from factsmith.tasks.ledger.ledger import LedgerEdit
from factsmith.tasks.model.model import Model
from factsmith.tasks.pipeline.progress import progress


@dataclass(frozen=True)
class DeltaForm(Form):
    """Thin factors, or dense changes, with the checksums of the weights before and after.

    Attributes:
        keeps: what is kept of the former weights, so that the delta can be undone to the bit.
        former: the edit that the former weights have already; nothing for a delta of the model itself.
        removes: the entries of the ledger of the former weights that the new one does not have.
    """

    keeps: Keeps = "entries"
    former: Edit = field(default_factory=lambda: WeightEdit({}))
    removes: Sequence[LedgerEdit] = ()

    name = "delta"
    title = "This is the change alone, which can be applied to the unedited model and taken back."
    language = "sh"
    library = "factsmith"
    is_thin = False

    def write(self, folder: Path, model: Model, edit: Edit, about: Mapping[str, Any]) -> Mapping[str, Any]:
        decoder = model.decoder
        new = changes_of(edit, decoder)
        with progress("delta", stored_bytes(decoder)) as advance, torch.no_grad():
            written = write_delta(
                folder,
                decoder,
                changes_of(self.former, decoder),
                new,
                base=about["model"],
                weights=model.fingerprint.weights,
                keeps=self.keeps,
                adds=1 if new else 0,
                removes=self.removes,
                advance=advance,
            )
        return {"state": written.after}

    def usage(self, about: Mapping[str, Any]) -> str:
        return f"factsmith apply . --model {quote(about['model'])} --out edited"


FORM = DeltaForm()
