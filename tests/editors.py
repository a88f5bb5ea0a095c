"""Tasks for editors on the tiny models, and what their edits are compared by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.edit.edit import Edit
from factsmith.tasks.editors.editor import Task
from factsmith.tasks.editors.settings import WritingSettings
from factsmith.tasks.facts.contexts import CLEAN, Context
from factsmith.tasks.facts.request import EditRequest
from tests.edits import facts


def task(
    layers: Sequence[int],
    requests: Sequence[EditRequest] | None = None,
    contexts: Sequence[Context] = (CLEAN,),
    like: Task | None = None,
    **sections: dict[str, Any],
) -> Task:
    """A task with these sections of ``method``, or with the settings of another task."""
    given = {"name": "mine", "editor": "ft", "layers": list(layers), "preservation": "identity", **sections}
    method = like.method if like else WritingSettings.model_validate(given)
    return Task(facts() if requests is None else requests, contexts, layers, method, most_tokens=10_000)


@torch.no_grad()
def losses(decoder: Decoder, requests: Sequence[EditRequest]) -> list[float]:
    """Mean NLL per token of each new object, from transformers' own pass."""
    found = []
    for request in requests:
        prompt = encode_prompt(decoder.tokenizer, request.template, request.subject, request.target_new)
        scores = decoder.model(torch.tensor([prompt.inputs])).logits[0, -prompt.continued :].float().log_softmax(-1)
        found.append(-float(scores[range(prompt.continued), list(prompt.labels)].mean()))
    return found


def same(one: Edit, other: Edit) -> bool:
    """Whether two edits are equal to the bit."""
    here, there = one.tensors(), other.tensors()
    return (
        here.keys() == there.keys()
        and all(torch.equal(tensor, there[name]) for name, tensor in here.items())
        and one.values() == other.values()
    )
