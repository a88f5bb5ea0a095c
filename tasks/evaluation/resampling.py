"""The units that a bootstrap draws: batches if the facts of a batch share an edit, otherwise facts.

The facts of a batch are written by one edit, which writes all of them well or badly. Their scores are not independent,
so an interval from facts drawn one by one is too narrow. Whole batches are independent, and are drawn whole (the
cluster bootstrap).  [Davison and Hinkley 1997, section 3.8; Cameron, Gelbach and Miller 2008]

A few batches do not show how much edits vary. With n of them, the range of their means contains the true median with
probability 1 - 2^(1-n): 88 % for four batches, 94 % for five. With fewer than five, facts are drawn, and the interval
says how scores vary among facts that are written together with these edits. A sequence is one edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["EXPLAINED", "FEWEST", "Resampled", "Resampling", "resampling"]

FEWEST = 5
"""Fewest batches that are resampled."""

Resampled = Literal["facts", "batches", "facts within edits"]
"""What a bootstrap sample is drawn from. ``facts`` do not share an edit. ``facts within edits`` do, but there are fewer
than ``FEWEST`` edits."""

EXPLAINED: dict[Resampled, str] = {
    "facts": "intervals: bootstrap over facts",
    "batches": "intervals: bootstrap over batches, because the facts of a batch share an edit",
    "facts within edits": (
        f"intervals: bootstrap over facts within the same edits (fewer than {FEWEST} batches); "
        "another edit may differ by more"
    ),
}
"""A line for people that says what was resampled."""

_ENDS = (0.025, 0.975)


@dataclass(frozen=True)
class Resampling:
    """What a bootstrap draws from.

    Attributes:
        over: the kind of unit that is drawn.
        unit: (records,) number of the unit that each record belongs to, from 0, in the order of the records.
        count: number of units.
    """

    over: Resampled
    unit: npt.NDArray[np.int64]
    count: int

    @property
    def ends(self) -> tuple[float, float]:
        """The quantiles of the bootstrap samples that bound an interval of 95 %.

        A percentile interval is too narrow by sqrt((n - 1) / n) and by the ratio of normal and t quantiles, which
        matters for few units. For batches, the quantiles are therefore Phi(-+ sqrt(n / (n - 1)) t), where t is the
        97.5 % quantile of Student's t with n - 1 degrees of freedom. For batches of one fact this is left out, as in
        most published intervals.  [Hesterberg 2015: the expanded percentile interval]
        """
        if self.over != "batches":
            return _ENDS
        from scipy.special import ndtr, stdtrit  # Only here, so that commands that only look something up start fast.

        low = float(ndtr(-stdtrit(self.count - 1, _ENDS[1]) * np.sqrt(self.count / (self.count - 1))))
        return low, 1 - low


def resampling(records: int, *divisions: Sequence[int] | None) -> Resampling:
    """What to draw from, for records that are divided into batches in one or several ways.

    Two runs on the same facts may divide them differently. Facts then belong together if one of the runs, or a chain of
    batches of both, wrote them together. The units are the same for both runs, and no edit reaches into two of them.

    Args:
        records: number of records.
        divisions: for each way, the batch of each record; ``None`` if no two records share an edit.
    """
    label = np.arange(records)
    changed = True
    while changed:
        before = label
        for batches in divisions:
            if batches is not None:
                _, place = np.unique(np.asarray(batches), return_inverse=True)
                first = np.full(records, records)
                np.minimum.at(first, place, label)
                label = first[place]
        changed = not np.array_equal(before, label)
    _, unit = np.unique(label, return_inverse=True)
    count = int(unit.max(initial=-1)) + 1
    if count == records or count >= FEWEST:
        return Resampling("facts" if count == records else "batches", unit, count)
    return Resampling("facts within edits", np.arange(records), records)
