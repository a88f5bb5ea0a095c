"""What an edit did, fact by fact: the answers of the unedited and of the edited model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from factsmith.tasks.evaluation.answers_stage import Answer

__all__ = ["answer_lines", "answers_table"]

_MOST_ROWS = 20
"""Most facts in the table. Those that do not hold come first."""

_LONGEST = 32

_FEW = 0.8
"""Share of facts below which it is worth saying why facts may not hold."""


def answers_table(answers: Sequence[Answer]) -> Table:
    """The prompt, the new object and both answers of each fact."""
    table = Table(title="answers: does the edited model give the new object?", title_justify="left")
    for name in ("prompt", "new object", "before", "after"):
        table.add_column(name)
    table.add_column("holds")
    for one in sorted(answers, key=lambda one: one.holds)[:_MOST_ROWS]:
        holds = Text("yes", style="green") if one.holds else Text("no", style="red")
        table.add_row(one.prompt, one.target_new, _shown(one.before), _shown(one.after), holds)
    if len(answers) > _MOST_ROWS:
        table.caption = f"{_MOST_ROWS} of {len(answers):,} facts; --json and MLflow have all"
        table.caption_justify = "left"
    return table


def answer_lines(answers: Sequence[Answer]) -> Iterator[str]:
    """How many facts hold, and why others may not."""
    held = sum(one.holds for one in answers)
    yield f"{held:,} of {len(answers):,} facts hold: the edited model's answer starts with the new object."
    if held < _FEW * len(answers):
        yield (
            "Facts may not hold because the model does not know the object, because many facts share one batch, or "
            "because layers or constants do not suit the model: `factsmith locate` and `factsmith tune` propose others."
        )
    if known := sum(one.before is not None and one.before.strip().startswith(one.target_new) for one in answers):
        yield f"{known:,} of them the unedited model gave already."


def _shown(answer: str | None) -> str:
    if answer is None:
        return "(too long for the model)"
    plain = " ".join(answer.split())
    return plain if len(plain) <= _LONGEST else f"{plain[:_LONGEST]}..."
