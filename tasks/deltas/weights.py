"""The weights of a model by name, with checksums: which state of which model they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from factsmith.artifacts.recipe import digest_of
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.layout import canonical_weight, module_name
from factsmith.tasks.decoder.placement import state_dict
from factsmith.tasks.edit.delta import Delta
from factsmith.tasks.edit.edit import ChangedWeights, Edit, ModulePlace

__all__ = ["as_stored", "changes_of", "checksum", "checksums", "state_of", "stored_bytes", "tensor_name", "weight_at"]


def checksum(tensor: Tensor) -> str:
    """SHA-256 of a tensor's data type, shape and bytes, wherever it is and however it is laid out in memory."""
    found = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    rows = tensor.detach().cpu().contiguous()
    found.update(rows.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def checksums(decoder: Decoder, advance: Callable[[int], None] = lambda done: None) -> dict[str, str]:
    """The checksum of every stored tensor of a model, by name. Calls ``advance`` with the number of bytes read."""
    by_place: dict[tuple[int, torch.Size, torch.dtype], str] = {}
    found: dict[str, str] = {}
    for name, tensor in state_dict(decoder.model).items():
        place = tensor.data_ptr(), tensor.shape, tensor.dtype
        if place not in by_place:  # Tied tensors are read once.
            by_place[place] = checksum(tensor)
            advance(tensor.nbytes)
        found[name] = by_place[place]
    return found


def stored_bytes(decoder: Decoder) -> int:
    """The bytes that ``checksums`` reads."""
    return sum({one.data_ptr(): one.nbytes for one in state_dict(decoder.model).values()}.values())


def state_of(found: Mapping[str, str]) -> str:
    """One checksum for all of ``found``, which names the state of the weights.

    It does not depend on the files that hold the weights, so that a checkpoint that is saved again has the same state.
    """
    return digest_of(dict(found))


def changes_of(edit: Edit, decoder: Decoder) -> dict[ModulePlace, Delta]:
    """The change of each module of ``decoder`` that ``edit`` changes. It must be an edit of weights."""
    assert isinstance(edit, ChangedWeights)
    return edit.by_module(decoder.blocks, decoder.layout)


def weight_at(decoder: Decoder, place: ModulePlace) -> Tensor:
    """The weight (d_out, d_in) of the module at ``place``. To write into it changes the model.

    Raises:
        AttributeError: the model has no such module.
    """
    return canonical_weight(decoder.blocks[place[0]].get_submodule(place[1]))


def as_stored(decoder: Decoder, place: ModulePlace, weight: Tensor) -> Tensor:
    """``weight`` (d_out, d_in) as the module at ``place`` stores it: transposed in a ``Conv1D``."""
    return weight.T if isinstance(decoder.blocks[place[0]].get_submodule(place[1]), Conv1D) else weight


def tensor_name(decoder: Decoder, place: ModulePlace) -> str:
    """The name in the model of the weight of the module at ``place``."""
    return f"{module_name(decoder.model, decoder.blocks[place[0]])}.{place[1]}.weight"
