"""Mistral: Llama's blocks. The first version uses sliding-window attention."""

from __future__ import annotations

from factsmith.tasks.decoder.families.llama import LlamaLayout


class MistralLayout(LlamaLayout):
    model_type = "mistral"


LAYOUT = MistralLayout()
