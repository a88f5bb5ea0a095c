"""What the pages of a run show: its name, its description and its scores, in Prefect and in MLflow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from factsmith.artifacts.processes.signs_of_life import living
from factsmith.flows.configuration.differences import differences
from factsmith.flows.reporting.text_table import TextTable
from factsmith.tasks.abilities.harness_stage import HarnessResult
from factsmith.tasks.abilities.measures import ACCURACY, METRICS, Ability
from factsmith.tasks.editors.inference import MEASURES, Inference
from factsmith.tasks.evaluation.stage import Scores
from factsmith.tasks.evaluation.summary import PHASES
from factsmith.tasks.pipeline.environment import SERVED
from factsmith.tasks.pipeline.markdown import markdown_table
from factsmith.tasks.pipeline.page import page_log
from factsmith.tasks.planning.preflight import open_run
from factsmith.tasks.planning.run import Run
from factsmith.tasks.planning.settings import Settings

__all__ = [
    "abilities_table",
    "lm_eval_table",
    "name_flow_run",
    "open_page",
    "show_abilities",
    "show_scores",
    "show_tables",
]

_MLFLOW = "http://127.0.0.1:5000"
"""Where `factsmith ui` shows MLflow, unless told otherwise."""


@contextmanager
def open_page(settings: Settings, flow: str, **given: Any) -> Iterator[Run]:
    """``open_run``, with a page in Prefect that says what the run is. The arguments are those of ``open_run``."""
    with open_run(settings, flow, differences=differences(settings), **given) as run:
        tracker = run.workspace.tracker
        places = (tracker.run_id, tracker.uri, run.workspace.store.where)
        page_log(run.workspace, "MLflow run %s in %s; artifacts in %s", *places)
        name_flow_run(tracker.name)
        link_to_mlflow(run)
        yield run
        built = [report.name for report in run.workspace.reports if report.state == "built"]
        page_log(run.workspace, "built %s", ", ".join(built) or "nothing: every stage was cached")


def name_flow_run(name: str) -> None:
    """Call the flow run what it is. Prefect has given it a name of two random words."""
    if flow_run.id:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(str(flow_run.id)), name=name)


def link_to_mlflow(run: Run) -> None:
    """Put a link to the MLflow run on the page in Prefect."""
    if not flow_run.id:
        return
    tracker, served = run.workspace.tracker, living(run.workspace.store.root / SERVED) or {}
    server = tracker.uri if tracker.uri.startswith("http") else served.get("mlflow") or _MLFLOW
    create_link_artifact(
        link=f"{server.rstrip('/')}/#/experiments/{tracker.experiment}/runs/{tracker.run_id}?workflowType=machine_learning",
        link_text=f"MLflow run {tracker.run_id[:8]}",
        key="mlflow-run",
        description=f"{tracker.name} in MLflow. If the page does not open, start `factsmith ui`.",
    )


def show_scores(run: Run, scores: Scores) -> None:
    """Show the scores before and after the edit: on the page in Prefect, in the description in MLflow, in the log."""
    columns = ["", "before", "after", "meaning"]
    rows = [
        (name, _percent(scores.before.get(name)), _percent(scores.after.get(name)), meaning)
        for family in run.families
        for name, meaning in family.metrics.items()
        if scores.before.get(name) is not None or scores.after.get(name) is not None
    ]
    tracker, facts = run.workspace.tracker, scores.artifact.summary["records"]
    tracker.note(f"Scores of {facts:,} facts, in percent:")
    tracker.note(markdown_table(columns, rows))
    for name, before, after, meaning in rows[: len(run.families[0].mean[1]) + 1 if run.families[0].mean else 1]:
        page_log(run.workspace, "%s: %s before, %s after (%s)", name, before, after, meaning)
    if flow_run.id:
        table = [dict(zip(["metric", *columns[1:]], row, strict=True)) for row in rows]
        key = _key("scores", run.settings.method.name, run.settings.model.name)
        create_table_artifact(table=table, key=key, description=f"{tracker.name}: scores in percent")


def show_abilities(
    run: Run, found: Sequence[Ability], results: Sequence[HarnessResult], cost: Inference | None
) -> None:
    """Show abilities, lm-eval and the cost at inference: on the page in Prefect and in the description in MLflow."""
    tables = further_tables(found, results, cost)
    for table in tables:
        run.workspace.tracker.note(table.markdown())
    show_tables(run.settings.model.name, tables, kind="abilities")


def abilities_table(found: Sequence[Ability]) -> TextTable:
    """General abilities in percent: two rows per task and way of answering."""
    by_part: dict[tuple[str, str], dict[str, Ability]] = {}
    for one in found:
        by_part.setdefault((one.task, one.way), {})[one.metric] = one
    numbers = [name for name in METRICS if name != ACCURACY]
    edits = found[0].edits
    caption = "(n): number of examples; change: 95 % interval of the change of accuracy, over examples"
    table = TextTable(
        "general abilities, percent",
        ["task", "way", "", ACCURACY, "change", *numbers],
        labels=3,
        caption=caption + (f"; after: mean over the edits of {edits} batches" if edits > 1 else ""),
    )
    for (task, way), its in by_part.items():
        first = its[ACCURACY]
        before, after = (
            [f"{getattr(its[name], phase):z.1f}" if name in its else "" for name in numbers] for phase in PHASES
        )
        table.add(task, way, "before", f"{first.before:.1f}", "", *before)
        low, high = first.change
        table.add(f"({first.examples})", "", "after", f"{first.after:.1f}", f"{low:+z.0f}..{high:+z.0f}", *after)
        table.end_section()
    return table


def lm_eval_table(found: Sequence[HarnessResult]) -> TextTable:
    """Results of lm-eval, in its units: one row per task and metric."""
    edits = found[0].edits
    table = TextTable(
        "lm-eval",
        ["task", "metric", "of", "before", "after"],
        labels=2,
        caption="of: number of documents; +-: standard error"
        + (f"; after: mean over the edits of {edits} batches" if edits > 1 else ""),
        wrapped=["task", "metric"],
    )
    for one in found:
        errors = ("" if error is None else f" +- {error:.4f}" for error in (one.stderr_before, one.stderr_after))
        values = (f"{value:z.4f}{error}" for value, error in zip((one.before, one.after), errors, strict=True))
        table.add(one.task, one.metric, str(one.examples), *values)
    return table


def inference_table(found: Inference) -> TextTable:
    """What an edit costs at inference: one row per measure."""
    table = TextTable(
        "inference: what the edited model costs whenever it is used",
        ["", "value", "meaning"],
        caption=f"of a pass of {found.prompts} prompts of facts; changed weights cost nothing",
        texts=["meaning"],
    )
    for name, meaning in MEASURES.items():
        table.add(name, f"{getattr(found, name):.3g}", meaning)
    return table


def further_tables(
    found: Sequence[Ability], results: Sequence[HarnessResult], cost: Inference | None
) -> list[TextTable]:
    """The tables of what was measured besides scores and drift."""
    tables = [abilities_table(found)] if found else []
    tables += [lm_eval_table(results)] if results else []
    return tables + ([inference_table(cost)] if cost else [])


def show_tables(name: str, tables: Iterable[TextTable], *, kind: str = "sweep") -> None:
    """Show the tables of ``name``, a sweep or a model, on its page in Prefect."""
    if not flow_run.id:
        return
    for table in tables:
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        create_table_artifact(table=rows, key=_key(kind, name, table.title), description=table.title)


def _key(*names: str) -> str:
    """A key of an artifact in Prefect, which has small letters, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", " ".join(names).lower()).strip("-")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:z.1f}"
