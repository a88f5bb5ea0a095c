"""Mistral: Llama's blocks; its first version attends to a sliding window."""

from __future__ import annotations

from factsmith.tasks.decoder.families.llama import LlamaLayout


class MistralLayout(LlamaLayout):
    model_type = "mistral"


LAYOUT = MistralLayout()
