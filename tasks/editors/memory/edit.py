"""The edit of an editor with a memory: the output of one MLP changes for the prompts that the memory knows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.batching import Prompts
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.edit.edit import Edit
from factsmith.tasks.editors.memory.calls import prompts_of_calls
from factsmith.tasks.editors.settings import WritingSettings

__all__ = ["MemoryEdit", "OneLayerMemory", "Respond", "check_one_layer"]

Respond = Callable[[Prompts, Tensor, Tensor], Tensor]
"""What a memory does in a pass. It takes the prompts of the rows, the keys (n, length, d_k) and the outputs
(n, length, d_model) of the MLP output projection, and returns the outputs of the edited model. It does not write into
what it takes, and a row that it does not answer for keeps its bits."""


class MemoryEdit(Edit):
    """A memory beside the MLP output projections of some layers, usually one."""

    adds_memory = True

    @property
    @abstractmethod
    def layers(self) -> Sequence[int]:
        """The layers, ascending. The lowest one decides about a prompt."""

    @property
    def first_layer(self) -> int:
        return self.layers[0]

    @abstractmethod
    def memory(self, layer: int, device: torch.device) -> Respond:
        """The memory beside ``layer``, with its tensors on ``device``."""

    def further_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors().values())

    @contextmanager
    def applied(self, decoder: Decoder) -> Iterator[None]:
        """Add the memory to the model while open.

        Passes of the decoder then have to say where their prompts end: see ``Decoder.prompted``. In calls of the
        transformers model, the attention mask says it: see ``prompts_of_calls``.
        """
        if decoder.has_memory:
            raise RuntimeError("this model has a memory already")
        self._check_range(decoder)
        with ExitStack() as stack:
            for layer in self.layers:
                hook = self._hook(decoder, layer)
                stack.callback(decoder.projection(layer).register_forward_hook(hook).remove)
            stack.enter_context(prompts_of_calls(decoder))
            stack.callback(setattr, decoder, "has_memory", False)
            decoder.has_memory = True
            yield

    def _hook(self, decoder: Decoder, layer: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        memory = cache(partial(self.memory, layer))

        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if decoder.prompts is None:
                raise RuntimeError("a pass of a model with a memory must say where its prompts end")
            # Some blocks join the rows of a pass.
            rows = len(decoder.prompts.ends)
            keys, outputs = (states.view(rows, -1, states.shape[-1]) for states in (inputs[0], output))
            return memory(keys.device)(decoder.prompts, keys, outputs).view_as(output)

        return hook

    def _check_range(self, decoder: Decoder) -> None:
        dtype = decoder.weight(self.layers[0]).dtype
        for name, tensor in self.tensors().items():
            if not tensor.to(dtype).isfinite().all():
                raise InputError(
                    f"The memory of layer {self.layers[0]} is NaN or infinite.",
                    got=f"{name} in {str(dtype).removeprefix('torch.')}",
                    expected="finite numbers",
                    remedy="set model.dtype=float32, or lower method.training.learning_rate",
                )


@dataclass(frozen=True)
class OneLayerMemory(MemoryEdit):
    """A memory beside one layer.

    Attributes:
        layer: the layer.
    """

    layer: int

    @property
    def layers(self) -> Sequence[int]:
        return (self.layer,)


def check_one_layer(method: WritingSettings, layers: Sequence[int]) -> None:
    """Check that only one layer is given.

    Raises:
        InputError: there are several.
    """
    if len(layers) > 1:
        raise InputError(
            f"method={method.name} adds a memory to one layer.",
            got=f"method.layers={list(layers)}",
            remedy="set method.layers to one of them",
        )
