"""Whether a method can write a batch of facts into a model, from its settings alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from factsmith.artifacts.errors import InputError
from factsmith.tasks.edit.refiners import load_refiner
from factsmith.tasks.edit.wrappers import load_wrapper
from factsmith.tasks.editors.editor import Described, Editor
from factsmith.tasks.editors.settings import WritingSettings
from factsmith.tasks.facts.settings import ContextSettings

__all__ = ["check_method"]


def check_method(
    method: WritingSettings,
    layers: Sequence[int],
    facts: int,
    *,
    editor: Editor | None,
    model: Described,
    device: str,
    dtype: str,
) -> None:
    """Check that a method can write ``facts`` facts together at these layers.

    Args:
        method: how facts are written.
        layers: the layers to edit.
        facts: the number of facts of the largest batch.
        editor: the editor of the method, if it has one.
        model: the model's config and layout.
        device: type of the device: ``cpu`` or ``cuda``.
        dtype: data type of the weights in memory.

    Raises:
        InputError: it cannot; says what would help.
    """
    if editor is not None:
        _check_editor(method, layers, facts, editor, model)
        return
    load_refiner(method)
    if load_wrapper(method) is not None and method.sequence.history != "none":
        raise InputError(
            f"method={method.name} with method.wrapper={method.wrapper} writes sequences. The wrapper alone remembers "
            "earlier batches.",
            got=f"method.sequence.history={method.sequence.history or 'null'}",
            remedy="set method.sequence.history=none",
        )
    if method.read_keys == "clean" and facts > 1:
        raise InputError(
            f"method={method.name} writes one fact at a time.",
            got=f"batches of {facts}",
            remedy="set method.batch_size=1, or choose method=memit or method=emmet",
        )
    if method.value.site == "mlp" and not method.value.attention and len(layers) > 1:
        raise InputError(
            f"method={method.name} edits one layer: a value at the MLP's output belongs to that MLP alone.",
            got=f"method.layers={list(layers)}",
            remedy="set method.layers to one of them",
        )
    if method.value.tf32 and (device, dtype) != ("cuda", "float32"):
        raise InputError(
            "method.value.tf32 multiplies float32 matrices on a GPU, and there are none here.",
            got=f"model.dtype={dtype} on {device}",
            remedy="leave out method.value.tf32",
        )


def _check_editor(method: WritingSettings, layers: Sequence[int], facts: int, editor: Editor, model: Described) -> None:
    editor.check(method, layers, facts)
    editor.check_model(method, layers, model)
    given = [name for name in ContextSettings.model_fields if getattr(method, name) != _default(name)]
    if given and not editor.uses_contexts:
        raise InputError(
            f"method.{given[0]} would have no effect.",
            got=f"method={method.name}, which writes a fact as its prompt alone",
            remedy="leave it out",
        )
    if method.sequence.history not in (None, "none"):
        raise InputError(
            f"method={method.name} keeps no history: it does not solve the equation that a history is a part of.",
            got=f"method.sequence.history={method.sequence.history}",
            remedy="set method.sequence.history=none to write batches one after the other",
        )


def _default(name: str) -> Any:
    return ContextSettings.model_fields[name].get_default(call_default_factory=True)
