"""Settings of what is measured of an edited model besides its facts."""

from __future__ import annotations

from pydantic import Field

from factsmith.tasks.pipeline.settings import Section

__all__ = ["DriftSettings"]


class DriftSettings(Section):
    """How far an edited model's predictions of ordinary text have moved from the unedited model's."""

    edits: int = Field(
        4,
        ge=0,
        description="edits to measure, those of the first batches; 0 for none. A sequence is measured wherever it is "
        "scored",
    )
    blocks: int = Field(16, ge=1, description="blocks of held-out text, which C0 does not cover")
