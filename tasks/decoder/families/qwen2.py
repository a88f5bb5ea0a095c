"""Qwen 2 and 2.5: Llama's blocks with biases in the attention. Some use sliding-window attention."""

from __future__ import annotations

from factsmith.tasks.decoder.families.llama import LlamaLayout


class Qwen2Layout(LlamaLayout):
    model_type = "qwen2"


LAYOUT = Qwen2Layout()
