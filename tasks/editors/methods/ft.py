"""Fine-tuning of the edited weights on the facts alone: FT, and FT-L with a limit for each entry  [Zhu et al. 2020].

It is the first row of most tables since Meng et al. 2022a, whose settings are the defaults: Adam on the output
projection of one layer, until the loss is below 0.01. FT-L keeps every entry of the change within ``norm``.
"""

from __future__ import annotations

import torch

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.edit.delta import DenseDelta
from factsmith.tasks.edit.edit import Edit, WeightEdit
from factsmith.tasks.editors.editor import Editor, Task, Written
from factsmith.tasks.editors.training import FactPrompts, minimise, trained_changes

__all__ = ["EDITOR"]


class FineTuning(Editor):
    name = "ft"
    version = 1
    sections = ("training", "ft")

    def write(self, decoder: Decoder, before: Edit | None, task: Task) -> Written:
        """The change of each layer is dense. In a sequence, it holds all batches, and so does the limit of FT-L."""
        assert before is None or isinstance(before, WeightEdit)
        start = {
            layer: before.deltas[layer].dense() if before else torch.zeros(decoder.weight(layer).shape)
            for layer in task.layers
        }
        limit = task.method.ft.norm
        with trained_changes(decoder, start) as changes:

            def keep_within_limit() -> None:
                if limit is not None:
                    for change in changes.values():
                        change.data.clamp_(-limit, limit)

            fits = minimise(FactPrompts(decoder, task, min(task.layers)), list(changes.values()), keep_within_limit)
        return Written(WeightEdit({layer: DenseDelta(one.detach().cpu()) for layer, one in changes.items()}), fits)


EDITOR = FineTuning()
