"""An edit of a model in memory: applied, removed to the bit, saved and loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from factsmith.api.files import new_folder, read_folder, write_folder
from factsmith.api.model import (
    check_model,
    edited_layers,
    edits_of,
    opened,
    set_edits,
    state_digest,
    weights_digest,
)
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.manifest import code_versions
from factsmith.tasks.decoder.layout import layout_for
from factsmith.tasks.edit.edit import Edit
from factsmith.tasks.editors.editor import edit_kind
from factsmith.tasks.export.adapter import adapter_of

__all__ = ["ModelEdit", "load_edit"]

_DOCUMENT = "edit.json"
_FORMAT = "factsmith edit 1"


class ModelEdit:
    """What a method makes of a model, and the facts that it writes.

    Args:
        edit: the changes of weights, or the memory.
        about: ``method``, ``layers``, ``facts``, ``settings``, ``model_type``, ``weights`` (digest of the weights that
            it changes) and ``state`` (of all), as JSON can hold them.
        model: the transformers model; ``None`` if the edit is only read.
        tokenizer: its tokenizer.

    Attributes:
        edit: the changes of weights, or the memory: ``WeightEdit``, ``ModuleEdit`` or the edit of an editor.
        model: the transformers model, or ``None``.
    """

    def __init__(self, edit: Edit, about: Mapping[str, Any], model: Any = None, tokenizer: Any = None) -> None:
        self.edit = edit
        self.model = model
        self._about = about
        self._tokenizer = tokenizer
        self._opened: ExitStack | None = None

    def __repr__(self) -> str:
        state = "applied" if self._opened else "not applied"
        return f"<ModelEdit: {len(self.facts)} facts, {self.method}, layers {self.layers}, {state}>"

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self._about["method"])

    @property
    def layers(self) -> list[int]:
        """The edited layers, ascending."""
        return list(self._about["layers"])

    @property
    def facts(self) -> list[dict[str, Any]]:
        """The facts that it writes: ``subject``, ``template`` (with ``{}`` for the subject) and ``target_new``."""
        return [dict(fact) for fact in self._about["facts"]]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the method, nested."""
        return dict(self._about["settings"])

    def apply(self) -> None:
        """Write the edit into the model, until ``remove``. Weights change in place; all else is left as it is.

        Raises:
            InputError: the edit has no model, or is applied already; the weights are not those that it was made for; a
                changed weight is NaN or infinite.
        """
        model = self._bound()
        if self._opened is not None:
            raise InputError("The edit is applied already.", remedy="call remove() first")
        check_model(model, self._tokenizer)
        with opened(model, self._tokenizer) as decoder, torch.no_grad(), ExitStack() as stack:
            edited_layers(self.layers, decoder)
            same = weights_digest(decoder, self.layers, self.edit) == self._about["weights"]
            if not same or self._about.get("state") not in (None, state_digest(decoder)):
                raise InputError(
                    "The weights of the model are not those that the edit was made for.",
                    got=f"a model with {len(edits_of(model))} other edits applied"
                    + ("; the weights that this edit changes are the same, and others are not" if same else ""),
                    expected="the same weights, in the same data type",
                    remedy="load the base model, or apply and remove edits in the order in which they were made",
                )
            stack.enter_context(self.edit.applied(decoder))
            self._opened = stack.pop_all()
        set_edits(model, [*edits_of(model), self])

    def remove(self) -> None:
        """Give the model its former weights back, to the bit. What was done to them since is lost.

        If the model was moved to another device or data type meanwhile, they are rounded to that.

        Raises:
            InputError: the edit is not applied, or another one was applied after it.
        """
        if self._opened is None:
            raise InputError("The edit is not applied.", remedy="call apply() first")
        if edits_of(self.model)[-1] is not self:
            raise InputError(
                "Another edit was applied after this one.", remedy="remove edits in reverse order, the last one first"
            )
        with torch.no_grad():
            self._opened.close()
        self._opened = None
        set_edits(self.model, edits_of(self.model)[:-1])

    @contextmanager
    def applied(self) -> Iterator[Any]:
        """The edited model while open. ``apply`` and ``remove`` say what they raise."""
        self.apply()
        try:
            yield self.model
        finally:
            self.remove()

    def save(self, folder: Path | str) -> Path:
        """Write the edit, not the model, to a new folder, as safetensors and JSON. Loaded, it is the same to the bit.

        Raises:
            InputError: the folder is not empty, or cannot be written.
        """
        content = {
            "format": _FORMAT,
            "kind": self.edit.kind,
            "values": self.edit.values(),
            "versions": code_versions(),
            **self._about,
        }
        return write_folder(folder, _DOCUMENT, content, self.edit.tensors())

    def save_adapter(self, folder: Path | str, *, base: str | None = None) -> Path:
        """Write the edit to a new folder as a LoRA that PEFT, vLLM and other programs load.

        Its factors are rounded to float32. ``PeftModel.from_pretrained(model, folder)`` gives the edited model.

        Args:
            folder: a folder that does not exist or is empty.
            base: what the adapter calls the model that it belongs to: a folder, or a hub id; ``None`` for the name that
                transformers knows the model by.

        Raises:
            InputError: the edit has no model, is dense (RECT, FT) or has a memory; the folder cannot be written.
        """
        model = self._bound()
        adapter = adapter_of(model, layout_for(model.config, "in memory"), self.edit)
        with new_folder(folder) as staging:
            adapter.save(staging, base or str(model.config.name_or_path))
        return Path(folder).expanduser().absolute()

    def _bound(self) -> Any:
        if self.model is None:
            raise InputError("The edit has no model.", remedy="load it with load_edit(folder, model, tokenizer)")
        return self.model


def load_edit(folder: Path | str, model: Any = None, tokenizer: Any = None) -> ModelEdit:
    """The edit that ``ModelEdit.save`` has written.

    Args:
        folder: the folder.
        model: the transformers model that was edited, as it was before; ``None`` to only read the edit.
        tokenizer: its tokenizer. It is needed with a model.

    Raises:
        InputError: the folder cannot be read, or does not hold an edit; the model cannot be edited.
    """
    content, tensors = read_folder(folder, _DOCUMENT, _FORMAT, "an edit, which ModelEdit.save writes")
    if model is not None:
        check_model(model, tokenizer)
    try:
        edit = edit_kind(content.pop("kind")).read(tensors, content.pop("values"))
        found = ModelEdit(edit, content, model, tokenizer)
        _ = found.method, found.layers, found.facts, found.settings, content["weights"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder} is damaged.", got=f"{type(error).__name__}: {error}") from None
    if model is not None and content.get("model_type") != model.config.model_type:
        raise InputError(
            "The edit was made for another model.",
            got=f"a model of type {model.config.model_type}",
            expected=str(content.get("model_type")),
        )
    return found


def facts_of(requests: Sequence[Any]) -> list[dict[str, Any]]:
    """The facts of requests as JSON can hold them."""
    return [{"case_id": one.case_id, **one.fact} for one in requests]
