"""The workbench of one run: its settings, the store, the log, and the model once somebody needs it.

It is made where a run begins and handed down; nothing below looks for state of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store
from factsmith.tasks.corpora.opening import open_corpus
from factsmith.tasks.corpora.source import CorpusSource
from factsmith.tasks.editing.contexts import read_contexts
from factsmith.tasks.home import home
from factsmith.tasks.models.checkpoint import Checkpoint, open_checkpoint
from factsmith.tasks.models.decoder import Decoder
from factsmith.tasks.progress import work
from factsmith.tasks.records.record import Record
from factsmith.tasks.records.selection import select_batches
from factsmith.tasks.settings import EMBEDDED, Settings
from factsmith.tasks.tracking import Tracker

__all__ = ["Bench", "StageReport", "open_bench"]


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
    def tracker(self) -> Tracker:
        if self._tracker is None:
            raise RuntimeError("the run has not begun")
        return self._tracker

    # ------------------------------------------------------------ the user's input

    @cached_property
    def checkpoint(self) -> Checkpoint:
        path = self.settings.model.path
        if path == EMBEDDED:
            return open_checkpoint(Path(str(resources.files("factsmith.tasks.embedded") / "assets")))
        return open_checkpoint(Path(path).expanduser())

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
    def batches(self) -> list[list[Record]]:
        """Records of each batch of facts that are written together."""
        return select_batches(self.settings.dataset, self.settings.method.batch_size)

    @cached_property
    def given_contexts(self) -> tuple[str, ...] | None:
        """Context templates of ``method.contexts``; ``None`` if they are to be sampled."""
        path = self.settings.method.contexts
        return read_contexts(path) if path else None

    def check(self, *, dataset: bool, out: Path | None = None) -> None:
        """Look at everything the user gave before anything is written.

        Args:
            dataset: whether facts are read.
            out: folder for the edited model.

        Raises:
            InputError: says what is wrong.
        """
        length = self.settings.corpus.block_length
        if length > self.checkpoint.context_length:
            raise InputError(
                f"Blocks of {length} tokens do not fit model {self.settings.model.name}.",
                expected=f"at most {self.checkpoint.context_length}",
                remedy="set corpus.block_length",
            )
        _ = self.layers, self.corpus, self.device, self.checkpoint.weight_files, self.tokenizer
        if dataset:
            _ = self.batches, self.given_contexts
        if out is not None:
            self._check_out(out)
        self.store.check_writable()

    def _check_out(self, out: Path) -> None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} is there already.", expected="a folder that is empty or new")
        if len(self.batches) > 1:
            raise InputError(
                f"{len(self.batches)} batches are edited independently: that is no one model to write to {out}.",
                expected="one batch",
                remedy="set method.batch_size=all",
            )
        above = next(parent for parent in out.absolute().parents if parent.exists())
        if not os.access(above, os.W_OK | os.X_OK) or not above.is_dir():
            raise InputError(f"{out} cannot be made.", got=f"{above} is not a folder one may write to")

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
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.checkpoint.load_tokenizer()

    @cached_property
    def decoder(self) -> Decoder:
        """The model in memory, loaded when the first stage asks for it."""
        if threads := self.settings.runtime.threads:
            torch.set_num_threads(threads)
        return self.checkpoint.load(self.tokenizer, dtype=self.settings.model.dtype, device=str(self.device))

    @property
    def made(self) -> dict[str, Any]:
        """What a manifest records of how a run computes."""
        return {
            "device": str(self.device),
            "tokens_per_pass": self.settings.runtime.tokens_per_pass,
            "memory_mb": self.settings.runtime.memory_mb,
        }

    # ---------------------------------------------------------------------- the run

    @contextmanager
    def logged(self, name: str) -> Iterator[None]:
        """A run in MLflow, open while the stages go on."""
        self._tracker = Tracker(
            self.store.root,
            experiment=self.settings.tracking.experiment,
            name=name,
            settings=self.settings.model_dump(mode="json"),
        )
        failed = True
        try:
            yield
            failed = False
        finally:
            self._tracker.tags({f"artifact.{report.name}": report.artifact for report in self.reports})
            self._tracker.metrics({f"seconds/{report.name}": report.seconds for report in self.reports})
            self._tracker.end(failed=failed)


@contextmanager
def open_bench(settings: Settings, flow: str, *, dataset: bool = True, out: Path | None = None) -> Iterator[Bench]:
    """A bench whose input has been looked at and whose run is being logged.

    Args:
        settings: resolved.
        flow: that begins the run.
        dataset: whether the run reads facts.
        out: folder for the edited model.

    Raises:
        InputError: before anything is written, if the input cannot be used.
    """
    bench = Bench(settings, Store(home()))
    bench.check(dataset=dataset, out=out)
    with bench.logged(f"{flow} {settings.method.name} on {settings.model.name}"):
        yield bench
