"""Settings of the optimiser of value vectors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from factsmith.tasks.pipeline.settings import Section

__all__ = ["ValueSettings"]


class ValueSettings(Section):
    """How a value vector is optimised. Every setting here changes the vectors."""

    site: Literal["block", "mlp"] = Field(
        "block", description="whose output the value is: that of the edited block, or of its MLP"
    )
    steps: int = Field(25, ge=1, description="most evaluations of the loss; there is one update fewer")
    learning_rate: float = Field(0.5, gt=0, le=1e6, description="learning rate of Adam")
    clamp: float = Field(4.0, gt=0, le=1e6, description="largest change, as a multiple of the hidden state's norm")
    weight_decay: float = Field(0.5, ge=0, le=1e12, description="weight of the change's norm")
    kl_weight: float = Field(0.0625, ge=0, le=1e12, description="weight of the divergence on '{subject} is a'")
    stop_loss: float = Field(0.05, ge=0, description="loss below which a fact is finished")
    tf32: bool = Field(
        False, description="multiply in TF32 on a GPU: a float32 model in a fraction of the time, with three digits"
    )

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings as part of a recipe. Without TF32, artifacts keep the names of earlier versions."""
        return self.model_dump(exclude=set() if self.tf32 else {"tf32"})
