"""Qwen 3: Llama's blocks with norms on queries and keys. Some use sliding-window attention."""

from __future__ import annotations

from factsmith.tasks.decoder.families.llama import LlamaLayout


class Qwen3Layout(LlamaLayout):
    model_type = "qwen3"


LAYOUT = Qwen3Layout()
