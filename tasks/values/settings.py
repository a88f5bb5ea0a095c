"""Settings of the optimiser of value vectors."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from factsmith.artifacts.errors import InputError
from factsmith.tasks.pipeline.settings import ReadIf, Section

__all__ = ["ValueSettings"]

_ATTENTION = ReadIf("method.value.attention", (True,))
_OF_ATTENTION = frozenset({"attention", "argmax_nll_weight", "argmax_divergence"})


class ValueSettings(Section):
    """How a value vector is optimised. Every setting here changes the vectors."""

    site: Literal["block", "mlp"] = Field(
        "block", description="whose output the value is: that of the edited block, or of its MLP"
    )
    attention: bool = Field(
        False,
        description="whether a change of the attention's output is optimised with that of the MLP's and then left out, "
        "as in PMET; needs site=mlp",
    )
    argmax_nll_weight: Annotated[float, _ATTENTION] = Field(
        0.1, ge=0, le=1, description="weight of the NLL in a step after every token of the target was the likeliest one"
    )
    argmax_divergence: Annotated[float, _ATTENTION] = Field(
        0.01, ge=0, description="weighted divergence at which a fact is finished if these tokens are the likeliest"
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
        """The settings as part of a recipe. Without TF32 and PMET, artifacts keep the names of earlier versions."""
        unused = set() if self.tf32 else {"tf32"}
        return self.model_dump(exclude=unused if self.attention else unused | _OF_ATTENTION)

    @model_validator(mode="after")
    def _attention_needs_the_mlp(self) -> Self:
        if self.attention and self.site != "mlp":
            raise InputError(
                "method.value.attention=true finds a value of the MLP's output alone.",
                got=f"method.value.site={self.site}",
                remedy="set method.value.site=mlp",
            )
        return self
