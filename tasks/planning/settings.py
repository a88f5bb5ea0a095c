"""Every setting there is, with its meaning. Frozen; unknown keys are refused.

A *recipe* setting changes what is computed and is hashed into artifact names. A *runtime* setting changes how (device,
memory, batch of a forward pass) and is only recorded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from factsmith.artifacts.errors import InputError
from factsmith.tasks.edit.batch import ReadKeys, Spread
from factsmith.tasks.facts.contexts import ContextSample
from factsmith.tasks.locate.trace import TraceSettings
from factsmith.tasks.model.embedded.world import Split
from factsmith.tasks.preservation.low_rank import EnergyOf
from factsmith.tasks.values.optimiser import ValueSettings

__all__ = [
    "AutoSettings",
    "CorpusSettings",
    "DatasetSettings",
    "LowRankSettings",
    "MethodSettings",
    "ModelSettings",
    "NullSpaceSettings",
    "RuntimeSettings",
    "SequenceSettings",
    "Settings",
    "TrackingSettings",
]

EMBEDDED = "embedded"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


class ModelSettings(_Frozen):
    """The model to edit."""

    name: str = Field(description="of the choice, for tables")
    path: str = Field(description="folder of a Hugging Face checkpoint, the id of one on the hub, or 'embedded'")
    revision: str | None = Field(None, description="of a hub id: branch, tag or commit; null for main")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the weights while running")


class AutoSettings(_Frozen):
    """How an automatic dynamic multiplier is found, and how held-out leverage is measured."""

    tolerance: float = Field(1.25, gt=1, description="held-out leverage that is small enough; 1 is that of a right C0")
    steps: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = Field(
        [2, 3, 4, 6, 8, 10, 15, 20, 30, 40], description="values of d_m that are tried in turn; the largest is the cap"
    )
    held_out: int = Field(4096, ge=1, description="tokens behind those of C0 whose keys the leverage is the mean of")


class CorpusSettings(_Frozen):
    """The text whose keys an edit must preserve."""

    name: str = Field(description="of the choice, for tables")
    source: Literal["embedded", "local", "hub"] = Field(description="where documents come from")
    path: Path | None = Field(None, description="of the file (local): .jsonl, .txt or .parquet")
    repository: str | None = Field(None, description="id of a dataset on the hub, or a folder that holds one (hub)")
    subset: str | None = Field(None, description="of the repository, where it has several (hub)")
    split: str = Field("train", description="of the repository (hub)")
    revision: str | None = Field(None, description="of the repository: branch, tag or commit; null for main (hub)")
    field: str = Field("text", description="of a record that holds the text (.jsonl, .parquet, hub)")
    seed: int = Field(0, ge=0, description="of the documents' order")
    sampling: Literal["first", "shuffled", "stratified"] = Field(
        "shuffled", description="order of documents: as they stand, drawn by seed, or every topic in turn"
    )
    pool: int = Field(10_000, ge=1, description="documents that are clustered, or that a stream is shuffled among")
    topics: int = Field(16, ge=1, description="clusters of documents (stratified)")
    block_length: int = Field(128, ge=2, description="tokens of a block; blocks never cross a document")
    blocks_per_document: int | None = Field(None, ge=1, description="blocks a document gives at most; null for all")
    dynamic_multiplier: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        10.0, description="d_m: tokens of the corpus, in multiples of d_k; 'auto' for as many as C0 needs"
    )
    tokens: int | None = Field(None, ge=1, description="tokens of the corpus, instead of dynamic_multiplier")
    key_dtype: Literal["float32", "float16"] = Field("float32", description="of the stored keys")
    keep_keys: bool = Field(True, description="false adds keys up and keeps none, for token counts they would not fit")
    auto: AutoSettings = Field(default_factory=AutoSettings)

    @property
    def is_auto(self) -> bool:
        """Whether the token count is to be found by held-out leverage."""
        return self.tokens is None and self.dynamic_multiplier == "auto"

    @property
    def multipliers(self) -> list[float]:
        """d_m, or those to try where it is to be found, ascending."""
        return sorted(set(self.auto.steps)) if self.dynamic_multiplier == "auto" else [self.dynamic_multiplier]

    @model_validator(mode="after")
    def _measures_kept_keys(self) -> Self:
        if self.is_auto and not self.keep_keys:
            raise InputError(
                "corpus.dynamic_multiplier=auto goes on from the keys of its last step, and needs them kept.",
                got="corpus.keep_keys=false",
                remedy="leave out corpus.keep_keys; corpus.auto.steps limits how many keys there can be",
            )
        return self


class LowRankSettings(_Frozen):
    """The low-rank model of keys, U U^T + D, and what it is made from."""

    n_samples: int = Field(40_000, ge=2, description="tokens whose keys are modelled, in place of corpus.tokens")
    centred: bool = Field(
        True, description="whether their mean is taken out, as in the paper; what it meets is then preserved by D alone"
    )
    rank: int | None = Field(None, ge=1, description="r0, columns of U; null for the least that holds energy")
    energy: float = Field(0.8, gt=0, le=1, description="share of the fused covariance that U holds")
    energy_of: EnergyOf = Field(
        "eigenvalues", description="what energy is a share of: the sum of the eigenvalues, or of their squares"
    )
    prior_fraction: float | None = Field(
        None,
        ge=0,
        le=1,
        description="of the projection in the fused covariance; null for 0.05 below 10 d_k samples, else 0",
    )
    prior_rank: int | None = Field(
        None, ge=1, description="of the projection's part; null for low_rank.rank, or a quarter of d_k"
    )
    floor: float = Field(1e-6, gt=0, description="of D's entries, in multiples of the fused covariance's mean variance")


class NullSpaceSettings(_Frozen):
    """The directions that may be written, as AlphaEdit has them."""

    complement_of: Literal["covariance", "low_rank"] = Field(
        "covariance", description="what they keep out of: C0's eigenvectors, or the columns of method.low_rank's U"
    )
    threshold: float = Field(0.02, gt=0, description="eigenvalue of C0 below which a direction may be written")
    l2: float = Field(10, gt=0, description="weight of the change's size; takes the place of lambda")


class SequenceSettings(_Frozen):
    """How batches follow one another into the same weights."""

    history: Literal["none", "full", "compressed"] | None = Field(
        None,
        description="keys of earlier batches that are preserved: none, all, or their leading directions; "
        "null writes every batch into the unedited weights instead of into those before it",
    )
    history_keys: Literal["after_write", "as_written"] = Field(
        "after_write",
        description="keys that history keeps: read again once all layers are written, or as they were; much the same",
    )
    tau: int = Field(500, ge=1, description="keys between compressions")
    energy: float = Field(0.99, gt=0, le=1, description="share of the keys' squared norm that compression keeps")
    most: int = Field(3000, ge=1, description="directions that compression keeps at most")
    checkpoint_every: int = Field(50, ge=1, description="batches between checkpoints")
    evaluate_at: list[int] | None = Field(
        None, description="numbers of edits to score after, each rounded up to whole batches; null for ten, evenly"
    )


class MethodSettings(_Frozen):
    """How facts are written: the parts of the one equation, and their constants."""

    name: str = Field(description="of the choice, for tables")
    layers: Annotated[list[int], Field(min_length=1)] = Field(description="edited layers, counted from 0")
    preservation: Literal["full", "low_rank", "null_space", "identity"] = Field(
        "full", description="operator that holds what must stay: C0, its low-rank model, its null space, or nothing"
    )
    preservation_weight: float = Field(gt=0, description="lambda, the weight of C0 or what stands for it")
    low_rank: LowRankSettings = Field(default_factory=LowRankSettings)
    null_space: NullSpaceSettings = Field(default_factory=NullSpaceSettings)
    ridge: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        0.0, description="added to the diagonal of lambda C0; 'auto' for the least that lets it be factorised"
    )
    slack: float = Field(ge=0, description="gamma: 0 forces the new facts, 1 is least squares")
    slack_of_one: float | None = Field(None, ge=0, description="gamma when one fact is written alone; null for slack")
    spread: Spread = Field("even", description="how a residual is divided over the layers")
    clean_weight: float | None = Field(
        0.5, ge=0, le=1, description="of the clean prompt in an averaged key; null for the same as every other prompt"
    )
    read_keys: ReadKeys = Field("averaged", description="key that a change is read with: averaged, or the clean one")
    batch_size: Annotated[int, Field(ge=1)] | Literal["all"] = Field(16, description="facts written together")
    contexts: Path | None = Field(None, description="JSON list of context templates; null to sample them")
    context_samples: list[ContextSample] = Field(
        [ContextSample(start=start, length=10) for start in ("The", "Therefore", "Because", "I", "You")],
        description="prefixes to sample: start, length, count",
    )
    context_seed: int = Field(0, ge=0, description="of the sampled context templates")
    value: ValueSettings = Field(default_factory=ValueSettings)
    sequence: SequenceSettings = Field(default_factory=SequenceSettings)

    @property
    def reads(self) -> Literal["corpus", "samples", "nothing"]:
        """The keys that tell what must stay: as many as the corpus settings say, low_rank.n_samples, or none."""
        if self.preservation == "identity":
            return "nothing"
        modelled = self.preservation == "null_space" and self.null_space.complement_of == "low_rank"
        return "samples" if modelled or self.preservation == "low_rank" else "corpus"


class DatasetSettings(_Frozen):
    """The facts to write, and what scores them."""

    name: str = Field(description="of the choice, for tables")
    suite: str = Field(description="how records are read: counterfact, embedded, facts, zsre, ...")
    path: Path | None = Field(None, description="of the file")
    split: Split = Field("all", description="tune: the half that settings are tuned on; test: the other")
    cases: Path | list[int] | None = Field(None, description="case ids to take, or a JSON file that lists them")
    limit: int | None = Field(None, ge=1, description="records to take at most")
    seed: int | None = Field(0, ge=0, description="of the records' order; null for that of the file")
    metrics: Annotated[list[str], Field(min_length=1)] = Field(
        ["counterfact"], description="families of metrics to score on: counterfact, generation, greedy, ..."
    )
    batches: int | None = Field(1, ge=1, description="batches that are written; null for all records")

    def required_path(self) -> Path:
        if self.path is None:
            raise InputError(f"dataset={self.name} needs a file.", remedy="set dataset.path=FILE")
        return self.path


class RuntimeSettings(_Frozen):
    """How things are computed. Nothing here changes what is computed, but for the last bits of a float."""

    device: str = Field("auto", description="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")
    device_map: Literal["auto"] | None = Field(
        None, description="auto spreads a model over GPUs and CPU memory; null keeps it on runtime.device whole"
    )
    gpu_memory_mb: int | None = Field(None, ge=1, description="of weights on each GPU at most (device_map=auto)")
    cpu_memory_mb: int | None = Field(None, ge=1, description="of weights in CPU memory at most (device_map=auto)")
    threads: int | None = Field(None, ge=1, description="of the CPU; null leaves it to torch")
    tokens_per_pass: int = Field(8192, ge=1, description="positions in one forward pass at most")
    checkpoint_seconds: float = Field(600, ge=0, description="between checkpoints of keys that are added up, not kept")
    memory_mb: int = Field(2048, ge=1, description="for the activations of one batch of value vectors")


class TrackingSettings(_Frozen):
    """Where runs are logged."""

    experiment: str = Field("factsmith", description="of MLflow")


class Settings(_Frozen):
    """One run, resolved."""

    model: ModelSettings
    corpus: CorpusSettings
    method: MethodSettings
    dataset: DatasetSettings
    trace: TraceSettings = Field(default_factory=TraceSettings)
    runtime: RuntimeSettings = Field(default_factory=RuntimeSettings)
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)

    @property
    def finds_tokens(self) -> bool:
        """Whether the run finds how many tokens C0 takes: it is asked to, and its method keeps a C0."""
        return self.corpus.is_auto and self.method.reads == "corpus"
