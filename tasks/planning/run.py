"""One run: its workspace and its input. Each part of the input is opened when it is first needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.recipe import digest_of
from factsmith.artifacts.store import Store
from factsmith.tasks.abilities.harness import HarnessTask, load_harness
from factsmith.tasks.abilities.reading import select_examples
from factsmith.tasks.abilities.stage import Asked
from factsmith.tasks.abilities.task import load_tasks
from factsmith.tasks.corpus.budget import TokenBudget
from factsmith.tasks.corpus.corpus import Corpus, open_corpus
from factsmith.tasks.covariance.imported_stage import Imported, find_imported
from factsmith.tasks.editors.editor import Editor, load_editor
from factsmith.tasks.evaluation.family import MetricFamily, load_families
from factsmith.tasks.facts.batches import FactBatches, fact_digests
from factsmith.tasks.facts.contexts import CLEAN, ChatContext, chat_contexts, read_contexts
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.selection import select_records
from factsmith.tasks.model.model import Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.planning.mirror import look_in
from factsmith.tasks.planning.opening import opened_beside, opened_model
from factsmith.tasks.planning.settings import Settings
from factsmith.tasks.preservation.kind import PreservationKind, load_kind

__all__ = ["Run"]

T = TypeVar("T")

_TOKEN_COUNTS = {"dynamic_multiplier", "tokens", "key_dtype", "keep_keys", "auto"}
"""Corpus settings that do not change the documents."""


class Run:
    """A run's settings, its workspace and its input. Flows pass each stage the parts that it reads.

    Args:
        settings: the settings, resolved.
        store: the artifact store.
        lender: a run that lends its model to this one, its corpus if both use the same documents, and its records if
            both select the same.
    """

    def __init__(self, settings: Settings, store: Store, *, lender: Run | None = None) -> None:
        self.settings = settings
        self.workspace = Workspace(store, settings.runtime)
        self._lender = lender

    def variant(self, settings: Settings) -> Run:
        """A run with other settings that borrows what it has in common with this one."""
        return Run(settings, self.workspace.store, lender=self)

    # ---------------------------------------------------------------------- the input

    @cached_property
    def model(self) -> Model:
        """The model to edit.

        Raises:
            InputError: there is no such model, or it cannot be edited.
        """
        if self._lender is not None:
            return self._lender.model
        return opened_model(self.workspace, self.settings.model, self.settings.runtime)

    @cached_property
    def counterfactual(self) -> Model | None:
        """Another model that answers for the facts, if the method names one. It raises what ``model`` does."""
        path = self.editor.counterfactual(self.settings.method) if self.editor is not None else None
        lent = self._lender.counterfactual if self._lender is not None else None
        setting = f"method.{self.settings.method.editor}.counterfactual"
        return lent if lent and lent.name == path else opened_beside(self.workspace, path, self.model, setting)

    @cached_property
    def layers(self) -> list[int]:
        """The edited layers, ascending.

        Raises:
            InputError: the model does not have one of them.
        """
        layers = sorted(set(self.settings.method.layers))
        for layer in layers:
            if not 0 <= layer < self.model.block_count:
                raise InputError(
                    f"Layer {layer} is out of range for model {self.model.name}.",
                    expected=f"0 to {self.model.block_count - 1}",
                    remedy="set method.layers",
                )
        return layers

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus.

        Raises:
            InputError: it does not exist, or cannot be read.
        """
        if self._lender is not None and _documents(self) == _documents(self._lender):
            return Corpus(self.settings.corpus, self._lender.corpus.source)
        return open_corpus(self.settings.corpus, checksum=self.workspace.store.checksums.sha256, progress=progress)

    @cached_property
    def preservation(self) -> PreservationKind:
        """The kind of preservation that the method chooses; that of the identity for an editor, which reads nothing."""
        if not self.settings.method.solves:
            method = self.settings.method.model_copy(update={"preservation": "identity", "preservation_weight": 1.0})
            return load_kind(method, width=self.model.key_width, keep_keys=False)
        method = self.settings.method
        if self.statistics is not None:  # A low-rank model is then one of as many keys as C0 covers.
            method = method.with_samples(self.statistics.count)
        return load_kind(method, width=self.model.key_width, keep_keys=self.keeps_keys)

    @cached_property
    def statistics(self) -> Imported | None:
        """The imported C0 of the edited layers, which must all be there; ``None`` if the run makes its own."""
        wanted = self.settings.imports
        return find_imported(self.workspace.store, self.model, self.layers, wanted) if wanted is not None else None

    @cached_property
    def editor(self) -> Editor | None:
        """The editor that writes the facts; ``None`` for a method that solves the equation.

        Raises:
            InputError: there is no such editor.
        """
        return load_editor(name) if (name := self.settings.method.editor) is not None else None

    @property
    def adds_memory(self) -> bool:
        """Whether the edited model has a memory beside its weights."""
        return self.editor is not None and self.editor.edit.adds_memory

    @cached_property
    def keeps_keys(self) -> bool:
        """Whether keys are stored: ``corpus.keep_keys``.

        If it is null, they are if making them again would take longer than reading them, as on a CPU, or if they
        are read again: by factors that are made from them, or by the search for d_m.
        """
        given = self.settings.corpus.keep_keys
        if given is not None or self.settings.imports is not None:
            return bool(given)
        if self.workspace.device.type == "cpu" or self.settings.corpus.is_auto:
            return True
        kept = load_kind(self.settings.method, width=self.model.key_width, keep_keys=True)
        return kept.source == "keys"

    @cached_property
    def budget(self) -> TokenBudget:
        """How many tokens of the corpus the run reads."""
        method = self.settings.method
        return TokenBudget.of(
            self.settings.corpus, self.model.key_width, reads=method.reads, samples=method.low_rank.n_samples
        )

    @cached_property
    def records(self) -> list[Record]:
        """The records that the settings select, for batches or for tracing.

        Raises:
            InputError: the records cannot be used.
        """
        if self._lender is not None and _selection(self) == _selection(self._lender):
            return self._lender.records
        return select_records(self.settings.dataset)

    @cached_property
    def batches(self) -> FactBatches:
        """The records to write, in batches.

        Raises:
            InputError: the records cannot be used, or there are too few.
        """
        method = self.settings.method
        return FactBatches.select(
            [one.with_question for one in self.records] if method.in_chat else self.records,
            self.settings.dataset,
            method.batch_size,
            in_sequence=method.in_sequence,
            evaluate_at=method.sequence.evaluate_at,
        )

    @cached_property
    def true_records(self) -> list[Record]:
        """The records with a true object, whatever their batch.

        Raises:
            InputError: there are none.
        """
        records = [one for one in self.records if one.request.target_true is not None]
        if not records:
            raise InputError(
                f"dataset={self.settings.dataset.name} has no fact to trace.",
                expected="records with target_true, the object that the model gives today",
            )
        return records

    @cached_property
    def families(self) -> list[MetricFamily]:
        """The metric families that score the run.

        Raises:
            InputError: there is no family of that name.
        """
        return load_families(self.settings.dataset.metrics)

    @cached_property
    def abilities(self) -> Asked | None:
        """The examples that measure general abilities; ``None`` if the run measures none.

        Raises:
            InputError: there is no such task, or its examples cannot be used.
        """
        settings = self.settings.abilities
        if not settings.tasks:
            return None
        if self._lender is not None and settings == self._lender.settings.abilities:
            return self._lender.abilities
        tasks = [(task, select_examples(task, settings)) for task in load_tasks(settings.tasks)]
        return Asked(tasks, settings.answers)

    @cached_property
    def lm_eval(self) -> list[HarnessTask]:
        """The tasks of lm-eval; empty if none are run.

        Raises:
            InputError: lm-eval is not installed, or there is no such task, or its data cannot be loaded.
        """
        settings = self.settings.abilities.lm_eval
        if self._lender is not None and settings == self._lender.settings.abilities.lm_eval:
            return self._lender.lm_eval
        return load_harness(settings) if settings.tasks else []

    def asked_edits(self, edits: Sequence[T]) -> tuple[Sequence[T], list[int] | None]:
        """The edits whose abilities are measured, and how many facts each of them holds if they are a sequence.

        Args:
            edits: one for each batch, or one for each number of batches at which a sequence is scored.
        """
        settings, batches = self.settings.abilities, self.batches
        if batches.scored is None:
            return edits[: settings.edits], None
        counts = [batches.counts[number - 1] for number in batches.scored]
        return (edits, counts) if settings.along else (edits[-1:], counts[-1:])

    def harness_edits(self, edits: Sequence[T]) -> Sequence[T]:
        """The edits that lm-eval is run on: the last one of a sequence, or those of the first batches."""
        return edits[-1:] if self.batches.in_sequence else edits[: self.settings.abilities.edits]

    @cached_property
    def given_contexts(self) -> tuple[str, ...] | None:
        """The context templates in ``method.contexts``; ``None`` if they are to be sampled.

        Raises:
            InputError: the file cannot be used.
        """
        contexts = self.settings.method.contexts
        if contexts == "chat":
            return (CLEAN,)
        return read_contexts(contexts) if isinstance(contexts, Path) else None

    @cached_property
    def chat_contexts(self) -> tuple[ChatContext, ...]:
        """The chat contexts; empty unless ``method.contexts`` asks for them.

        Raises:
            InputError: the model has no chat template, or it cannot be applied.
        """
        return chat_contexts(self.model.tokenizer) if self.settings.method.in_chat else ()

    @property
    def about(self) -> dict[str, Any]:
        """What an edited model is: the base model, the method, and the settings that made it."""
        settings = self.settings.model_dump(mode="json", include={"model", "corpus", "method", "dataset"})
        return {"model": self.settings.model.path, "method": self.settings.method.name, "settings": settings}

    # ---------------------------------------------------------------------- the log

    @contextmanager
    def logged(
        self, name: str, *, flow: str, unused: frozenset[str] = frozenset(), note: str = "", parent: str | None = None
    ) -> Iterator[None]:
        """Log the run to MLflow while its stages run.

        Args:
            name: the run's name.
            flow: the flow that starts it.
            unused: groups of settings that the flow does not read; they are not logged.
            note: what the run does, in Markdown.
            parent: id of the MLflow run that this one is a part of.
        """
        look_in(self.workspace.store, self.settings.runtime.mirror)
        with self.workspace.logged(
            name,
            flow=flow,
            settings=self.settings.model_dump(mode="json", exclude=set(unused)),
            experiment=self.settings.tracking.experiment,
            note=note,
            parent=parent,
        ):
            yield

    def log_dataset(self) -> None:
        """Log the facts as MLflow's dataset."""
        settings, records = self.settings.dataset, self.batches.records
        self.workspace.tracker.dataset(
            settings.name,
            digest=digest_of(fact_digests(records)),
            source=str(settings.path.resolve()) if settings.path else settings.format,
            facts=len(records),
        )


def _selection(run: Run) -> dict[str, Any]:
    """The settings that determine which records a dataset gives."""
    return run.settings.dataset.model_dump(exclude={"batches", "metrics"})


def _documents(run: Run) -> dict[str, Any]:
    """The settings that determine which documents a corpus gives."""
    return run.settings.corpus.model_dump(exclude=_TOKEN_COUNTS)
