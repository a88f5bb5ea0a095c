"""The base class of all settings, and the settings that every stage reads.

A *recipe* setting changes what is computed and is hashed into artifact names. A *runtime* setting changes how it is
computed (device, memory, batch size of a forward pass) and is only recorded in the manifest.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["RuntimeSettings", "Section", "TrackingSettings"]


class Section(BaseModel):
    """A group of settings. It is frozen and refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


class RuntimeSettings(Section):
    """How things are computed. Nothing here changes a result by more than the last bits of a float."""

    device: str = Field("auto", description="cpu, cuda, cuda:1, ...; auto uses a GPU if there is one")
    device_map: Literal["auto"] | None = Field(
        None, description="auto spreads a model over GPUs and CPU memory; null keeps all of it on runtime.device"
    )
    gpu_memory_mb: int | None = Field(None, ge=1, description="most weights on each GPU, in MiB (device_map=auto)")
    cpu_memory_mb: int | None = Field(None, ge=1, description="most weights in CPU memory, in MiB (device_map=auto)")
    threads: int | None = Field(None, ge=1, description="CPU threads; null leaves the number to torch")
    tokens_per_pass: int = Field(8192, ge=1, description="most positions in one forward pass")
    checkpoint_seconds: float = Field(
        600, ge=0, description="seconds between checkpoints while keys are summed up without being kept"
    )
    memory_mb: int = Field(2048, ge=1, description="memory for the activations of one batch of value vectors, in MiB")


class TrackingSettings(Section):
    """Where runs are logged."""

    experiment: str = Field("factsmith", description="name of the MLflow experiment")
