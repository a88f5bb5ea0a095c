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


class AdapterForm(Form):
    """A LoRA as PEFT writes it. The weights of the model are not loaded for it."""

    name = "adapter"
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


FORM = AdapterForm()
