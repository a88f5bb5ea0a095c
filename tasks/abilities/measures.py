"""Accuracy, weighted F1 and MCC before and after an edit, and how much another sample of examples could change them.

All three follow from the confusion counts, the numbers of examples by correct label and by answer. They are computed
for all bootstrap samples together: scikit-learn's functions take one sample at a time, and would take minutes. They
agree with scikit-learn's ``accuracy_score``, ``f1_score(average="weighted", zero_division=0)`` and
``matthews_corrcoef``, where no answer is an answer of its own, which is never correct.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from factsmith.tasks.evaluation.summary import DRAWS

__all__ = ["ACCURACY", "METRICS", "Ability", "compared", "confusion_metrics", "measured"]

ACCURACY = "accuracy"
METRICS = {
    ACCURACY: "share of examples that get the correct label",
    "F1": "weighted F1: mean over labels of the harmonic mean of precision and recall, weighted by examples",
    "MCC": "Matthews correlation coefficient of correct labels and answers; 0 is chance, 100 is best",
    "unanswered": "share of examples whose generated text has no label",
}
"""The metrics, in percent."""

_ENDS = (0.025, 0.975)
_DRAWN_AT_ONCE = 4_000_000
"""Most examples that are drawn together, over several bootstrap samples. It limits memory."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ability:
    """A metric of a task, before and after an edit, in percent.

    Attributes:
        task: the task, in its usual spelling.
        way: the way of answering: ``likelihood`` or ``generation``.
        metric: ``accuracy``, ``F1`` (weighted), ``MCC`` or ``unanswered``.
        before: value of the unedited model.
        after: value of the edited model; the mean if there are several edited models.
        interval: 95 % interval of ``after`` (percentile bootstrap over examples).
        change: 95 % interval of ``after - before``, on the same examples (paired).
        examples: number of examples. Those that do not fit the model are left out.
        edits: number of edited models.
    """

    task: str
    way: str
    metric: str
    before: float
    after: float
    interval: tuple[float, float]
    change: tuple[float, float]
    examples: int
    edits: int

    @property
    def name(self) -> str:
        """For example ``SST-2 likelihood accuracy``."""
        return f"{self.task} {self.way} {self.metric}"


def confusion_metrics(counts: Array) -> dict[str, Array]:
    """The metrics of confusion counts, in percent.

    With s examples, t_k of label k, p_k answers k, and c_k correct ones of them: accuracy is sum_k c_k / s, weighted
    F1 is sum_k (t_k / s) 2 c_k / (t_k + p_k), and MCC is the correlation of labels and answers,
    (s sum_k c_k - sum_k t_k p_k) / sqrt((s^2 - sum_k p_k^2) (s^2 - sum_k t_k^2)), which is 0 if either is constant.
    [Gorodkin 2004, R_K]

    Args:
        counts: (samples, labels, labels + 1) numbers of examples by correct label and answer. The last answer is none.

    Returns:
        (samples,) values of each metric.
    """
    labels = counts.shape[1]
    total = counts.sum((1, 2))
    correct = np.trace(counts[:, :, :labels], axis1=1, axis2=2)
    asked, answered = counts.sum(2), counts.sum(1)
    hits = np.diagonal(counts[:, :, :labels], axis1=1, axis2=2)
    both = asked + answered[:, :labels]
    f1 = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)
    spread = (total**2 - (answered**2).sum(1)) * (total**2 - (asked**2).sum(1))
    agreement = total * correct - (asked * answered[:, :labels]).sum(1)
    mcc = np.divide(agreement, np.sqrt(spread), out=np.zeros_like(agreement), where=spread > 0)
    values = (correct / total, (asked * f1).sum(1) / total, mcc, answered[:, labels] / total)
    return {name: 100 * value for name, value in zip(METRICS, values, strict=True)}


def compared(
    task: str,
    way: str,
    labels: int,
    correct: Sequence[int],
    before: Sequence[int | None],
    after: Sequence[Sequence[int | None]],
    *,
    seed: int = 0,
) -> list[Ability]:
    """The metrics of a task before and after edits, on the same examples.

    Args:
        task: the task.
        way: the way of answering.
        labels: number of labels.
        correct: the correct label of each example.
        before: the unedited model's answer to each example; ``None`` for no answer.
        after: the answers of each edited model.
        seed: seed of the bootstrap samples.
    """
    models = [before, *after]
    values = [measured(labels, correct, answers) for answers in models]
    cells = [_cells(labels, correct, answers) for answers in models]
    drawn: list[list[dict[str, Array]]] = [
        [confusion_metrics((times @ its).reshape(len(times), labels, labels + 1)) for its in cells]
        for times in _bootstrap(len(correct), seed)
    ]
    found = []
    for metric in METRICS:
        if metric == "unanswered" and way == "likelihood":
            continue
        samples = np.concatenate([[one[metric] for one in part] for part in drawn], axis=1)
        edited = samples[1:].mean(0)
        found.append(
            Ability(
                task=task,
                way=way,
                metric=metric,
                before=values[0][metric],
                after=sum(one[metric] for one in values[1:]) / len(after),
                interval=_ends(edited),
                change=_ends(edited - samples[0]),
                examples=len(correct),
                edits=len(after),
            )
        )
    return found


def measured(labels: int, correct: Sequence[int], answers: Sequence[int | None]) -> dict[str, float]:
    """The metrics of one model. The arguments are those of ``compared``."""
    counts = _cells(labels, correct, answers).sum(0).reshape(1, labels, labels + 1)
    return {metric: float(value[0]) for metric, value in confusion_metrics(counts).items()}


def _cells(labels: int, correct: Sequence[int], answers: Sequence[int | None]) -> Array:
    """The place of each example among the confusion counts: (examples, labels * (labels + 1)), one 1 in each row."""
    cells = np.zeros((len(correct), labels * (labels + 1)))
    for row, (label, answer) in enumerate(zip(correct, answers, strict=True)):
        cells[row, label * (labels + 1) + (labels if answer is None else answer)] = 1
    return cells


def _ends(samples: Array) -> tuple[float, float]:
    low, high = np.quantile(samples, _ENDS).tolist()
    return low, high


def _bootstrap(count: int, seed: int) -> Iterator[Array]:
    """How often each example is in each bootstrap sample: (samples, examples), ``DRAWS`` samples in all.

    [Efron and Tibshirani 1993, chapter 6]
    """
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWN_AT_ONCE // count)
    for first in range(0, DRAWS, at_once):
        samples = min(at_once, DRAWS - first)
        yield generator.multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float64)
