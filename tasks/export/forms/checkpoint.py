"""The form ``checkpoint``: the whole edited model, as transformers and most servers load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from factsmith.tasks.deltas.weights import checksums, state_of
from factsmith.tasks.edit.edit import OTHER_EDIT, OTHER_TENSORS, Edit
from factsmith.tasks.editors.load import BASE, SAID
from factsmith.tasks.export.form import Form
from factsmith.tasks.export.weights import save_checkpoint
from factsmith.tasks.model.model import Model


class Checkpoint(Form):
    """A Hugging Face checkpoint with its tokenizer.

    A checkpoint cannot hold a memory. If the edit has one, the unedited model is written to a folder of its own, and
    the memory beside it as safetensors and JSON. ``load_edited`` reads both.
    """

    name = "checkpoint"
    title = "This is the whole edited model."
    library = "transformers"
    is_thin = False
    holds_memory = True

    def write(self, folder: Path, model: Model, edit: Edit, about: Mapping[str, Any]) -> Mapping[str, Any]:
        weights = folder / BASE if edit.adds_memory else folder
        weights.mkdir(exist_ok=True)
        with nullcontext() if edit.adds_memory else edit.applied(model.decoder):
            save_checkpoint(model.checkpoint, model.decoder, weights)
            state = None if edit.adds_memory else state_of(checksums(model.decoder))
        if not edit.adds_memory:
            return {"state": state}
        save_file({name: one.cpu().contiguous() for name, one in edit.tensors().items()}, folder / OTHER_TENSORS)
        stored = {"kind": edit.kind, "values": edit.values()}
        (folder / OTHER_EDIT).write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return {"load": SAID}

    def usage(self, about: Mapping[str, Any]) -> str:
        if "load" in about:
            return (
                "from factsmith.tasks.editors.load import load_edited\n"
                "from transformers import AutoTokenizer\n\n"
                f'model, tokenizer = load_edited("."), AutoTokenizer.from_pretrained("./{BASE}")'
            )
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")'
        )


FORM = Checkpoint()
