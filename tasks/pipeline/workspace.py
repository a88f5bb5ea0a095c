"""The workbench of one run: its settings, the store, the log, and the model once somebody needs it.

It is made where a run begins and handed down; nothing below looks for state of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store
from factsmith.tasks.corpus.opening import open_corpus
from factsmith.tasks.corpus.source import CorpusSource
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.placement import DeviceMap
from factsmith.tasks.evaluation.family import MetricFamily, load_families
from factsmith.tasks.facts.contexts import read_contexts
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.selection import scored_batches, select_batches, select_records
from factsmith.tasks.model.checkpoint import Checkpoint, open_checkpoint, open_model, refuse_revision
from factsmith.tasks.pipeline.progress import work
from factsmith.tasks.pipeline.resource_errors import shortages
from factsmith.tasks.planning.settings import EMBEDDED, Settings
from factsmith.tasks.tracking.tracker import Tracker

__all__ = ["Bench", "StageReport"]


@dataclass(frozen=True)
class StageReport:
    """What became of one stage.

    Attributes:
        name: of the stage.
        state: ``built``, or ``cached`` if everything was there.
        seconds: it took.
        artifact: address of what it left behind.
    """

    name: str
    state: str
    seconds: float
    artifact: str


class Bench:
    """What the stages of a run share.

    Args:
        settings: resolved.
        store: of artifacts.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings = settings
        self.store = store
        self.reports: list[StageReport] = []
        self._tracker: Tracker | None = None

    @property
    def begun(self) -> bool:
        """Whether the run has been logged, or is being."""
        return self._tracker is not None

    @property
    def tracker(self) -> Tracker:
        if self._tracker is None:
            raise RuntimeError("the run has not begun")
        return self._tracker

    # ------------------------------------------------------------ the user's input

    @cached_property
    def checkpoint(self) -> Checkpoint:
        settings = self.settings.model
        if settings.path == EMBEDDED:
            refuse_revision(EMBEDDED, settings.revision)
            return open_checkpoint(Path(str(resources.files("factsmith.tasks.model.embedded") / "assets")))
        return open_model(settings.path, settings.revision)

    @cached_property
    def layers(self) -> list[int]:
        """The edited layers, ascending.

        Raises:
            InputError: a layer that the model does not have.
        """
        layers = sorted(set(self.settings.method.layers))
        for layer in layers:
            if not 0 <= layer < self.checkpoint.block_count:
                raise InputError(
                    f"Layer {layer} is out of range for model {self.settings.model.name}.",
                    expected=f"0 to {self.checkpoint.block_count - 1}",
                    remedy="set method.layers",
                )
        return layers

    @cached_property
    def corpus(self) -> CorpusSource:
        return open_corpus(self.settings.corpus, checksum=self.store.checksums.sha256, work=work)

    @cached_property
    def true_records(self) -> list[Record]:
        """The dataset's records that say what is true today, whichever batches they would be written in.

        Raises:
            InputError: there is none.
        """
        records = [one for one in select_records(self.settings.dataset) if one.request.target_true is not None]
        if not records:
            raise InputError(
                f"dataset={self.settings.dataset.name} has no fact to trace.",
                expected="records with target_true, what the model says today",
            )
        return records

    @cached_property
    def batches(self) -> list[list[Record]]:
        """Records of each batch of facts that are written together."""
        return select_batches(self.settings.dataset, self.settings.method.batch_size)

    @property
    def in_sequence(self) -> bool:
        """Whether batches follow one another into the same weights, instead of each into the unedited ones."""
        return self.settings.method.sequence.history is not None

    @cached_property
    def scored_batches(self) -> list[int]:
        """The numbers of batches after which a sequence is scored, ascending; all of them at last.

        Raises:
            InputError: there are fewer facts than one of ``method.sequence.evaluate_at``.
        """
        return scored_batches([len(batch) for batch in self.batches], self.settings.method.sequence.evaluate_at)

    @property
    def written(self) -> list[list[Record]]:
        """The records that each edit holds: those of a batch, or all of them where they were written in sequence."""
        return [[record for batch in self.batches for record in batch]] if self.in_sequence else self.batches

    @cached_property
    def families(self) -> list[MetricFamily]:
        """The families of metrics that records are scored on.

        Raises:
            InputError: there is no family of that name.
        """
        return load_families(self.settings.dataset.metrics)

    @property
    def requests(self) -> list[EditRequest]:
        """What is written, batch by batch."""
        return [record.request for batch in self.batches for record in batch]

    @cached_property
    def given_contexts(self) -> tuple[str, ...] | None:
        """Context templates of ``method.contexts``; ``None`` if they are to be sampled."""
        path = self.settings.method.contexts
        return read_contexts(path) if path else None

    # ------------------------------------------------------------------ the model

    @cached_property
    def device(self) -> torch.device:
        """Where models run.

        Raises:
            InputError: there is no such device here.
        """
        name = self.settings.runtime.device
        if name == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"There is no device {name!r} here.", got=str(error).splitlines()[0], remedy="set runtime.device"
            ) from None
        return device

    @cached_property
    def device_map(self) -> DeviceMap | None:
        """Where each part of the model lies; ``None`` if it is whole on ``device``.

        Raises:
            InputError: it fits nowhere, or memory is limited for a model that is not spread.
        """
        runtime = self.settings.runtime
        if runtime.device_map is not None:
            return self.checkpoint.device_map(
                dtype=self.settings.model.dtype,
                device=self.device,
                gpu_memory_mb=runtime.gpu_memory_mb,
                cpu_memory_mb=runtime.cpu_memory_mb,
            )
        if runtime.gpu_memory_mb is not None or runtime.cpu_memory_mb is not None:
            raise InputError(
                "runtime.gpu_memory_mb and runtime.cpu_memory_mb limit a model that is spread over devices.",
                got="runtime.device_map=null",
                remedy="set runtime.device_map=auto, or leave them out",
            )
        return None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.checkpoint.load_tokenizer()

    @cached_property
    def decoder(self) -> Decoder:
        """The model in memory, loaded when the first stage asks for it."""
        return self.checkpoint.load(
            self.tokenizer, dtype=self.settings.model.dtype, device=str(self.device), device_map=self.device_map
        )

    def limit_threads(self) -> None:
        """Compute with ``runtime.threads`` from now on: every thread of a process has a number of its own."""
        if threads := self.settings.runtime.threads:
            torch.set_num_threads(threads)

    @property
    def made(self) -> dict[str, Any]:
        """What a manifest records of how a run computes."""
        return {
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "device_map": self.device_map,
            "tokens_per_pass": self.settings.runtime.tokens_per_pass,
            "memory_mb": self.settings.runtime.memory_mb,
        }

    # ---------------------------------------------------------------------- the run

    def variant(self, settings: Settings) -> Bench:
        """A bench for other settings that shares this one's model, and its corpus where that is the same."""
        return _Variant(self, settings)

    @contextmanager
    def logged(
        self, name: str, *, flow: str, unused: frozenset[str] = frozenset(), parent: str | None = None
    ) -> Iterator[None]:
        """A run in MLflow, open while the stages go on.

        Args:
            name: of the run.
            flow: that begins it.
            unused: groups of settings that do not matter to it and are not logged.
            parent: the run that it is a part of.
        """
        # Of two first runs at once, one makes the database and the experiment.
        with shortages("Logging the run", self.store.root, self.settings.runtime), self.store.lock("mlflow"):
            self._tracker = Tracker(
                self.store.root,
                experiment=self.settings.tracking.experiment,
                name=name,
                flow=flow,
                settings=self.settings.model_dump(mode="json", exclude=set(unused)),
                parent=parent,
            )
        try:
            yield
        except BaseException:
            with suppress(Exception):  # what ended the run matters more than the end of its log
                self._log_end(failed=True)
            raise
        with shortages("Logging the run", self.store.root, self.settings.runtime):
            self._log_end(failed=False)

    def _log_end(self, *, failed: bool) -> None:
        artifacts = {f"artifact.{report.name}": report.artifact for report in self.reports}
        self.tracker.tags({**artifacts, **{f"state.{report.name}": report.state for report in self.reports}})
        self.tracker.metrics({f"seconds/{report.name}": report.seconds for report in self.reports})
        self.tracker.end(failed=failed)


class _Variant(Bench):
    """A bench that borrows the model and the corpus of ``lender``."""

    def __init__(self, lender: Bench, settings: Settings) -> None:
        super().__init__(settings, lender.store)
        self._lender = lender

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return self._lender.checkpoint

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self._lender.tokenizer

    @cached_property
    def decoder(self) -> Decoder:
        return self._lender.decoder

    @cached_property
    def corpus(self) -> CorpusSource:
        return self._lender.corpus if _documents(self) == _documents(self._lender) else super().corpus


def _documents(bench: Bench) -> dict[str, Any]:
    """What decides which documents a corpus gives; how many keys are taken of them does not."""
    taken = {"dynamic_multiplier", "tokens", "key_dtype", "keep_keys", "auto"}
    return bench.settings.corpus.model_dump(exclude=taken)
