"""What the edited model costs whenever it is used."""

from __future__ import annotations

from factsmith.flows.html.blocks import Section
from factsmith.flows.reporting.page import inference_table
from factsmith.tasks.editors.inference import Inference

__all__ = ["inference"]


def inference(found: Inference) -> Section:
    """One row per measure."""
    return Section("Cost at inference", [inference_table(found)])
