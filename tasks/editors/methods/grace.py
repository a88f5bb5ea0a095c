"""GRACE: a codebook beside one layer answers for the prompts of facts, and the weights stay as they are
[Hartvigsen et al. 2023, "Aging with GRACE"].

An entry has the key of a fact's prompt at its last token, a radius, and a value. For a prompt within the radius, the
value takes the place of the MLP's output at that token. The tokens that follow see it through the attention of the
layers above. Only values are trained. The layer is the MLP output projection, as EasyEdit has it for Llama and GPT-J.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from factsmith.tasks.decoder.batching import Prompts
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.generation import generator_for
from factsmith.tasks.edit.edit import Edit
from factsmith.tasks.editors.editor import Editor, Task, Written
from factsmith.tasks.editors.memory.codebook import Codebook
from factsmith.tasks.editors.memory.edit import OneLayerMemory, Respond, check_one_layer
from factsmith.tasks.editors.settings import WritingSettings
from factsmith.tasks.editors.training import FactPrompts, minimise, written_with
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.model.cost import ModelCost

__all__ = ["EDITOR", "CodebookEdit"]

_ENTRY = "grace entry"


@dataclass(frozen=True)
class CodebookEdit(OneLayerMemory):
    """A codebook beside one layer.

    Attributes:
        codebook: the codebook.
    """

    codebook: Codebook
    kind = "grace"

    def memory(self, layer: int, device: torch.device) -> Respond:
        codebook = self.codebook.to(device)

        def respond(prompts: Prompts, keys: Tensor, outputs: Tensor) -> Tensor:
            if _ENTRY in prompts.decided:  # These passes continue prompts, whose last tokens have answered.
                return outputs
            entry = prompts.decided[_ENTRY] = codebook.find(prompts.at_ends(keys))
            rows = (entry >= 0).nonzero()[:, 0]
            outputs = outputs.clone()
            outputs[rows, prompts.ends.to(device)[rows]] = codebook.values[entry[rows]].to(outputs.dtype)
            return outputs

        return respond

    def tensors(self) -> dict[str, Tensor]:
        """``keys`` (n, d_k), ``values`` (n, d_model) and ``radii`` (n,), float32."""
        return {"keys": self.codebook.keys, "values": self.codebook.values, "radii": self.codebook.radii}

    def values(self) -> dict[str, Any]:
        return {"layer": self.layer, "labels": [list(label) for label in self.codebook.labels]}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Self:
        return cls(values["layer"], Codebook(**tensors, labels=tuple(map(tuple, values["labels"]))))

    def summary(self) -> dict[str, Any]:
        return {"entries": len(self.codebook)}

    def further_flop(self, lengths: Sequence[int]) -> float:
        """A difference, a square and a sum for each number of the keys, once for each prompt."""
        return 3.0 * len(lengths) * self.codebook.keys.numel()


class Grace(Editor):
    name = "grace"
    version = 1
    sections = ("training", "grace")
    edit = CodebookEdit

    def check(self, method: WritingSettings, layers: Sequence[int], facts: int) -> None:
        check_one_layer(method, layers)

    def entries(self, method: WritingSettings, layers: Sequence[int], cost: ModelCost, tokens: int) -> int:
        return tokens * (cost.key_width + cost.width + 1)  # A fact has a token or more.

    def write(self, decoder: Decoder, before: Edit | None, task: Task) -> Written:
        """Enter the facts one after another, then train the values of their entries together.

        The values do not depend on each other, so this is the same as training one after another.
        """
        assert before is None or isinstance(before, CodebookEdit)
        (layer,) = task.layers
        prompts = FactPrompts(decoder, task, layer)
        codebook = before.codebook if before else Codebook.empty(decoder.key_width, decoder.width)
        keys = prompts.keys()[:, 0]
        codebook, entries = codebook.with_facts(
            keys,
            prompts.labels(),
            task.method.grace.radius,
            lambda place, _: self._start(decoder, layer, task, place, keys[place]),
        )
        values = codebook.values.to(decoder.device).requires_grad_()
        handle = decoder.projection(layer).register_forward_hook(_with_values(decoder, prompts, values, entries))
        try:
            fits = minimise(prompts, [values])
        finally:
            handle.remove()
        edit = CodebookEdit(layer, replace(codebook, values=values.detach().cpu()))
        return written_with(edit, decoder, prompts, fits)

    def _start(self, decoder: Decoder, layer: int, task: Task, place: int, key: Tensor) -> Tensor:
        """(d_model,) float32 value of a fact's entry before it is trained."""
        if task.method.grace.start == "output":
            projection = decoder.projection(layer)
            with torch.no_grad():
                output: Tensor = projection(key.to(decoder.device, decoder.weight(layer).dtype)[None])
            return output[0].float().cpu()
        return _random_value(task.requests[place], decoder.width, task.method.training.seed)


def _random_value(request: EditRequest, width: int, seed: int) -> Tensor:
    """(width,) uniform in [0, 1), as in the authors' code. It depends on the fact and the seed alone."""
    return torch.rand(width, generator=generator_for({"seed": seed, "fact": request.fact_digest}))


def _with_values(
    decoder: Decoder, prompts: FactPrompts, values: Tensor, entries: Sequence[int]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook that gives each fact of the present pass the value of its own entry."""

    def put(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert decoder.prompts is not None
        rows = [row for row, fact in enumerate(prompts.present) if entries[fact] >= 0]
        chosen = values[[entries[prompts.present[row]] for row in rows]].to(output)
        outputs = output.view(len(prompts.present), -1, output.shape[-1]).clone()
        outputs[rows, decoder.prompts.ends[rows].to(output.device)] = chosen
        return outputs.view_as(output)

    return put


EDITOR = Grace()
