"""An edit as a LoRA that PEFT, vLLM and other programs load  [Hu et al. 2022].

A LoRA adds (alpha / r) B A to a weight (d_out, d_in), with B (d_out, r) and A (r, d_in). A low-rank change is one with
alpha = r, without any training: B and A are its factors. Ranks may differ between modules. ``rank_pattern`` and
``alpha_pattern`` then name those of the modules that do not have the largest, so that alpha = r everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from factsmith.artifacts.errors import DamagedArtifactError, InputError
from factsmith.tasks.decoder.layout import HFModel, Layout
from factsmith.tasks.edit.delta import Delta, LowRankDelta
from factsmith.tasks.edit.edit import ChangedWeights, Edit
from factsmith.tasks.export.thin import thin
from factsmith.tasks.pipeline.progress import progress

__all__ = ["CONFIG", "WEIGHTS", "Adapter", "adapter_of", "changed_modules"]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
"""Before the name of a module in the names of tensors, as PEFT writes them."""


@dataclass(frozen=True)
class AdaptedModule:
    """The adapter of one module.

    Attributes:
        a: (r, d_in) float32.
        b: (d_out, r) float32.
        error: Frobenius norm of the change minus B A, divided by that of the change.
    """

    a: Tensor
    b: Tensor
    error: float

    @property
    def rank(self) -> int:
        return len(self.a)


@dataclass(frozen=True)
class Adapter:
    """A LoRA.

    Attributes:
        modules: the adapter of each module, by the module's name in the model.
        fan_in_fan_out: whether the weights are stored as (d_in, d_out), as those of GPT-2 are.
    """

    modules: Mapping[str, AdaptedModule]
    fan_in_fan_out: bool

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(one.rank for one in self.modules.values())

    def config(self, base: str, revision: str | None = None) -> dict[str, Any]:
        """The content of ``adapter_config.json``.

        Args:
            base: the model that the adapter belongs to: a folder, or ``owner/name`` on the hub.
            revision: its revision on the hub.
        """
        lower = {name: one.rank for name, one in self.modules.items() if one.rank < self.rank}
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "revision": revision,
            "inference_mode": True,
            "r": self.rank,
            "lora_alpha": self.rank,
            "rank_pattern": lower,
            "alpha_pattern": lower,
            "target_modules": list(self.modules),
            "fan_in_fan_out": self.fan_in_fan_out,
            "lora_dropout": 0.0,
            "bias": "none",
            "init_lora_weights": True,
            "use_rslora": False,
            "use_dora": False,
            "modules_to_save": None,
        }

    def save(self, folder: Path, base: str, revision: str | None = None) -> None:
        """Write the two files of an adapter, and read back what was written.

        Args:
            folder: an existing folder.
            base: as in ``config``.
            revision: as in ``config``.

        Raises:
            DamagedArtifactError: what was read is not what was written.
        """
        config = json.dumps(self.config(base, revision), indent=1, sort_keys=True, ensure_ascii=False)
        (folder / CONFIG).write_text(config + "\n", encoding="utf-8")
        tensors = {}
        for name, one in self.modules.items():
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = one.a
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = one.b
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        with safe_open(folder / WEIGHTS, framework="pt") as written:
            if set(written.keys()) != set(tensors) or not all(
                torch.equal(written.get_tensor(name), one) for name, one in tensors.items()
            ):
                raise DamagedArtifactError("An export does not hold what was written to it.", got=WEIGHTS)


def adapter_of(model: HFModel, layout: Layout, edit: Edit) -> Adapter:
    """The adapter that makes of ``model`` what ``edit`` makes of it.

    Args:
        model: the unedited model. Only the names and kinds of its modules are read: it may be on the meta device.
        layout: the layout of its family.
        edit: an edit whose changes are low-rank.

    Raises:
        InputError: a change of the edit is dense, or the edit has a memory; or it changes modules that store their
            weights in both ways, which one adapter cannot.
    """
    modules = changed_modules(model, layout, edit)
    kinds = {isinstance(module, Conv1D) for module, _ in modules.values()}
    if len(kinds) > 1:
        raise InputError("One adapter cannot change modules of two kinds.", got="Conv1D and Linear")
    adapted = {}
    with progress("adapter", len(modules)) as advance:
        for name, (_, delta) in modules.items():
            adapted[name] = _adapted(name, delta)
            advance(1)
    return Adapter(adapted, kinds == {True})


def changed_modules(model: HFModel, layout: Layout, edit: Edit) -> dict[str, tuple[nn.Module, Delta]]:
    """Each module that an edit changes, with its change, by its name in the model.

    Raises:
        InputError: the edit has a memory.
    """
    if not isinstance(edit, ChangedWeights):
        raise InputError(
            "An adapter cannot hold a memory.", got=f"an edit of the kind {edit.kind}", expected="changes of weights"
        )
    blocks, names = layout.blocks(model), {module: name for name, module in model.named_modules()}
    changed = [
        (blocks[layer].get_submodule(name), delta) for (layer, name), delta in edit.by_module(blocks, layout).items()
    ]
    return {names[module]: (module, delta) for module, delta in changed}


def _adapted(name: str, delta: Delta) -> AdaptedModule:
    if not isinstance(delta, LowRankDelta):
        raise InputError(
            "An adapter holds low-rank changes, and a change has no thin factors.",
            got=f"the change of {name}, which is dense",
            remedy="truncate it",
        )
    factors = thin(delta).delta
    a, b = factors.right.T.float().contiguous(), factors.left.float().contiguous()
    change = delta.dense().double().cpu()
    size = float(change.norm())
    return AdaptedModule(a, b, float((change - b.double() @ a.double()).norm()) / size if size else 0.0)
