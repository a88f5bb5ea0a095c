"""Phi-3, Phi-3.5 and Phi-4: Llama's blocks with fused projections. Some use LongRoPE or sliding-window attention."""

from __future__ import annotations

from factsmith.tasks.decoder.families.llama import LlamaLayout


class Phi3Layout(LlamaLayout):
    model_type = "phi3"


LAYOUT = Phi3Layout()
