"""Settings of the methods that do not solve the equation.

A section here belongs to the editors whose ``sections`` name it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from factsmith.tasks.corpus.budget import Reads
from factsmith.tasks.edit.settings import MethodSettings
from factsmith.tasks.pipeline.settings import ReadIf, Section

__all__ = [
    "FtSettings",
    "GraceSettings",
    "LoraSettings",
    "MeloSettings",
    "SeracSettings",
    "TrainingSettings",
    "UltraEditSettings",
    "WiseSettings",
    "WritingSettings",
]

_TRAINS = ReadIf("method.editor", but=(None, "ultraedit"), needs="a method with an editor that trains")


class TrainingSettings(Section):
    """How an editor optimises what it writes."""

    steps: int = Field(25, ge=1, description="most steps of the optimiser for a batch of facts")
    learning_rate: float = Field(5e-4, gt=0, le=1e6, description="learning rate of the optimiser")
    weight_decay: float = Field(0, ge=0, le=1e12, description="weight decay of the optimiser")
    stop_loss: float = Field(0.01, ge=0, description="mean loss of a batch below which it is finished")
    seed: Annotated[int, ReadIf("method.editor", but=(None, "ft"))] = Field(
        0, ge=0, description="seed of everything that is drawn"
    )


class FtSettings(Section):
    """Fine-tuning of the edited weights."""

    objective: Literal["last_token", "teacher_forced"] = Field(
        "teacher_forced",
        description="where the tokens of a new object are predicted: all at the prompt's last token (last_token, as in "
        "ROME's code), or each after those before it (teacher_forced)",
    )
    norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="largest change of any entry of a weight by a batch (FT-L); null for no limit"
    )


class LoraSettings(Section):
    """Low-rank adapters of linear modules, which PEFT puts into the model while they are trained."""

    rank: int = Field(8, ge=1, description="rank of the change of each module")
    alpha: int = Field(32, ge=1, le=10**6, description="the change is alpha / rank times the product of its factors")
    modules: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="linear modules of the edited layers that are changed, such as q_proj, mlp.up_proj, or "
        "11.mlp.up_proj for layer 11 alone; null for those that give queries and values",
    )


class UltraEditSettings(Section):
    """A step of ridge regression from hidden states and gradients."""

    learning_rate: float = Field(1e-6, gt=0, le=1e6, description="eta, the size of the step")
    modules: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="linear modules of the edited layers that are changed, such as mlp.up_proj, or 11.mlp.up_proj for "
        "layer 11 alone; null for the MLP output projections",
    )


class GraceSettings(Section):
    """The codebook of GRACE."""

    radius: float = Field(1.0, gt=0, le=1e6, description="radius of a new entry, in the space of keys")
    start: Literal["random", "output"] = Field(
        "random", description="value of an entry before it is trained: random, or the MLP's output for the prompt"
    )


class MeloSettings(Section):
    """The blocks of MELO and their index."""

    radius: float = Field(0.5, gt=0, le=1e6, description="radius of a new entry of the index, in the space of keys")
    rank: int = Field(2, ge=1, description="rank of a block")
    facts: int = Field(4, ge=1, description="entries of a batch after which another block starts")


class SeracSettings(Section):
    """The scope classifier and the counterfactual model of SERAC."""

    counterfactual: str | None = Field(
        None,
        description="another model as counterfactual model, such as a smaller one of the same series: a folder, a hub "
        "id or a GGUF file, with the same vocabulary; null for copies of the model's first blocks",
    )
    blocks: Annotated[int, ReadIf("method.serac.counterfactual", (None,))] = Field(
        2, ge=1, description="blocks of the counterfactual model, which start as copies of the model's first ones"
    )
    threshold: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="where the threshold of a fact is between the greatest similarity outside of its scope (0) and the "
        "least one inside (1)",
    )
    texts: int = Field(20, ge=1, le=10_000, description="texts that the model writes as examples of unrelated text")


class WiseSettings(Section):
    """The side memory of WISE."""

    optimiser: Literal["sgd", "adam"] = Field(
        "sgd", description="optimiser of the side memory; adam needs less care with batches of many facts"
    )
    mask: float = Field(0.2, gt=0, le=1, description="share of the side memory's entries that a shard may change")
    unrelated_most: float = Field(5.0, ge=0, description="alpha: largest activation distance of unrelated text")
    facts_least: float = Field(20.0, ge=0, description="beta: least activation distance of facts")
    gap: float = Field(10.0, ge=0, description="gamma: least difference of the two distances")
    route: float = Field(
        0.8, gt=0, lt=1, description="share of the facts' least distance above which a prompt goes to the side memory"
    )
    norm: Annotated[float, Field(gt=0)] | None = Field(
        1.0, description="largest change of any entry of the weight; null for no limit"
    )
    texts: int = Field(20, ge=1, le=10_000, description="texts that the model writes as examples of unrelated text")
    shard: int = Field(500, ge=1, description="facts after which a shard of the side memory is complete")
    merged: int = Field(2, ge=1, description="shards that are merged into one")
    density: float = Field(0.53, gt=0, le=1, description="share of a shard's entries that a merger keeps")


class WritingSettings(MethodSettings):
    """How facts are written: by the equation, or by an editor."""

    editor: str | None = Field(
        None, description="editor that writes facts without the equation, such as ft; null solves the equation"
    )
    training: Annotated[TrainingSettings, _TRAINS] = Field(default_factory=TrainingSettings)
    ft: Annotated[FtSettings, ReadIf("method.editor", ("ft",))] = Field(default_factory=FtSettings)
    lora: Annotated[LoraSettings, ReadIf("method.editor", ("lora",))] = Field(default_factory=LoraSettings)
    ultraedit: Annotated[UltraEditSettings, ReadIf("method.editor", ("ultraedit",))] = Field(
        default_factory=UltraEditSettings
    )
    grace: Annotated[GraceSettings, ReadIf("method.editor", ("grace",))] = Field(default_factory=GraceSettings)
    melo: Annotated[MeloSettings, ReadIf("method.editor", ("melo",))] = Field(default_factory=MeloSettings)
    serac: Annotated[SeracSettings, ReadIf("method.editor", ("serac",))] = Field(default_factory=SeracSettings)
    wise: Annotated[WiseSettings, ReadIf("method.editor", ("wise",))] = Field(default_factory=WiseSettings)

    @property
    def solves(self) -> bool:
        return self.editor is None

    @property
    def reads(self) -> Reads:
        return super().reads if self.solves else "nothing"
