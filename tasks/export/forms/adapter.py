"""The form ``adapter``: a LoRA beside the unedited model, exact for changes that are low-rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factsmith.tasks.decoder.placement import empty_model
from factsmith.tasks.edit.edit import Edit
from factsmith.tasks.export.adapter import adapter_of
from factsmith.tasks.export.form import Form
from factsmith.tasks.model.model import Model

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for ``--max-lora-rank``, as of its version 0.27."""


class AdapterForm(Form):
    """A LoRA as PEFT writes it. The weights of the model are not loaded for it."""

    name = "adapter"
    title = "This is a LoRA that makes of the unedited model the edited one. No training was involved."
    library = "peft"
    tags = ("lora",)

    def write(self, folder: Path, model: Model, edit: Edit, about: Mapping[str, Any]) -> Mapping[str, Any]:
        checkpoint = model.checkpoint
        adapter = adapter_of(empty_model(checkpoint.config), checkpoint.layout, edit)
        adapter.save(folder, *model.checkpoint.source)
        modules = {name: {"rank": one.rank, "error": one.error} for name, one in adapter.modules.items()}
        return {"rank": adapter.rank, "modules": modules}

    def usage(self, about: Mapping[str, Any]) -> str:
        return (
            "from peft import AutoPeftModelForCausalLM\n\n"
            'model = AutoPeftModelForCausalLM.from_pretrained(".")  # merge_and_unload() makes it a plain model'
        )

    def notes(self, about: Mapping[str, Any]) -> list[str]:
        ranks = {one["rank"] for one in about["modules"].values()}
        allowed = next((most for most in VLLM_RANKS if most >= about["rank"]), None)
        served = (
            f"vLLM loads it with `--enable-lora --max-lora-rank {allowed}`, if it supports LoRA for this architecture."
            if allowed
            else f"vLLM loads ranks up to {VLLM_RANKS[-1]}: merge this adapter of rank {about['rank']} into the model."
        )
        uneven = (
            "Its ranks differ between modules, which `rank_pattern` and `alpha_pattern` say. Merge it before a "
            "conversion to GGUF, which has one alpha for all modules."
        )
        return [served, *([uneven] if len(ranks) > 1 else [])]


FORM = AdapterForm()
