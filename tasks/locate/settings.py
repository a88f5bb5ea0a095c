"""Settings of causal tracing."""

from __future__ import annotations

from pydantic import Field

from factsmith.tasks.pipeline.settings import Section

__all__ = ["TraceSettings"]


class TraceSettings(Section):
    """How a model is traced. Every setting but ``facts`` changes the effects."""

    facts: int = Field(64, ge=1, description="most facts to trace: the first ones that the model knows")
    samples: int = Field(5, ge=1, description="noise samples per fact")
    noise: float = Field(3.0, ge=0, description="noise on the subject's embeddings, in their standard deviations")
    seed: int = Field(0, ge=0, description="seed of the noise")
    window: int | None = Field(
        None, ge=1, description="layers whose MLPs are restored together; null for 10 per 48 layers of the model"
    )

    def window_of(self, block_count: int) -> int:
        """The number of layers that are restored together in a model with ``block_count`` blocks."""
        return self.window or max(1, round(block_count * 10 / 48))
