"""A model in memory as a checkpoint in the files of its base: the same shards, names and index, and other weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from factsmith.artifacts.errors import DamagedArtifactError
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.placement import state_dict
from factsmith.tasks.model.checkpoint import Checkpoint, open_checkpoint
from factsmith.tasks.model.hub.weights import INDEX, weight_map
from factsmith.tasks.pipeline.progress import progress

__all__ = ["save_checkpoint"]

_CONFIG = "config.json"
_GENERATION = "generation_config.json"

_OWN = {"dtype", "torch_dtype", "architectures", "transformers_version", "_name_or_path"}
"""Settings of a config that do not change what its model computes from given weights."""


def save_checkpoint(base: Checkpoint, decoder: Decoder, folder: Path) -> None:
    """Write the present weights of ``decoder`` and everything that is loaded with them, and compare what was written.

    The weight files have the names of the base's, and the same tensors in each of them, in the data type of the model
    in memory. If transformers loads a tensor by another name than the file has, the model is saved as transformers
    does. Config, settings of generation, tokenizer and chat template are the base's.

    Afterwards, the files are opened as any checkpoint is, which checks the index and that each tensor of the model is
    there in its shape. Every tensor is compared with that in memory bit for bit, one at a time, the config with that of
    the base, and tokens with those of its tokenizer.

    Args:
        base: the checkpoint that the model was loaded from.
        decoder: the model.
        folder: an existing folder.

    Raises:
        DamagedArtifactError: what was read is not what was written.
    """
    state = state_dict(decoder.model)
    total = sum(tensor.nbytes for tensor in state.values())
    with progress("export", 2 * total) as advance:
        if (files := _tensors_by_file(base, decoder, state)) is None:
            decoder.save(folder)
            advance(total)
        else:
            _save(base, decoder, folder, files, state, advance)
        base.copy_tokenizer(folder)
        _compare(base, decoder, folder, state, advance)


def _tensors_by_file(
    base: Checkpoint, decoder: Decoder, state: Mapping[str, Tensor]
) -> dict[Path, dict[str, str | None]] | None:
    """For each weight file of the base, the name in memory of each of its tensors; ``None`` for a buffer that is not.

    ``None`` if the base has a tensor that is not in memory by its name, or memory has a parameter that no file has.
    """
    found: dict[Path, dict[str, str | None]] = {}
    for file in base.weight_files:
        found[file] = {}
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - It is not a dict.
                own = _name_in_memory(name, decoder, state)
                if own is None and not base.layout.is_buffer(name):
                    return None
                found[file][name] = own
    held = {state[name].data_ptr() for names in found.values() for name in names.values() if name is not None}
    parameters = (state[name] for name, _ in decoder.model.named_parameters())
    return found if all(one.data_ptr() in held for one in parameters) else None


def _name_in_memory(name: str, decoder: Decoder, state: Mapping[str, Tensor]) -> str | None:
    """The name in memory of a tensor of a file, which may lack the prefix of the base model or have one too many."""
    prefix = f"{decoder.model.base_model_prefix}."
    return next((one for one in (name, f"{prefix}{name}", name.removeprefix(prefix)) if one in state), None)


def _save(
    base: Checkpoint,
    decoder: Decoder,
    folder: Path,
    files: Mapping[Path, Mapping[str, str | None]],
    state: Mapping[str, Tensor],
    advance: Callable[[int], None],
) -> None:
    size = 0
    for file, names in files.items():
        with safe_open(file, framework="pt") as stored:
            tensors = {
                name: stored.get_tensor(name) if own is None else state[own].cpu().contiguous()
                for name, own in names.items()
            }
        shared: set[int] = set()
        for name, tensor in tensors.items():  # A file must not hold two tensors in the same memory.
            tensors[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in shared else tensor
            shared.add(tensor.untyped_storage().data_ptr())
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
        written = sum(tensor.nbytes for tensor in tensors.values())
        size += written
        advance(written)
    if weight_map(base.path) is not None:
        index = json.loads((base.path / INDEX).read_text(encoding="utf-8"))
        index["metadata"] = {**index.get("metadata", {}), "total_size": size}
        _write(folder / INDEX, index)
    config = json.loads((base.path / _CONFIG).read_text(encoding="utf-8"))
    dtype = str(decoder.model.dtype).removeprefix("torch.")
    config |= {name: dtype for name in ("dtype", "torch_dtype") if name in config} or {"dtype": dtype}
    config.setdefault("architectures", [type(decoder.model).__name__])
    _write(folder / _CONFIG, config)
    if (base.path / _GENERATION).is_file():
        shutil.copyfile(base.path / _GENERATION, folder / _GENERATION)
    else:  # Older checkpoints have these settings in the config.
        decoder.model.generation_config.save_pretrained(folder)


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _compare(
    base: Checkpoint, decoder: Decoder, folder: Path, state: Mapping[str, Tensor], advance: Callable[[int], None]
) -> None:
    """Compare a checkpoint with the model in memory that was written to it."""
    written = open_checkpoint(folder)
    written.check_readable()
    for file in written.weight_files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                own = _name_in_memory(name, decoder, state)
                if own is not None and not _same_bits(tensors.get_tensor(name), state[own]):
                    raise _different(file, f"tensor {name!r}")
                advance(state[own].nbytes if own is not None else 0)
    one, other = (_settings(checkpoint.config.to_dict()) for checkpoint in (written, base))
    if differing := sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)):
        raise _different(folder / _CONFIG, ", ".join(differing))
    texts = [*decoder.tokenizer.all_special_tokens, "The Eiffel Tower is in Paris."]
    if _tokens(written.load_tokenizer(), texts) != _tokens(decoder.tokenizer, texts):
        raise _different(folder, "the tokenizer")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether both have the same type, shape and bits. Zeros of two signs are not the same."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(tensor.cpu().contiguous().view(torch.uint8) for tensor in (one, other)))


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _OWN}


def _tokens(tokenizer: Any, texts: Sequence[str]) -> Any:
    return tokenizer(list(texts))["input_ids"]


def _different(file: Path, what: str) -> DamagedArtifactError:
    return DamagedArtifactError(
        "An export does not hold what was written to it.",
        got=f"{what} of {file.name} differs",
        remedy="check the disk, and export again",
    )
