"""Stage ``lm-eval``: results of tasks of lm-eval on the unedited and the edited model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.formats import load_json, save_json
from factsmith.artifacts.recipe import Recipe, Series
from factsmith.tasks.abilities.harness import HarnessTask, run_harness
from factsmith.tasks.abilities.settings import LmEvalSettings
from factsmith.tasks.editors.stage import read_edit
from factsmith.tasks.model.model import Fingerprint, Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["HarnessResult", "harness", "harness_recipe"]

_RESULTS = "results.json"


@dataclass(frozen=True)
class HarnessResult:
    """A metric of a task of lm-eval before and after an edit, in lm-eval's units.

    Attributes:
        task: the task or group.
        metric: the metric, and the filter of answers if it is not ``none``.
        before: value of the unedited model.
        after: value of the edited model; the mean if there are several edited models.
        stderr_before: standard error that lm-eval gives; ``None`` if it gives none.
        stderr_after: the same of the edited model. Of several models, the mean, which is an upper bound of the error of
            their mean.
        examples: number of documents.
        edits: number of edited models.
    """

    task: str
    metric: str
    before: float
    after: float
    stderr_before: float | None
    stderr_after: float | None
    examples: int
    edits: int

    @property
    def name(self) -> str:
        """For example ``arc_easy acc``."""
        return f"{self.task} {self.metric}"


def harness_recipe(model: Fingerprint, task: HarnessTask, edit: str | None) -> Recipe:
    """The recipe of a task's results under the weights of an edit, given by its digest, or of none."""
    inputs = {**model.inputs, **({"edit": edit} if edit else {})}
    return Series("lm-eval", 1, model.parameters, inputs).member(**task.identity)


@stage("lm-eval")
def harness(
    workspace: Workspace,
    model: Model,
    tasks: Sequence[HarnessTask],
    settings: LmEvalSettings,
    edits: Sequence[Artifact],
) -> Outcome[list[HarnessResult]]:
    """Run tasks of lm-eval on the unedited model and on each edited one.

    The weights are edited in memory and restored afterwards. A result is identified by the weights, lm-eval's version,
    and the task's version, configuration and documents. A result that is in the store is not computed again.

    Args:
        workspace: the run's workspace.
        model: the model. Only its first device is used.
        tasks: the tasks.
        settings: the number of documents and of solved examples in a prompt.
        edits: the edits. Each makes a model of its own.
    """
    weights = [None, *edits]
    found: list[HarnessResult] = []
    built, address = 0, ""
    with progress("lm-eval", len(tasks) * len(weights)) as advance:
        for task in tasks:
            by_edit = []
            for edit in weights:
                recipe = harness_recipe(model.fingerprint, task, edit.digest if edit else None)
                artifact, new = workspace.store.get_or_build(recipe, _build(workspace, model, task, settings, edit))
                built, address = built + new, artifact.address
                by_edit.append(_by_metric(load_json(artifact.path / _RESULTS)))
                advance(1)
            found += _results(by_edit)
    return Outcome(found, address, built > 0, {"tasks": len(tasks), "evaluations": built})


def _build(
    workspace: Workspace, model: Model, task: HarnessTask, settings: LmEvalSettings, edit: Artifact | None
) -> Callable[[Draft], None]:
    def build(draft: Draft) -> None:
        with read_edit(edit).applied(model.decoder):
            rows = run_harness(model.decoder, task.name, settings, most_tokens=model.limits.most_tokens)
        if edit:
            draft.read_from(edit)
        save_json(draft.path / _RESULTS, rows)
        draft.summary = {"results": len(rows)}
        draft.made = {**workspace.made, **model.made}

    return build


def _by_metric(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["task"], row["metric"]): row for row in rows}


def _results(by_edit: Sequence[dict[tuple[str, str], dict[str, Any]]]) -> list[HarnessResult]:
    """The results of one task from those of the unedited model and of each edited one."""
    first, *others = by_edit
    found = []
    for (task, metric), before in first.items():
        after = [one[task, metric] for one in others]
        errors = [one["stderr"] for one in after]
        found.append(
            HarnessResult(
                task=task,
                metric=metric,
                before=before["value"],
                after=sum(one["value"] for one in after) / len(after),
                stderr_before=before["stderr"],
                stderr_after=None if None in errors else sum(errors) / len(errors),
                examples=before["examples"],
                edits=len(after),
            )
        )
    return found
