"""Settings of the model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from factsmith.tasks.pipeline.settings import Section

__all__ = ["EMBEDDED", "ModelSettings"]

EMBEDDED = "embedded"
"""``model.path`` of the model that ships with Factsmith."""


class ModelSettings(Section):
    """The model to edit."""

    name: str = Field(description="name of the choice, for tables")
    path: str = Field(description="folder of a Hugging Face checkpoint, id of one on the hub, GGUF file, or 'embedded'")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id; null for main")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="data type of the weights, in memory and in an edited model; auto for the checkpoint's own"
    )
