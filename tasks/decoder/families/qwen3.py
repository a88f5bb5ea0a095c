"""Qwen 3: Llama's blocks with norms on queries and keys; some attend to a sliding window."""

from __future__ import annotations

from factsmith.tasks.decoder.families.llama import LlamaLayout


class Qwen3Layout(LlamaLayout):
    model_type = "qwen3"


LAYOUT = Qwen3Layout()
