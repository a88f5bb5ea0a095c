"""Models that are larger than one device: the device of each part, and access to weights that are offloaded.

``accelerate`` moves the weights of a block to the device that runs it. A block is *offloaded* if it is kept in CPU
memory and runs on a GPU. Outside its forward pass, the parameters of an offloaded block are empty (on the meta device).
The real tensors are in a map that the block's hook keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from factsmith.artifacts.errors import InputError

if TYPE_CHECKING:
    from accelerate.hooks import AlignDevicesHook  # type: ignore[import-untyped]
    from transformers import PretrainedConfig

__all__ = ["DeviceMap", "device_map", "empty_model", "execution_device", "is_offloaded", "state_dict", "stored"]

DeviceMap: TypeAlias = dict[str, int | str]
"""The device of each module, by the module's name: the index of a GPU, or ``cpu``."""

_MB = 2**20
_GPU_SHARE = 0.9
"""Share of a GPU's free memory that weights take if no limit is set. Activations need the rest."""


def device_map(
    config: PretrainedConfig,
    blocks: Callable[[Any], nn.ModuleList],
    *,
    dtype: torch.dtype,
    device: torch.device,
    gpu_memory_mb: int | None,
    cpu_memory_mb: int | None,
) -> DeviceMap:
    """Spread a model over the GPUs first, then CPU memory. This does not need the weights.

    Args:
        config: the model's config.
        blocks: returns the decoder blocks of a model. A block is never split between devices.
        dtype: data type of the weights.
        device: ``cuda`` for all GPUs, ``cuda:N`` for one, ``cpu`` for none.
        gpu_memory_mb: most weights on each GPU, in MiB; ``None`` for nine tenths of the free memory.
        cpu_memory_mb: most weights in CPU memory, in MiB; ``None`` for all of the free memory.

    Raises:
        InputError: the model does not fit; gives its size and the available memory.
    """
    from accelerate import infer_auto_device_map  # type: ignore[import-untyped]
    from accelerate.utils import get_balanced_memory, get_max_memory  # type: ignore[import-untyped]

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
            "The model does not fit the memory that is available for its weights.",
            got=f"{size / _MB:,.0f} MB of weights, plus room for one more block",
            expected=f"at most {room}",
            remedy="raise runtime.gpu_memory_mb or runtime.cpu_memory_mb if the machine has more memory, or set "
            "model.dtype=bfloat16; weights are never offloaded to the disk",
        )
    return found


def empty_model(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> Any:
    """A model on the meta device, where tensors have a shape but no data."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _memory(
    free: Mapping[int | str, int], device: torch.device, gpu_memory_mb: int | None, cpu_memory_mb: int | None
) -> dict[int | str, int]:
    """Bytes available for weights on each chosen GPU and in CPU memory."""
    chosen: dict[int | str, int] = {}
    for place, size in free.items():
        if place == "cpu":
            chosen[place] = min(size, cpu_memory_mb * _MB) if cpu_memory_mb else size
        elif isinstance(place, int) and device.type == "cuda" and device.index in (None, place):
            chosen[place] = min(size, gpu_memory_mb * _MB) if gpu_memory_mb else int(size * _GPU_SHARE)
    return chosen


def execution_device(module: nn.Module) -> torch.device:
    """The device that ``module`` runs on."""
    for hook in _hooks(module):
        if hook.execution_device is not None:
            return torch.device(hook.execution_device)
    return next(module.parameters()).device


def is_offloaded(module: nn.Module) -> bool:
    """Whether ``module`` or a part of it is kept on another device than the one that runs it."""
    return any(hook.offload for part in module.modules() for hook in _hooks(part))


def stored(module: nn.Module, name: str) -> Tensor:
    """The stored tensor of parameter ``name`` of ``module``, offloaded or not. Writing into it changes the model."""
    for hook in _hooks(module):
        if hook.offload:
            tensor: Tensor = hook.weights_map[name]
            return tensor
    parameter: Tensor = getattr(module, name)
    return parameter


def state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The stored tensor of every parameter and buffer of ``model``, by name. Tied ones share memory."""
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        found[name] = stored(model.get_submodule(owner), leaf) if tensor.is_meta else tensor
    return found


def _hooks(module: nn.Module) -> Iterator[AlignDevicesHook]:
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is None:
        return
    from accelerate.hooks import AlignDevicesHook, SequentialHook

    for one in hook.hooks if isinstance(hook, SequentialHook) else [hook]:
        if isinstance(one, AlignDevicesHook):
            yield one
