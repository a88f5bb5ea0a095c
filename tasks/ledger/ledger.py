"""A ledger: the facts that were written into a model, edit by edit, each edit on top of those before it.

It is a JSON file, ``ledger.json``, beside the weights, the adapter or the delta that has these edits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from factsmith.artifacts.errors import InputError

__all__ = ["LEDGER", "Ledger", "LedgerEdit", "LedgerFact", "parsed", "read_ledger", "write_ledger"]

LEDGER = "ledger.json"
"""The name of the file."""

M = TypeVar("M", bound=BaseModel)


class _Frozen(BaseModel):
    # A model that has collapsed has scores that are infinite. As null they could not be read again.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class LedgerFact(_Frozen):
    """A fact that an edit wrote.

    Attributes:
        case_id: number of the fact in its dataset.
        subject: the subject.
        template: the prompt, with ``{}`` in place of the subject.
        target_new: the object that was written.
        target_true: the object before, if the dataset gives it.
        relation: name of the relation, if the dataset gives it.
        batch: number of the batch of the edit that wrote it, counted from 1. Only a sequence has several.
        holds: whether the edited model gave the object when it was scored; ``None`` if it was not scored.
    """

    case_id: int
    subject: str
    template: str
    target_new: str
    target_true: str | None = None
    relation: str | None = None
    batch: int = Field(1, ge=1)
    holds: bool | None = None

    @property
    def prompt(self) -> str:
        """The prompt."""
        return self.template.replace("{}", self.subject, 1)


class LedgerEdit(_Frozen):
    """An edit, and the facts that it wrote.

    Attributes:
        edit: where a store keeps it: kind, series and digest. It is the same wherever the edit is made.
        run: id of the run in MLflow that made it.
        written: when that run started.
        model: what that run called the model that it edited.
        weights: fingerprint of this model, which has the edits before this one.
        method: the method.
        settings: the settings of the model, the corpus, the method and the dataset.
        scores: metrics of the edited model that the run logged, in percent, and counts of facts.
        facts: the facts, batch by batch.
    """

    edit: str
    run: str | None
    written: AwareDatetime
    model: str
    weights: str
    method: str
    settings: dict[str, Any] = {}
    scores: dict[str, float] = {}
    facts: tuple[LedgerFact, ...]


class Ledger(_Frozen):
    """The edits of a model.

    Attributes:
        version: version of the format.
        base: what the first run called the unedited model.
        weights: fingerprint of its weights: the digest of its ``model`` artifact.
        state: checksum of the edited weights that the ledger lies beside (``deltas.weights.state_of``); ``None`` beside
            an adapter, and if it was not computed.
        edits: the edits, the first one first.
    """

    version: Literal[1] = 1
    base: str
    weights: str
    state: str | None = None
    edits: tuple[LedgerEdit, ...] = ()

    def followed_by(self, *edits: LedgerEdit) -> Ledger:
        """The ledger after further edits."""
        return self.model_copy(update={"edits": (*self.edits, *edits), "state": None})


def read_ledger(folder: Path) -> Ledger | None:
    """The ledger in ``folder``; ``None`` if there is none.

    Raises:
        InputError: it cannot be read.
    """
    file = folder / LEDGER
    return parsed(Ledger, file) if file.is_file() else None


def write_ledger(folder: Path, ledger: Ledger) -> None:
    """Write ``ledger`` into ``folder``."""
    (folder / LEDGER).write_text(ledger.model_dump_json(indent=1) + "\n", encoding="utf-8")


def parsed(model: type[M], file: Path) -> M:
    """What a JSON file holds, which must be as ``model`` says.

    Raises:
        InputError: the file is not readable, or holds something else.
    """
    try:
        return model.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{file} cannot be used.",
            got=f"{place}: {first['msg']}" if place else first["msg"],
            expected=f"{file.name} as this version of Factsmith writes it",
            remedy="export again with the version of Factsmith that is installed here",
        ) from None
    except OSError as error:
        raise InputError(f"{file} cannot be read.", got=error.strerror) from None
