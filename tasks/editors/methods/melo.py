"""MELO: blocks of low rank beside some layers, and an index of keys that chooses a block for a prompt
[Yu et al. 2024, "MELO: Enhancing Model Editing with Neuron-Indexed Dynamic LoRA"].

The index is a codebook over the keys of the lowest layer, with the rules of GRACE. The value of an entry is the number
of its block. A prompt within the radius of an entry goes through the entry's block, with all of its tokens and those
that follow: the block adds B A k to the output of each layer, A and B of rank ``melo.rank``. Only blocks are trained.

Every batch starts a new block, and another one after ``melo.facts`` new entries. A fact that widens an entry trains the
block of this entry further.

Differences from the authors' code: the blocks are at the MLP's output projections, and the index is at the lowest of
their layers, not one below. A widened entry keeps its key, which moves halfway there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from factsmith.tasks.decoder.batching import Prompts
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.edit.edit import Edit
from factsmith.tasks.editors.editor import Editor, Task, Written
from factsmith.tasks.editors.memory.codebook import Codebook
from factsmith.tasks.editors.memory.edit import MemoryEdit, Respond
from factsmith.tasks.editors.settings import WritingSettings
from factsmith.tasks.editors.training import FactPrompts, minimise, numbered_generator, written_with
from factsmith.tasks.model.cost import ModelCost

__all__ = ["EDITOR", "BlockEdit"]

_BLOCK = "melo block"


@dataclass(frozen=True)
class BlockEdit(MemoryEdit):
    """Blocks of low rank beside some layers.

    Attributes:
        at: the layers, ascending.
        index: the index. The value of an entry is the number of its block.
        right: A of each block and layer, (blocks, layers, rank, d_k) float32.
        left: B of each block and layer, (blocks, layers, d_model, rank) float32.
    """

    at: tuple[int, ...]
    index: Codebook
    right: Tensor
    left: Tensor
    kind = "melo"

    @property
    def layers(self) -> Sequence[int]:
        return self.at

    def memory(self, layer: int, device: torch.device) -> Respond:
        index, place = self.index.to(device), self.at.index(layer)
        right, left = self.right[:, place].to(device), self.left[:, place].to(device)

        def respond(prompts: Prompts, keys: Tensor, outputs: Tensor) -> Tensor:
            if (block := prompts.decided.get(_BLOCK)) is None:
                entry = index.find(prompts.at_ends(keys))
                numbers = index.values[:, 0].long()
                block = prompts.decided[_BLOCK] = torch.where(entry >= 0, numbers[entry], -1)
            block = block.to(device)  # The layer that decided may be on another device.
            rows = block >= 0
            outputs = outputs.clone()
            added = _added(keys[rows], right[block[rows]], left[block[rows]])
            outputs[rows] = (outputs[rows].float() + added).to(outputs.dtype)
            return outputs

        return respond

    def tensors(self) -> dict[str, Tensor]:
        """``keys`` (n, d_k), ``values`` (n, 1) and ``radii`` (n,) of the index, ``right`` and ``left``, float32."""
        index = {"keys": self.index.keys, "values": self.index.values, "radii": self.index.radii}
        return {**index, "right": self.right, "left": self.left}

    def values(self) -> dict[str, Any]:
        return {"layers": list(self.at), "labels": [list(label) for label in self.index.labels]}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Self:
        labels = tuple(map(tuple, values["labels"]))
        index = Codebook(tensors["keys"], tensors["values"], tensors["radii"], labels)
        return cls(tuple(values["layers"]), index, tensors["right"], tensors["left"])

    def summary(self) -> dict[str, Any]:
        return {"entries": len(self.index), "blocks": len(self.right)}

    def further_flop(self, lengths: Sequence[int]) -> float:
        """The distances to all keys for each prompt, and if all are routed, a block for each of their tokens."""
        block = self.right[0].numel() + self.left[0].numel()
        return 3.0 * len(lengths) * self.index.keys.numel() + 2.0 * sum(lengths) * block


class Melo(Editor):
    name = "melo"
    version = 1
    sections = ("training", "melo")
    edit = BlockEdit

    def entries(self, method: WritingSettings, layers: Sequence[int], cost: ModelCost, tokens: int) -> int:
        blocks = 1 + tokens // method.melo.facts  # A fact has a token or more.
        return tokens * cost.key_width + blocks * len(layers) * method.melo.rank * (cost.key_width + cost.width)

    def write(self, decoder: Decoder, before: Edit | None, task: Task) -> Written:
        assert before is None or isinstance(before, BlockEdit)
        settings, layers = task.method.melo, tuple(task.layers)
        prompts = FactPrompts(decoder, task, layers[0])
        index = before.index if before else Codebook.empty(decoder.key_width, 1)
        earlier = len(before.right) if before else 0
        index, entries = index.with_facts(
            prompts.keys()[:, 0],
            prompts.labels(),
            settings.radius,
            lambda _, made: torch.tensor([float(earlier + made // settings.facts)]),
        )
        blocks = [int(index.values[entry, 0]) if entry >= 0 else -1 for entry in entries]
        count = max(earlier, 1 + int(index.values.max()))
        right, left = (one.to(decoder.device).requires_grad_() for one in _with_new(before, decoder, task, count))
        with ExitStack() as stack:
            for place, layer in enumerate(layers):
                hook = _with_blocks(prompts, right, left, place, blocks)
                stack.callback(decoder.projection(layer).register_forward_hook(hook).remove)
            fits = minimise(prompts, [right, left])
        edit = BlockEdit(layers, index, right.detach().cpu(), left.detach().cpu())
        return written_with(edit, decoder, prompts, fits)


def _added(keys: Tensor, right: Tensor, left: Tensor) -> Tensor:
    """(rows, length, d_model) float32 B A k of each row's own block."""
    return keys.float() @ right.transpose(1, 2) @ left.transpose(1, 2)


def _with_new(before: BlockEdit | None, decoder: Decoder, task: Task, count: int) -> tuple[Tensor, Tensor]:
    """A and B of ``count`` blocks: the earlier ones, and new ones of which B is 0 and A random, as in LoRA.

    A new block depends on the seed and its number alone.
    """
    rank, layers, width = task.method.melo.rank, len(task.layers), decoder.key_width
    right, left = ([before.right], [before.left]) if before else ([], [])
    for number in range(len(before.right) if before else 0, count):
        generator = numbered_generator(task.method.training.seed, number)
        right.append((2 * torch.rand(1, layers, rank, width, generator=generator) - 1) / width**0.5)
        left.append(torch.zeros(1, layers, decoder.width, rank))
    return torch.cat(right), torch.cat(left)


def _with_blocks(
    prompts: FactPrompts, right: Tensor, left: Tensor, place: int, blocks: Sequence[int]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook on the layer at ``place`` that adds to each fact of the present pass what its own block makes of it."""

    def put(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = [row for row, fact in enumerate(prompts.present) if blocks[fact] >= 0]
        chosen = [blocks[prompts.present[row]] for row in rows]
        keys, outputs = (states.view(len(prompts.present), -1, states.shape[-1]) for states in (inputs[0], output))
        added = _added(keys[rows], right[chosen, place].to(keys.device), left[chosen, place].to(keys.device))
        outputs = outputs.clone()
        outputs[rows] = outputs[rows] + added.to(outputs.dtype)
        return outputs.view_as(output)

    return put


EDITOR = Melo()
