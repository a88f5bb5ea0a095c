"""The tensors of a checkpoint against those of its model, and the tokens of its tokenizer against its embedding.

Transformers initialises missing weights at random and ignores unexpected ones, with no more than a warning. The model
that comes out works, and is wrong. Its loader says which they are, and knows tied weights and the buffers that need not
be there. Only the headers of the files are read.

A token without a row in the embedding would end a run with an index error, or on a GPU with worse.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.layout import Layout
from factsmith.tasks.decoder.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

__all__ = [
    "StoredTensor",
    "check_index",
    "check_tensors",
    "check_token_ids",
    "check_types",
    "named",
    "own_dtype",
    "refuse_adapter",
    "refuse_incomplete",
    "said",
    "stored_tensors",
    "tensors_in",
    "unreadable",
]

_WRAPPERS = {
    "_orig_mod.": "save the model inside torch.compile's wrapper: model._orig_mod.save_pretrained(...)",
    "module.": "save the model inside the wrapper: model.module.save_pretrained(...)",
    "base_model.model.": "merge the adapter first: model.merge_and_unload().save_pretrained(...)",
}
"""Prefixes that wrappers put before the names of tensors, with how to save a model without them."""

_ADAPTERS = re.compile(r"\.(base_layer|lora_[AB]|lora_embedding_[AB])\.")
_MERGE = _WRAPPERS["base_model.model."]

_ADAPTER = "adapter_config.json"

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Data types of weights by their name in safetensors files."""

_MOST_NAMED = 5

logger = logging.getLogger(__name__)


def check_tensors(path: Path, config: PretrainedConfig, layout: Layout) -> None:
    """Check that a checkpoint has every tensor of its model, and no other.

    Raises:
        InputError: names the tensors that are missing, unexpected or of another shape, and says how to mend it.
    """
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except Exception as error:  # Whatever it is, the config is at fault: nothing is computed here.
            if (raised := unreadable(path, error)) is error:
                return  # Memory is too small. The stage that loads the model says so.
            raise raised from None
    _, info = loaded
    refuse_incomplete(path, info, layout)


def unreadable(path: Path, error: Exception) -> Exception:
    """The error to raise if transformers cannot load a checkpoint: ``error`` itself if memory is too small for it."""
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
        return error  # The model is not at fault.
    got = said(error)
    if isinstance(error, SafetensorError) or "deserializing header" in str(error):
        return InputError(f"A weight file of {path} is not a complete safetensors file.", got=got)
    return InputError(
        f"The model {path} cannot be loaded.",
        got=got,
        remedy="check config.json: it should be the one that was saved with these weights",
    )


def said(error: Exception) -> str:
    """The first line of what ``error`` says, after its type."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def refuse_incomplete(path: Path, info: Mapping[str, Any], layout: Layout) -> None:
    """Refuse a checkpoint if transformers found fault with its tensors.

    Args:
        path: the checkpoint.
        info: what transformers says about the tensors after loading (``output_loading_info``).
        layout: the layout of the model's family, which knows the buffers that may be there.

    Raises:
        InputError: as in ``check_tensors``.
    """
    missing = set(info["missing_keys"])
    unexpected = {name for name in info["unexpected_keys"] if not layout.is_buffer(name)}
    if missing or unexpected:
        parts = [("missing", missing), ("unexpected", unexpected)]
        got = "; ".join(f"{len(names)} {what}: {named(names)}" for what, names in parts if names)
        raise InputError(
            f"The tensors of {path} are not those of a {layout.model_type} model with this config.json.",
            got=got,
            expected="every tensor of the model, and no other",
            remedy=_remedy(missing, unexpected),
        )
    for name, got, expected in sorted(info["mismatched_keys"]):
        raise InputError(
            f"Tensor {name!r} of {path} does not have the shape that config.json says.",
            got=_shape(got),
            expected=_shape(expected),
            remedy="use the config.json that was saved with these weights",
        )


def _remedy(missing: Collection[str], unexpected: Collection[str]) -> str:
    for prefix, remedy in _WRAPPERS.items():
        if unexpected and all(name.startswith(prefix) for name in unexpected):
            return remedy
    if any(map(_ADAPTERS.search, unexpected)):
        return _MERGE
    if missing:
        return "download or save the checkpoint again: without these tensors, parts of the model would be random"
    return "use the config.json that was saved with these weights, or save the model again with save_pretrained"


def named(names: Iterable[str]) -> str:
    """The first few of ``names``, for a message."""
    shown = sorted(names)
    return ", ".join(shown[:_MOST_NAMED]) + (", ..." if len(shown) > _MOST_NAMED else "")


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header of its file describes it.

    Attributes:
        name: its name.
        file: the safetensors file.
        dtype: its data type, as safetensors names it: F32, BF16, ...
        size: number of its entries.
    """

    name: str
    file: Path
    dtype: str
    size: int


def stored_tensors(files: Iterable[Path]) -> list[StoredTensor]:
    """The tensors in safetensors files. Only headers are read.

    Raises:
        InputError: a file is not safetensors.
    """
    return [
        StoredTensor(name, file, piece.get_dtype(), torch.Size(piece.get_shape()).numel())
        for file in files
        for name, piece in _pieces(file)
    ]


def tensors_in(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each tensor in safetensors files, one at a time.

    Raises:
        InputError: a file is not safetensors.
    """
    for file in files:
        for name, piece in _pieces(file):
            yield name, piece[...]


def _pieces(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - It is not a dict.
                yield name, tensors.get_slice(name)
    except SafetensorError as error:
        raise InputError(f"{file} is not a complete safetensors file.", got=error) from None


def check_index(path: Path, stored: Iterable[StoredTensor], weight_map: Mapping[str, str], layout: Layout) -> None:
    """Check that an index names the one file in which each tensor is.

    Transformers reads every file of the index whole. Of two tensors of one name, it keeps the one that it reads last.

    Args:
        path: the checkpoint.
        stored: the tensors in the files of the index.
        weight_map: the file of each tensor, as the index says.
        layout: the layout of the model's family, which knows the buffers that need not be listed.

    Raises:
        InputError: names a tensor that is in another file, in several, or in none.
    """
    places: dict[str, list[str]] = {name: [] for name in weight_map}
    for tensor in stored:
        places.setdefault(tensor.name, []).append(tensor.file.name)
    for name, found in places.items():
        listed = weight_map.get(name)
        if found != [listed] and not (listed is None and layout.is_buffer(name)):
            raise InputError(
                f"The index of {path} does not say where tensor {name!r} is.",
                got=f"{listed or 'nothing'} in the index, but the tensor is in {' and '.join(found) or 'no file'}",
                expected="the one file that contains the tensor",
                remedy="download the checkpoint again, or save the model again with save_pretrained",
            )


def check_types(path: Path, stored: Iterable[StoredTensor], layout: Layout) -> None:
    """Check that every weight is stored in a type that can be edited.

    Transformers casts integers and float8 without their scale.

    Raises:
        InputError: names a weight that is stored in another type.
    """
    for tensor in stored:
        if tensor.dtype not in (*_DTYPES, "F64") and not layout.is_buffer(tensor.name):
            raise InputError(
                f"Tensor {tensor.name!r} of {path} is not stored as a weight that can be edited.",
                got=tensor.dtype,
                expected=f"one of {', '.join(_DTYPES)}",
                remedy="use the checkpoint before it was quantised, or save the model dequantised with save_pretrained",
            )


def refuse_adapter(path: Path) -> None:
    """Refuse a checkpoint with an adapter beside its weights: whether it is loaded depends on what is installed.

    Raises:
        InputError: there is an adapter.
    """
    if (path / _ADAPTER).is_file():
        raise InputError(
            f"{path} has an adapter beside the weights.",
            got=_ADAPTER,
            expected="a model without an adapter",
            remedy=f"{_MERGE}, or take the adapter's files out of the folder",
        )


def own_dtype(path: Path, stored: Iterable[StoredTensor], layout: Layout) -> str:
    """The data type of most of a checkpoint's weights, as the setting ``model.dtype`` names it.

    Logs a warning if others have a wider one, because the model is held in one type.

    Raises:
        InputError: a model cannot be run in this type.
    """
    counts: Counter[str] = Counter()
    for tensor in stored:
        if not layout.is_buffer(tensor.name):
            counts[tensor.dtype] += tensor.size
    floating = {name: count for name, count in counts.items() if name.startswith(("F", "BF"))}
    found = max(floating, key=lambda name: floating[name], default="none")
    if found not in _DTYPES:
        raise InputError(
            f"The weights of the model {path} have no data type that a model can be edited in.",
            got=found,
            expected=f"one of {', '.join(_DTYPES)}",
            remedy="set model.dtype=float32 to convert them",
        )
    if narrowed := {name for name in floating if name in ("F32", "F64") and found in ("BF16", "F16")}:
        logger.warning(
            "%s: weights that are stored in %s are converted to %s, as most of its weights are; set "
            "model.dtype=float32 to keep all of them",
            path,
            " and ".join(sorted(narrowed)),
            _DTYPES[found],
        )
    return _DTYPES[found]


def check_token_ids(tokenizer: PreTrainedTokenizerFast, rows: int, where: str) -> None:
    """Check that the embedding has a row for every token that a text can have.

    A special token without a row, such as one for padding that was added later, is harmless if no text contains it.
    Special tokens in texts are then read as plain text.

    Raises:
        InputError: names the tokens without a row.
    """
    beyond = {token for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return
    tokenizer.split_special_tokens = True
    always = {str(token) for token in tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"])}
    if unusable := beyond - set(tokenizer.all_special_tokens) | beyond & always:
        raise InputError(
            f"The tokenizer of {where} has tokens for which the model has no embedding.",
            got=named(map(repr, unusable)),
            expected=f"token ids below {rows:,}, the number of rows of the embedding",
            remedy="call model.resize_token_embeddings(len(tokenizer)) and train the new rows, or take the tokens out "
            "of the tokenizer",
        )
