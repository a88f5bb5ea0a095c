"""Loading a model: each weight goes from its file to its device, and only what is needed is read.

Transformers knows the names, the tied weights, the buffers that are computed, and the data type of each weight. It gets
tensors that are read when it slices them, which it does for those that the model has, several at the same time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig

from factsmith.tasks.decoder.layout import HFModel, Layout
from factsmith.tasks.decoder.placement import DeviceMap, empty_model
from factsmith.tasks.decoder.quiet import quiet_transformers
from factsmith.tasks.model.tensors import refuse_incomplete, unreadable

__all__ = ["load_model", "model_of"]

_TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def load_model(
    path: Path,
    config: PretrainedConfig,
    layout: Layout,
    files: Sequence[Path],
    *,
    dtype: str,
    device_map: DeviceMap,
    blocks: int | None = None,
) -> HFModel:
    """The model in memory. Its weights are never pages of the files, so whoever writes to these does not change it.

    Args:
        path: the folder of the checkpoint.
        config: its config.
        layout: the layout of its family.
        files: the safetensors files with its weights.
        dtype: data type of the weights in memory.
        device_map: the device of each module, by name; the name "" is the whole model.
        blocks: read only the embedding and the first ``blocks`` blocks. The output embedding is then on the meta
            device, where it cannot run. ``None`` for all of the model.

    Raises:
        InputError: the files cannot be read, or do not have every tensor of the model.
    """
    whole = blocks is None
    config = config if blocks is None else layout.shortened(config, blocks)
    with quiet_transformers(), ExitStack() as opened:
        try:
            empty = empty_model(config, getattr(torch, dtype))
            model, info = _filled(
                empty if whole else empty.base_model,
                layout,
                _unread(files, opened, own="cpu" in _kinds(device_map)),
                device_map=device_map,
                generation=_generation_config(path) if whole else None,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise unreadable(path, error) from None
    refuse_incomplete(path, info if whole else {**info, "unexpected_keys": set()}, layout)
    if whole:
        return model
    setattr(empty, empty.base_model_prefix, model)
    return empty


def model_of(empty: HFModel, layout: Layout, tensors: Mapping[str, Tensor], device: torch.device) -> HFModel:
    """A model with these parameters, in memory of its own.

    Args:
        empty: the model without data, in the data type that the weights are to have. See ``empty_model``.
        layout: the layout of its family.
        tensors: its parameters by name. Those that are tied to others may be missing.
        device: the device of the weights.
    """
    own = {name: tensor.to(empty.dtype, copy=True) for name, tensor in tensors.items()}
    with quiet_transformers():
        return _filled(empty, layout, own, device_map={"": str(device)}, generation=None)[0]


def _kinds(device_map: DeviceMap) -> set[str]:
    return {str(place).partition(":")[0] for place in device_map.values()}


def _filled(
    empty: HFModel,
    layout: Layout,
    tensors: Mapping[str, Any],
    *,
    device_map: DeviceMap,
    generation: GenerationConfig | None,
) -> tuple[HFModel, dict[str, Any]]:
    """The model ``empty`` with its tensors, and what transformers says about these."""
    loaded: Any = type(empty).from_pretrained(
        None,
        config=empty.config,
        state_dict=tensors,
        dtype=empty.dtype,
        # Without a map the model is on the CPU as well, but as one that is not spread over devices.
        device_map=None if _kinds(device_map) == {"cpu"} else device_map,
        attn_implementation=layout.attention_implementation,
        generation_config=generation,
        output_loading_info=True,
    )
    model, info = loaded
    return model, info


def _generation_config(path: Path) -> GenerationConfig:
    """The settings of generation, which older checkpoints have in the config of the model."""
    try:
        return GenerationConfig.from_pretrained(path, local_files_only=True)
    except OSError:
        return GenerationConfig.from_pretrained(
            path, config_file_name="config.json", _from_model_config=True, local_files_only=True
        )


def _unread(files: Sequence[Path], opened: ExitStack, *, own: bool) -> dict[str, Any]:
    """The tensors in ``files``, by name, as objects that read the tensor when they are sliced.

    Args:
        files: the safetensors files.
        opened: closes what must stay open until the tensors have been read.
        own: read tensors into memory of their own. Otherwise they are pages of the files, to be copied to a GPU.
    """
    if own:
        return {name: tensor for file in files for name, tensor in _file_tensors(file).items()}
    found: dict[str, Any] = {}
    for file in files:
        tensors = opened.enter_context(safe_open(file, framework="pt"))
        found |= {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - It is not a dict.
    return found


@dataclass(frozen=True)
class _FileTensor:
    """A tensor in a file, which is read into memory of its own when it is sliced.

    As pages of the file, the memory would change with the file, and be aligned in another way. The last bits of
    products depend on the alignment.

    Attributes:
        file: the safetensors file.
        start: the place of its first byte.
        size: number of its bytes.
        dtype: its data type, as safetensors names it.
        shape: its shape.
    """

    file: Path
    start: int
    size: int
    dtype: str
    shape: Sequence[int]

    def __getitem__(self, _: Any) -> Tensor:
        """The whole tensor."""
        memory = torch.empty(self.size, dtype=torch.uint8)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start)
            left = memory.numpy().data
            while left:  # The system reads at most 2 GB at once.
                count = file.readinto(left)
                if not count:
                    raise OSError(f"{self.file} ends before its last tensor")
                left = left[count:]
        return memory.view(_TYPES[self.dtype]).view(self.shape)


def _file_tensors(file: Path) -> dict[str, _FileTensor]:
    with safe_open(file, framework="pt"):  # It checks the header.
        pass
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header: Mapping[str, Any] = json.loads(opened.read(length))
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            found[name] = _FileTensor(file, 8 + length + start, stop - start, entry["dtype"], entry["shape"])
    return found
