"""Everything a user gave, looked at before anything is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store
from factsmith.tasks.edit.stage import past_edits
from factsmith.tasks.facts.contexts import CLEAN
from factsmith.tasks.pipeline.paths import home
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.planning.settings import Settings
from factsmith.tasks.tracking.runs import PastRun
from factsmith.tasks.values.checks import check_requests

__all__ = ["check_input", "open_bench"]


@contextmanager
def open_bench(
    settings: Settings,
    flow: str,
    *,
    dataset: bool = True,
    editing: bool = True,
    out: Path | None = None,
    run: PastRun | None = None,
) -> Iterator[Bench]:
    """A bench whose input has been looked at and whose run is being logged.

    Args:
        settings: resolved.
        flow: that begins the run.
        dataset: whether the run reads facts.
        editing: whether it prepares or makes an edit; if not, method and corpus do not matter.
        out: folder for the edited model.
        run: whose edits are to be scored, where none is to be made.

    Raises:
        InputError: before anything is written, if the input cannot be used.
    """
    store = Store(home())
    bench = Bench(settings, store)
    with store.in_use():
        check_input(bench, dataset=dataset, editing=editing, out=out, run=run)
        words = [*([] if flow == "run" else [flow]), *([settings.method.name] if editing else [])]
        words += [*(["in sequence"] if editing and bench.in_sequence else []), "on", settings.model.name]
        unused = frozenset({"trace"}) if editing else frozenset({"method", "corpus"})
        with bench.logged(" ".join(words), flow=flow, unused=unused):
            yield bench


def check_input(
    bench: Bench, *, dataset: bool, editing: bool = True, out: Path | None = None, run: PastRun | None = None
) -> None:
    """Look at everything the user gave.

    Args:
        bench: of the run.
        dataset: whether facts are read.
        editing: whether they are to be written; if not, method and corpus do not matter.
        out: folder for the edited model.
        run: whose edits are to be scored, where none is to be made.

    Raises:
        InputError: says what is wrong.
    """
    threads, cores = bench.settings.runtime.threads, os.cpu_count()
    if threads and cores and threads > cores:
        raise InputError(
            f"There are no {threads} cores here.", expected=f"at most {cores}", remedy="lower runtime.threads"
        )
    bench.checkpoint.check_readable()
    _ = bench.device, bench.device_map, bench.tokenizer
    if dataset:
        _ = bench.families
    if run is not None:
        past_edits(bench, run)
    elif editing:
        _check_corpus(bench)
    if dataset and editing and run is None:
        if bench.in_sequence:
            _ = bench.scored_batches
        _check_method(bench, max(map(len, bench.batches)))
        templates = bench.given_contexts or (CLEAN,)
        check_requests(bench.tokenizer, bench.requests, templates, bench.checkpoint.context_length)
    elif dataset and not editing:
        _ = bench.true_records
    if out is not None:
        _check_out(bench, out)
    bench.store.check_writable()


def _check_corpus(bench: Bench) -> None:
    length = bench.settings.corpus.block_length
    if length > bench.checkpoint.context_length:
        raise InputError(
            f"Blocks of {length} tokens do not fit model {bench.settings.model.name}.",
            expected=f"at most {bench.checkpoint.context_length}",
            remedy="set corpus.block_length",
        )
    _ = bench.layers, bench.corpus


def _check_method(bench: Bench, facts: int) -> None:
    """See that the method can write ``facts`` together, at these layers."""
    method = bench.settings.method
    if method.read_keys == "clean" and facts > 1:
        raise InputError(
            f"method={method.name} writes one fact at a time.",
            got=f"batches of {facts}",
            remedy="set method.batch_size=1, or choose method=memit or method=emmet",
        )
    if method.value.site == "mlp" and len(bench.layers) > 1:
        raise InputError(
            f"method={method.name} edits one layer: a value at the MLP's output belongs to that MLP alone.",
            got=f"method.layers={bench.layers}",
            remedy="set method.layers to one of them",
        )


def _check_out(bench: Bench, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already.", expected="a folder that is empty or new")
    if len(bench.written) > 1:
        raise InputError(
            f"{len(bench.batches)} batches are edited independently: that is no one model to write to {out}.",
            expected="one batch",
            remedy="set method.batch_size=all, or method.sequence.history to write one after the other",
        )
    above = next(parent for parent in out.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryDirectory(dir=above):
            pass
    except OSError:
        raise InputError(f"{out} cannot be made.", got=f"{above} is not a folder one may write to") from None
