"""Checks of everything that the user gave, before anything is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_json
from factsmith.artifacts.store import Store
from factsmith.tasks.edit.refiners import load_refiner
from factsmith.tasks.edit.stage import REQUESTS, past_edits, stored_edits
from factsmith.tasks.editors.memory.whole_model import Reader, check_counterfactual
from factsmith.tasks.engine.cluster import check_engine
from factsmith.tasks.engine.workers_stage import connect_if_elsewhere
from factsmith.tasks.export.form import Form, no_memory, not_thin
from factsmith.tasks.export.stage import ABOUT
from factsmith.tasks.export.thin import no_rank
from factsmith.tasks.facts.contexts import CLEAN, Context
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.ledger.ledger import read_ledger
from factsmith.tasks.model.stage import known_cost
from factsmith.tasks.pipeline.environment import check_vacant
from factsmith.tasks.planning.home import open_store
from factsmith.tasks.planning.method import check_method
from factsmith.tasks.planning.mirror import check_mirror
from factsmith.tasks.planning.run import Run
from factsmith.tasks.planning.settings import Settings
from factsmith.tasks.planning.title import description, title
from factsmith.tasks.preservation.stage import check_sizes
from factsmith.tasks.tracking.runs import PastRun
from factsmith.tasks.values.checks import check_requests

__all__ = ["check_input", "check_new_folder", "check_preservation", "open_run"]


@contextmanager
def open_run(
    settings: Settings,
    flow: str,
    *,
    dataset: bool = True,
    editing: bool = True,
    out: Path | None = None,
    form: Form | None = None,
    truncated: bool = False,
    past: PastRun | None = None,
    differences: Mapping[str, str] | None = None,
) -> Iterator[Run]:
    """Check the input of a run and log it while its stages run.

    Args:
        settings: the settings, resolved.
        flow: the flow that starts the run.
        dataset: whether the run reads facts.
        editing: whether it prepares or makes an edit. If not, it does not read method and corpus.
        out: folder for an export.
        form: the form of the export.
        truncated: whether the edit is truncated before.
        past: an earlier run whose edits are scored or exported, if no edit is to be made.
        differences: settings that differ from those of the choices, for the run's name.

    Raises:
        InputError: the input cannot be used. Nothing has been written but the checkpoint of a GGUF file, if it is one
            that can be edited.
    """
    store = open_store()
    run = Run(settings, store)
    with store.in_use():
        check_input(run, dataset=dataset, editing=editing, out=out, form=form, truncated=truncated, past=past)
        connect_if_elsewhere(run.workspace)
        name = title(run, flow, differences, dataset=dataset, editing=editing)
        note = description(run, flow, differences, dataset=dataset, editing=editing)
        unused = frozenset({"trace"}) if editing else frozenset({"method", "corpus", "abilities", "drift"})
        with run.logged(name, flow=flow, unused=unused, note=note):
            if dataset and editing:
                run.log_dataset()
            yield run


def check_input(
    run: Run,
    *,
    dataset: bool,
    editing: bool = True,
    out: Path | None = None,
    form: Form | None = None,
    truncated: bool = False,
    past: PastRun | None = None,
    sizes: bool = True,
) -> None:
    """Check everything that the user gave. The arguments are those of ``open_run``, and ``sizes``.

    Args:
        sizes: whether to check the sizes of the factors. A sweep does it for every cell, and the rest once.

    Raises:
        InputError: says what is wrong.
    """
    _check_machine(run)
    model = run.model
    if known_cost(run.workspace, model) is None:
        model.checkpoint.check_readable()
    _ = model.device_map, model.tokenizer
    read_ledger(model.checkpoint.path)
    if dataset:
        _ = run.families
        if editing:
            _check_harness(run)
            _ = run.abilities, run.lm_eval
    if dataset and past is not None and past.flow == "forget":
        run.batches = run.batches.holding(_written(run, past))
    if dataset and (editing or past is not None):
        for family in run.families:
            family.check(model.tokenizer, run.batches.records)
    if past is not None:
        _check_past(run, past, dataset=dataset)
    elif editing:
        _check_corpus(run)
        if sizes:
            check_preservation(run)
    if dataset and editing and past is None:
        _check_method(run)
        known: list[Context] = [*(run.given_contexts or (CLEAN,)), *run.chat_contexts]
        check_requests(model.tokenizer, run.batches.requests, known, model.context_length)
    elif dataset and not editing:
        _ = run.true_records
    if out is not None:
        _check_out(run, out, form, truncated=truncated, made=past is not None)
    run.workspace.store.check_writable()
    check_mirror(run.settings.runtime.mirror)


def _check_machine(run: Run) -> None:
    """Check that the engine and a shared store can be used from here, and that there are enough CPU cores."""
    check_engine(run.settings.runtime)
    store = run.workspace.store
    if store.upstream is not None:
        store.upstream.check()
    threads, cores = run.settings.runtime.threads, os.cpu_count()
    if threads and cores and threads > cores:
        raise InputError(
            f"This machine does not have {threads} CPU cores.",
            expected=f"at most {cores}",
            remedy="lower runtime.threads",
        )


def check_preservation(run: Run) -> None:
    """Check what is known about the factors before a key is read.

    Raises:
        InputError: they cannot be made from the tokens that the run reads, or from the statistics that it imports.
    """
    found = run.statistics
    method = run.settings.method
    if found is not None and method.reads == "samples" and method.low_rank.centred and not found.has_mean:
        raise InputError(
            f"method={method.name} models the centred covariance of the keys, and the statistics {found.name!r} do not "
            "say what their mean is.",
            got="method.low_rank.centred=true",
            remedy="set method.low_rank.centred=false to model C0 itself",
        )
    check_sizes(run.preservation, run.model, run.budget, found.count if found else None)


def _check_corpus(run: Run) -> None:
    _ = run.layers, run.statistics
    if not run.settings.reads_corpus or run.settings.corpus.source == "imported":
        return
    length = run.settings.corpus.block_length
    if length > run.model.context_length:
        raise InputError(
            f"Blocks of {length} tokens are too long for model {run.model.name}.",
            expected=f"at most {run.model.context_length}",
            remedy="set corpus.block_length",
        )
    _ = run.corpus


def _check_harness(run: Run) -> None:
    """Check that lm-eval can ask the edited model."""
    tasks = run.settings.abilities.lm_eval.tasks
    if tasks and run.adds_memory:
        raise InputError(
            f"lm-eval cannot ask a model that method={run.settings.method.name} has edited.",
            got=f"abilities.lm_eval.tasks={tasks}",
            expected="prompts whose end is known: its memory answers prompts, and lm-eval runs a prompt and its answer "
            "as one text",
            remedy="use abilities.tasks in place of abilities.lm_eval.tasks",
        )


def _check_method(run: Run) -> None:
    """Check that the method can write the batches, with another model that answers for the facts if it names one."""
    check_method(
        run.settings.method,
        run.layers,
        max(map(len, run.batches.batches)),
        editor=run.editor,
        model=run.model.checkpoint,
        device=run.workspace.device.type,
        dtype=run.model.dtype,
    )
    if (other := run.counterfactual) is None:
        return
    if known_cost(run.workspace, other) is None:
        other.checkpoint.check_readable()
    own, its = (
        Reader(one.tokenizer, int(one.checkpoint.config.vocab_size), one.context_length) for one in (run.model, other)
    )
    check_counterfactual(other.name, own, its)


def _written(run: Run, past: PastRun) -> set[str]:
    """The digests of the facts that a run wrote which left out one that its settings select."""
    edits = stored_edits(run.workspace.store, past, run.model)
    return {EditRequest(**fact).digest for edit in edits for fact in load_json(edit.path / REQUESTS)}


def _check_past(run: Run, past: PastRun, *, dataset: bool) -> None:
    store, settings = run.workspace.store, run.settings
    if dataset:
        past_edits(store, past, run.model, settings.dataset.name, run.batches)
    else:
        stored_edits(store, past, run.model)


def _check_out(run: Run, out: Path, form: Form | None, *, truncated: bool, made: bool) -> None:
    """Check that an export can be written. ``Form.check`` checks an edit that is ``made``."""
    check_new_folder(out, run.workspace.store)
    if not made:
        _check_export(run, out, form, truncated=truncated)


def check_new_folder(out: Path, store: Store) -> None:
    """Check that a folder that the user asks for can be written, before the work for it begins.

    Raises:
        InputError: it has files, is in the store, or cannot be created or replaced.
    """
    out = out.expanduser().resolve()
    if out.is_relative_to(store.root):
        raise InputError(
            f"{out} is in the folder of the artifacts, where `factsmith store gc` removes what it does not know.",
            expected=f"a folder outside {store.root}",
        )
    check_vacant(out, _export_in(out))

    parent = next(folder for folder in out.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryDirectory(dir=parent):
            pass
    except OSError:
        raise InputError(f"{out} cannot be created.", got=f"{parent} is not a writable folder") from None


def _export_in(folder: Path) -> str | None:
    """What an earlier command has exported to a folder, if it has. It may have been killed right after that."""
    try:
        about = load_json(folder / ABOUT)
        return f"an export: the {about['form']} of {str(about['edit'])[:17]}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_export(run: Run, out: Path, form: Form | None, *, truncated: bool) -> None:
    """Check that the edit that is to be made can be exported."""
    if len(run.batches.written) > 1:
        raise InputError(
            f"{len(run.batches.batches)} batches are edited independently, so there is no single model to write to "
            f"{out}.",
            expected="one batch",
            remedy="set method.batch_size=all, or method.sequence.history to write one after the other",
        )
    if run.adds_memory and truncated:
        raise no_rank(f"method={run.settings.method.name}")
    if form is not None and run.adds_memory and not form.holds_memory:
        raise no_memory(form.name, f"method={run.settings.method.name}")
    if form is not None and form.is_thin and not truncated and _is_dense(run):
        raise not_thin(form.name, f"method={run.settings.method.name}")


def _is_dense(run: Run) -> bool:
    """Whether the method's changes are known to have no thin factors."""
    if run.editor is not None:
        return run.editor.is_dense
    refiner = load_refiner(run.settings.method)
    return refiner is not None and refiner.is_dense and run.settings.method.wrapper is None
