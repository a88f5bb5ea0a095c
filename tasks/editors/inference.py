"""What an edit costs whenever the edited model is used: a memory is read in each pass, changed weights cost nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from factsmith.tasks.decoder.batching import pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.edit.edit import Edit
from factsmith.tasks.model.cost import ModelCost

__all__ = ["MEASURES", "Inference", "inference_cost"]

MEASURES = {
    "parameters": "further parameters, percent",
    "flop": "further FLOP, at most, percent",
    "time": "time, edited / unedited",
}
"""The measures, and what they are."""

_ROUNDS = 7


@dataclass(frozen=True)
class Inference:
    """The cost of an edit at inference.

    Attributes:
        parameters: further parameters, in percent of the model's.
        flop: further FLOP of a pass of the prompts, at most, in percent of the unedited model's.
        time: time of this pass with the edit, divided by the time without it.
        prompts: number of prompts in the pass.
    """

    parameters: float
    flop: float
    time: float
    prompts: int


def inference_cost(decoder: Decoder, edit: Edit, prompts: Sequence[Sequence[int]], cost: ModelCost) -> Inference:
    """Measure a pass of ``prompts``, which run together.

    Parameters and FLOP follow from shapes. Times are the least of several passes, edited and unedited ones in turn.

    Args:
        decoder: the unedited model.
        edit: the edit.
        prompts: tokens of each prompt.
        cost: the sizes of the model.
    """
    lengths = [len(prompt) for prompt in prompts]
    flop = sum(cost.block_flop(cost.blocks, length, (length + 1) / 2) for length in lengths)
    flop += cost.logits_flop(len(prompts))
    unedited, edited = [], []
    for _ in range(_ROUNDS):
        # The first pass of each pair finds cold caches, and moves the memory to the device. It is not counted.
        unedited.append([_seconds(decoder, prompts) for _ in range(2)][1])
        with edit.applied(decoder):
            edited.append([_seconds(decoder, prompts) for _ in range(2)][1])
    return Inference(
        parameters=100 * edit.further_parameters() / cost.parameters,
        flop=100 * edit.further_flop(lengths) / flop,
        time=min(edited) / min(unedited),
        prompts=len(prompts),
    )


@torch.inference_mode()
def _seconds(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> float:
    tokens, ends = pad(prompts, decoder.device), [len(prompt) - 1 for prompt in prompts]
    _wait(decoder)
    started = time.perf_counter()
    with decoder.prompted(ends) as asked:
        hidden = decoder.run(decoder.embed(tokens), 0, decoder.block_count)
    decoder.logits(asked.at_ends(hidden))
    _wait(decoder)
    return time.perf_counter() - started


def _wait(decoder: Decoder) -> None:
    if decoder.device.type == "cuda":
        torch.cuda.synchronize(decoder.device)
