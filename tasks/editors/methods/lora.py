"""LoRA: low-rank changes of linear modules, trained on the facts in all contexts  [Hu et al. 2022].

The change of a module is alpha / rank times B A, with A (rank, d_in) drawn at random and B (d_out, rank) zero at the
start. PEFT puts A and B beside the modules while they are trained. The edit is the product, and no longer needs PEFT.

In a sequence, the same A and B are trained further, as in EasyEdit, so that the rank does not grow.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.layout import canonical_weight
from factsmith.tasks.decoder.placement import empty_model, execution_device
from factsmith.tasks.edit.delta import Delta, LowRankDelta
from factsmith.tasks.edit.edit import Edit, ModuleEdit, ModulePlace
from factsmith.tasks.editors.editor import Described, Editor, Task, Written
from factsmith.tasks.editors.modules import find_modules
from factsmith.tasks.editors.settings import WritingSettings
from factsmith.tasks.editors.training import FactPrompts, minimise
from factsmith.tasks.model.cost import ModelCost

__all__ = ["EDITOR"]

_ADAPTER = "default"


class Lora(Editor):
    name = "lora"
    version = 1
    sections = ("training", "lora")
    edit = ModuleEdit
    uses_contexts = True

    def check(self, method: WritingSettings, layers: Sequence[int], facts: int) -> None:
        if importlib.util.find_spec("peft") is None:
            raise InputError("PEFT, which trains LoRA, is not installed.", remedy="pip install 'factsmith[lora]'")

    def check_model(self, method: WritingSettings, layers: Sequence[int], model: Described) -> None:
        blocks = model.layout.blocks(empty_model(model.config))
        for layer, name in find_modules(blocks, layers, method.lora.modules, model.layout.query_value):
            smaller = min(canonical_weight(blocks[layer].get_submodule(name)).shape)
            if method.lora.rank > smaller:
                raise InputError(
                    f"{name} of layer {layer} has no change of rank {method.lora.rank}.",
                    expected=f"a rank of at most {smaller}",
                    remedy="lower method.lora.rank",
                )

    def entries(self, method: WritingSettings, layers: Sequence[int], cost: ModelCost, tokens: int) -> int:
        modules = 2 if method.lora.modules is None else len(method.lora.modules)
        return len(layers) * modules * method.lora.rank * (cost.width + cost.key_width)

    def write(self, decoder: Decoder, before: Edit | None, task: Task) -> Written:
        assert before is None or isinstance(before, ModuleEdit)
        settings = task.method.lora
        places = find_modules(decoder.blocks, task.layers, settings.modules, decoder.layout.query_value)
        scale = settings.alpha / settings.rank
        with _adapters(decoder, places, settings.rank, settings.alpha) as adapters:
            generator = torch.Generator().manual_seed(task.method.training.seed)
            for place, adapter in adapters.items():
                adapter.start(before.deltas[place] if before else None, scale, generator)
            prompts = FactPrompts(decoder, task, min(layer for layer, _ in places))
            fits = minimise(prompts, [part.weight for one in adapters.values() for part in (one.a, one.b)])
            deltas = {place: adapter.change(scale) for place, adapter in adapters.items()}
        return Written(ModuleEdit(deltas), fits)


@dataclass(frozen=True)
class _Adapter:
    """The factors that PEFT has put beside a module.

    Attributes:
        a: holds A (rank, d_in).
        b: holds B (d_out, rank).
        device: the device that the module runs on.
    """

    a: nn.Linear
    b: nn.Linear
    device: torch.device

    def start(self, before: Delta | None, scale: float, generator: torch.Generator) -> None:
        """Set A and B in float32: those of ``before``, or PEFT's start, which is drawn on the CPU."""
        if before is None:
            bound = 1 / math.sqrt(self.a.weight.shape[1])
            a = torch.empty(self.a.weight.shape).uniform_(-bound, bound, generator=generator)
            b = torch.zeros(self.b.weight.shape)
        else:
            assert isinstance(before, LowRankDelta)
            a, b = before.right.T.contiguous(), before.left / scale
        self.a.weight = nn.Parameter(a.to(self.device))
        self.b.weight = nn.Parameter(b.to(self.device))

    def change(self, scale: float) -> LowRankDelta:
        a, b = self.a.weight.detach().cpu(), self.b.weight.detach().cpu()
        return LowRankDelta(scale * b, a.T.contiguous())


@contextmanager
def _adapters(
    decoder: Decoder, places: Sequence[ModulePlace], rank: int, alpha: int
) -> Iterator[Mapping[ModulePlace, _Adapter]]:
    """Put adapters beside modules while open. The model, and torch's global generator, are the same afterwards.

    PEFT draws its factors on the CPU, whichever device the module is on.
    """
    from peft import LoraConfig, LoraModel

    modules = {place: decoder.blocks[place[0]].get_submodule(place[1]) for place in places}
    names = {id(module): name for name, module in decoder.model.named_modules()}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=[names[id(module)] for module in modules.values()],
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in modules.values()),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        tuner = LoraModel(decoder.model, config, _ADAPTER)
    try:
        found = {}
        for layer, name in places:
            put: Any = decoder.blocks[layer].get_submodule(name)
            device = execution_device(modules[layer, name])
            found[layer, name] = _Adapter(put.lora_A[_ADAPTER], put.lora_B[_ADAPTER], device)
        yield found
    finally:
        tuner.unload()


EDITOR = Lora()
