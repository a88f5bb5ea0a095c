"""The linear modules that an editor changes, by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.layout import HFModule
from factsmith.tasks.edit.edit import ModulePlace

__all__ = ["find_modules"]


def find_modules(
    blocks: nn.ModuleList, layers: Sequence[int], names: Sequence[str] | None, default: Callable[[HFModule], list[str]]
) -> list[ModulePlace]:
    """The linear modules in the blocks of ``layers`` that have one of ``names``.

    A name is the last parts of a module's name within its block, such as ``q_proj`` or ``mlp.up_proj``. With the layer
    before the whole name, as in ``11.mlp.up_proj``, it means the module of this layer alone.

    Args:
        blocks: the decoder blocks.
        layers: the layers, ascending.
        names: the names; ``None`` for those that ``default`` gives for a block.
        default: the names within a block of the modules that are changed by default.

    Raises:
        InputError: a name is that of no linear module; says what there is.
    """
    if names is None:
        return [(layer, name) for layer in layers for name in default(blocks[layer])]
    there = [(layer, name) for layer in layers for name in _linear(blocks[layer])]
    for name in names:
        if not any(_has(place, name) for place in there):
            raise InputError(
                f"No linear module of the edited layers is called {name!r}.",
                got=f"layers {', '.join(map(str, layers))}",
                expected=", ".join(dict.fromkeys(inner for _, inner in there)),
            )
    return [place for place in there if any(_has(place, name) for name in names)]


def _linear(block: HFModule) -> Iterator[str]:
    return (name for name, module in block.named_modules() if isinstance(module, nn.Linear | Conv1D))


def _has(place: ModulePlace, name: str) -> bool:
    return f".{place[0]}.{place[1]}".endswith(f".{name}")
