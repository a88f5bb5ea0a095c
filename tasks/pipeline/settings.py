"""The base class of all settings, and the settings that every stage reads.

A *recipe* setting changes what is computed and is hashed into artifact names. A *runtime* setting changes how it is
computed (device, memory, batch size of a forward pass) and is only recorded in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["RaySettings", "ReadIf", "RuntimeSettings", "Section", "TrackingSettings"]


class Section(BaseModel):
    """A group of settings. It is frozen and refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


@dataclass(frozen=True)
class ReadIf:
    """Declares, in the annotation of a setting or of a section, when a run reads it.

    A setting that a user gives and that the run would not read is refused. Several declarations must all hold. One with
    an alternative (``ReadIf(...) | ReadIf(...)``) holds if either does.

    Attributes:
        name: name of the setting that decides, or of a property of the settings, such as ``method.reads``.
        values: the values with which the declared setting is read.
        but: read with any value but these, if ``values`` is empty.
        needs: what is needed in words, if ``name`` is a property.
        alternative: another declaration that suffices.
    """

    name: str
    values: tuple[Any, ...] = ()
    but: tuple[Any, ...] = ()
    needs: str | None = None
    alternative: ReadIf | None = None

    def __or__(self, other: ReadIf) -> ReadIf:
        if self.alternative is None:
            return replace(self, alternative=other)
        return replace(self, alternative=self.alternative | other)

    def holds(self, settings: Section) -> bool:
        """Whether a run with ``settings``, which are those of all groups, reads the declared setting."""
        return any(one.accepts(one.value_in(settings)) for one in self.alternatives)

    def accepts(self, value: Any) -> bool:
        """Whether the declared setting is read with this value of the one that decides."""
        return value in self.values if self.values else value not in self.but

    def value_in(self, settings: Section) -> Any:
        """The value of the setting that decides."""
        value: Any = settings
        for part in self.name.split("."):
            value = getattr(value, part)
        return value

    @property
    def alternatives(self) -> Iterator[ReadIf]:
        """This declaration and its alternatives."""
        yield self
        if self.alternative is not None:
            yield from self.alternative.alternatives


class RaySettings(Section):
    """Where Ray is, and what a worker of it gets."""

    address: str = Field(
        "local",
        pattern=r"^(local|auto|(ray://)?(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5})$",
        description="local starts Ray on this machine while the run lasts; auto, HOST:PORT or ray://HOST:PORT use a "
        "cluster that is there (auto and HOST:PORT on one of its nodes, ray:// from outside)",
    )
    workers: int | None = Field(
        None, ge=1, description="workers, each with the model in memory; null: as many as the cluster has room for"
    )
    cpus: float = Field(1, gt=0, description="CPUs of a worker, which also computes with as many threads")
    gpus: float | None = Field(
        None,
        ge=0,
        description="GPUs of a worker; null: one if the cluster has any; several need runtime.device_map=auto",
    )
    memory_mb: int | None = Field(
        None, ge=1, description="memory of a worker in MiB, for Ray's scheduling; null: what the model needs"
    )
    task_size: int | None = Field(
        None,
        ge=1,
        description="facts, or records, that a worker takes at once; null: 128 facts and 256 records, as many "
        "as are computed together without Ray",
    )
    wait_seconds: float = Field(
        60, ge=0, description="seconds to wait for a node with room for a worker, as in a cluster that grows"
    )


class RuntimeSettings(Section):
    """How things are computed. Nothing here changes a result by more than the last bits of a float."""

    engine: Literal["local", "ray"] = Field(
        "local",
        description="local computes in this process; ray shares keys, sums of C0, value vectors and scores among "
        "workers of a Ray cluster",
    )
    ray: Annotated[RaySettings, ReadIf("runtime.engine", ("ray",))] = Field(default_factory=RaySettings)
    device: Annotated[str, ReadIf("runtime.devices", (None,))] = Field(
        "auto", description="cpu, cuda, cuda:1, ...; auto uses a GPU if there is one"
    )
    devices: Annotated[str | None, ReadIf("runtime.device_map", (None,)), ReadIf("runtime.engine", ("local",))] = Field(
        None,
        description="several devices, each with the whole model, share the work: all, or a list such as cuda:0,cuda:1; "
        "null uses runtime.device alone",
    )
    device_map: Literal["auto"] | None = Field(
        None, description="auto spreads a model over GPUs and CPU memory; null keeps all of it on runtime.device"
    )
    gpu_memory_mb: Annotated[int | None, ReadIf("runtime.device_map", ("auto",))] = Field(
        None, ge=1, description="most weights on each GPU, in MiB (device_map=auto)"
    )
    cpu_memory_mb: Annotated[int | None, ReadIf("runtime.device_map", ("auto",))] = Field(
        None, ge=1, description="most weights in CPU memory, in MiB (device_map=auto)"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; null leaves the number to torch")
    products: Literal["auto", "float64", "float32"] = Field(
        "auto", description="data type of the products that C0 is summed from; auto: float32 on a GPU, float64 on a CPU"
    )
    tokens_per_pass: int | None = Field(
        None, ge=1, description="most positions in one forward pass; null: 8192 on a CPU, what has room on a GPU"
    )
    checkpoint_seconds: Annotated[float, ReadIf("corpus.keep_keys", (False, None))] = Field(
        600, ge=0, description="seconds between checkpoints while keys are summed up without being kept"
    )
    mirror: str | None = Field(
        None,
        description="folder or URL (s3://..., gs://..., hf://datasets/...) where statistics are looked for before they "
        "are computed; `factsmith store push` fills it",
    )
    memory_mb: int | None = Field(
        None,
        ge=1,
        description="memory for the activations of one batch of value vectors, in MiB; null: 2048 on a CPU, "
        "what has room on a GPU",
    )


class TrackingSettings(Section):
    """Where runs are logged."""

    experiment: str = Field("factsmith", description="name of the MLflow experiment")
