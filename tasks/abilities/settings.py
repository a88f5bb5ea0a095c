"""Settings of the tasks that measure general abilities."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from factsmith.artifacts.errors import InputError
from factsmith.tasks.pipeline.settings import ReadIf, Section

__all__ = ["AbilitySettings", "LmEvalSettings", "WayName"]

WayName = Literal["likelihood", "generation"]

_TASKS = ReadIf("abilities.tasks", but=([],))


_LM_EVAL = ReadIf("abilities.lm_eval.tasks", but=([],))


def _named_once(names: list[str]) -> list[str]:
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(
            "A list of the settings abilities.* has a name twice.", got=f"{names}", remedy=f"name {twice[0]} once"
        )
    return names


class LmEvalSettings(Section):
    """Tasks of lm-eval, the LM Evaluation Harness, on which the unedited and the edited model are compared."""

    tasks: list[str] = Field([], description="tasks, groups or tags of lm-eval: arc_easy, hellaswag, ...")
    limit: Annotated[int | None, _LM_EVAL] = Field(
        None, ge=1, description="most documents of each task of lm-eval; null for all"
    )
    fewshot: Annotated[int | None, _LM_EVAL] = Field(
        None, ge=0, description="solved examples in a prompt of lm-eval; null for each task's own number"
    )
    include: Annotated[Path | None, _LM_EVAL] = Field(
        None, description="folder with YAML files of your own tasks for lm-eval; Python functions in it are run"
    )

    _once = field_validator("tasks")(_named_once)


class AbilitySettings(Section):
    """Tasks on which the unedited and the edited model are compared."""

    tasks: list[str] = Field([], description="tasks to answer: sst2, mrpc, rte, cola, nli, mmlu; none by default")
    path: Annotated[Path | None, _TASKS] = Field(
        None, description="folder with a file TASK.jsonl of each task; null reads the task's dataset from the hub"
    )
    examples: Annotated[Annotated[int, Field(ge=1)] | None, _TASKS] = Field(
        200, description="most examples of each task; null for all"
    )
    seed: Annotated[int, _TASKS] = Field(0, ge=0, description="seed of the selection of examples")
    answers: Annotated[list[WayName], Field(min_length=1), _TASKS] = Field(
        ["likelihood", "generation"],
        description="ways of answering: the likeliest label, or the first label in the generated text",
    )
    edits: Annotated[int, _TASKS | _LM_EVAL, ReadIf("method.in_sequence", (False,), needs="independent batches")] = (
        Field(
            1, ge=1, description="number of batches whose edits answer, the first ones: each makes a model of its own"
        )
    )
    along: Annotated[bool, _TASKS, ReadIf("method.in_sequence", (True,), needs="a sequence")] = Field(
        False, description="whether a sequence also answers at each of the numbers of edits at which it is scored"
    )

    lm_eval: LmEvalSettings = Field(default_factory=LmEvalSettings)

    _once = field_validator("tasks", "answers")(_named_once)
