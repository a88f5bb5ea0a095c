"""Fine-tuning of the edited weights on the facts alone: FT, FT-L with a limit for each entry, FT-M  [Zhu et al. 2020].

Adam runs on the MLP output projections of the edited layers until the mean loss of a batch is below ``stop_loss``. FT-L
keeps every entry of a batch's change within ``norm``. FT and FT-L are baselines of Meng et al. 2022a. Their code
predicts all tokens of a new object at the prompt's last token, which is right only for objects of one token. FT-M
predicts each of them after those before it [Zhang et al. 2024, "A Comprehensive Study of Knowledge Editing for Large
Language Models"].

As in the code of Meng et al., the limit is measured from the weights that a batch starts with: in a sequence, each
batch may change an entry by ``norm``. Their code takes a step for every 64 facts. Here a step is one of all facts of a
batch.
"""

from __future__ import annotations

from typing import Any

import torch

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.edit.delta import DenseDelta
from factsmith.tasks.edit.edit import Edit, WeightEdit
from factsmith.tasks.editors.editor import Editor, Task, Written
from factsmith.tasks.editors.settings import WritingSettings
from factsmith.tasks.editors.training import FactPrompts, minimise, trained_changes

__all__ = ["EDITOR"]


class FineTuning(Editor):
    name = "ft"
    version = 1
    sections = ("training", "ft")
    is_dense = True

    def write(self, decoder: Decoder, before: Edit | None, task: Task) -> Written:
        """The change of each layer is dense. In a sequence, it holds all batches. FT-L limits what each adds."""
        assert before is None or isinstance(before, WeightEdit)
        start = {
            layer: before.deltas[layer].dense() if before else torch.zeros(decoder.weight(layer).shape)
            for layer in task.layers
        }
        settings = task.method.ft
        limit, teacher_forced = settings.norm, settings.objective == "teacher_forced"
        with trained_changes(decoder, start) as changes:
            first = {layer: change.detach().clone() for layer, change in changes.items()}

            def keep_within_limit() -> None:
                if limit is not None:
                    for layer, change in changes.items():
                        change.data.clamp_(first[layer] - limit, first[layer] + limit)

            prompts = FactPrompts(decoder, task, min(task.layers), teacher_forced=teacher_forced)
            fits = minimise(prompts, list(changes.values()), keep_within_limit)
        return Written(WeightEdit({layer: DenseDelta(one.detach().cpu()) for layer, one in changes.items()}), fits)

    def recipe(self, method: WritingSettings) -> dict[str, Any]:
        """Version 1 of a sequence with a limit measured it from the unedited weights, for all batches together."""
        found = super().recipe(method)
        return found | {"version": 2} if method.in_sequence and method.ft.norm is not None else found


EDITOR = FineTuning()
