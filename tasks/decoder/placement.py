"""Models larger than a device: which part lies where, and where a weight is while it does not run.

``accelerate`` moves what a block needs to where the block runs. A block that lies in CPU memory while a GPU runs it is
*offloaded*: its parameters are empty (on the meta device) but for the moment of its forward pass, and the real tensors
are in a map that its hook keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from accelerate import infer_auto_device_map  # type: ignore[import-untyped]
from accelerate.hooks import AlignDevicesHook, SequentialHook  # type: ignore[import-untyped]
from accelerate.utils import get_balanced_memory, get_max_memory  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from factsmith.artifacts.errors import InputError

__all__ = ["DeviceMap", "device_map", "empty_model", "execution_device", "is_offloaded", "state_dict", "stored"]

DeviceMap: TypeAlias = dict[str, int | str]
"""Index of a GPU, or ``cpu``, by the name of a module."""

_MB = 2**20
_GPU_SHARE = 0.9
"""Of what is free on a GPU that weights take if nobody says how much: activations need the rest."""


def device_map(
    config: PretrainedConfig,
    blocks: Callable[[Any], nn.ModuleList],
    *,
    dtype: torch.dtype,
    device: torch.device,
    gpu_memory_mb: int | None,
    cpu_memory_mb: int | None,
) -> DeviceMap:
    """Spread a model over GPUs, then CPU memory. Needs no weights.

    Args:
        config: of the model.
        blocks: finds the decoder blocks of the model, which are never divided.
        dtype: of the weights.
        device: ``cuda`` for all GPUs, ``cuda:N`` for one, ``cpu`` for none.
        gpu_memory_mb: MiB of weights on a GPU at most; ``None`` for nine tenths of what is free.
        cpu_memory_mb: MiB of weights in CPU memory at most; ``None`` for what is free.

    Raises:
        InputError: the model does not fit; says how large it is and what there is.
    """
    model = empty_model(config, dtype)
    model.tie_weights()
    whole = [type(blocks(model)[0]).__name__]
    memory = _memory(get_max_memory(), device, gpu_memory_mb, cpu_memory_mb)
    balanced = get_balanced_memory(model, max_memory=dict(memory), no_split_module_classes=whole, dtype=dtype)
    found: DeviceMap = infer_auto_device_map(
        model, max_memory=dict(balanced), no_split_module_classes=whole, dtype=dtype
    )
    if "disk" in found.values():
        size = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
        room = ", ".join(
            f"{'CPU' if place == 'cpu' else f'GPU {place}'} {share / _MB:,.0f} MB" for place, share in memory.items()
        )
        raise InputError(
            "The model does not fit the memory that its weights may take.",
            got=f"{size / _MB:,.0f} MB of weights, and room for one more block",
            expected=f"at most {room}",
            remedy="raise runtime.gpu_memory_mb or runtime.cpu_memory_mb if there is more, or set "
            "model.dtype=bfloat16; weights are never run from the disk",
        )
    return found


def empty_model(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> Any:
    """A model on the meta device, where tensors have shapes and no bytes."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _memory(
    free: Mapping[int | str, int], device: torch.device, gpu_memory_mb: int | None, cpu_memory_mb: int | None
) -> dict[int | str, int]:
    """Bytes that weights may take, by GPU and for the CPU."""
    chosen: dict[int | str, int] = {}
    for place, size in free.items():
        if place == "cpu":
            chosen[place] = min(size, cpu_memory_mb * _MB) if cpu_memory_mb else size
        elif isinstance(place, int) and device.type == "cuda" and device.index in (None, place):
            chosen[place] = min(size, gpu_memory_mb * _MB) if gpu_memory_mb else int(size * _GPU_SHARE)
    return chosen


def execution_device(module: nn.Module) -> torch.device:
    """Where ``module`` runs."""
    for hook in _hooks(module):
        if hook.execution_device is not None:
            return torch.device(hook.execution_device)
    return next(module.parameters()).device


def is_offloaded(module: nn.Module) -> bool:
    """Whether ``module``, or a part of it, lies elsewhere than where it runs."""
    return any(hook.offload for part in module.modules() for hook in _hooks(part))


def stored(module: nn.Module, name: str) -> Tensor:
    """The parameter ``name`` of ``module`` where it lies: to write into it is to change the model."""
    for hook in _hooks(module):
        if hook.offload:
            tensor: Tensor = hook.weights_map[name]
            return tensor
    parameter: Tensor = getattr(module, name)
    return parameter


def state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of ``model`` by name, where it lies; tied ones share memory."""
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        found[name] = stored(model.get_submodule(owner), leaf) if tensor.is_meta else tensor
    return found


def _hooks(module: nn.Module) -> Iterator[AlignDevicesHook]:
    hook: Any = getattr(module, "_hf_hook", None)
    for one in hook.hooks if isinstance(hook, SequentialHook) else [hook]:
        if isinstance(one, AlignDevicesHook):
            yield one
