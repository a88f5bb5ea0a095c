"""SERAC: an edit memory, a scope classifier and a counterfactual model
[Mitchell et al. 2022b, "Memory-Based Model Editing at Scale"].

The scope classifier decides whether a prompt is about a fact in the memory. If so, the counterfactual model's logits
take the place of the model's, from the prompt's last token on. If not, the model answers as it always did.

In the paper, both parts are trained on many edits beforehand, and the counterfactual model reads the fact that the
classifier found, in front of the prompt. Ours need no such training:

- The classifier compares keys of the unedited model at one layer (``memory/scope.py``). Examples of what is outside of
  a fact's scope are the other facts, texts that the model writes, and the fact's prompt with words of these texts as
  subjects.
- The counterfactual model is the model's embedding, its first ``serac.blocks`` blocks, and its final norm and output
  head. Only copies of the blocks are trained, on the facts in all contexts. It does not read the memory.
- ``serac.counterfactual`` names another model in its place, such as a smaller one of the same series. All of its blocks
  are trained in the same way. Its embedding, final norm and output head stay as they are.

In a sequence, the memory grows, and the counterfactual model is trained further on the new facts alone. It therefore
forgets earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.batching import Prompts
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.decoder.words import normalised
from factsmith.tasks.edit.edit import Edit
from factsmith.tasks.editors.editor import Described, Editor, Task, Written
from factsmith.tasks.editors.memory.counterfactual import answered_beside, counterfactual_model, own_blocks
from factsmith.tasks.editors.memory.edit import OneLayerMemory, Respond, check_one_layer
from factsmith.tasks.editors.memory.scope import Scope
from factsmith.tasks.editors.memory.texts import end_keys, text_keys, written_texts
from factsmith.tasks.editors.memory.whole_model import WholeModel, answered_by
from factsmith.tasks.editors.settings import WritingSettings
from factsmith.tasks.editors.training import FactPrompts, minimise
from factsmith.tasks.model.cost import ModelCost

__all__ = ["EDITOR", "CounterfactualEdit"]

_FACT = "serac fact"

_SUBJECT_LENGTH = 3
"""Tokens of a text that take the place of a subject."""


@dataclass(frozen=True)
class CounterfactualEdit(OneLayerMemory):
    """A scope classifier at one layer, and a counterfactual model.

    Attributes:
        scope: the classifier.
        blocks: number of blocks of the counterfactual model.
        width: its d_model.
        parameters: their parameters, float32, by the number of the block and the name within it.
        whole: what it has besides the blocks, if it is another model; ``None`` if it has the model's.
    """

    scope: Scope
    blocks: int
    width: int
    parameters: Mapping[str, Tensor]
    whole: WholeModel | None = None
    _loaded: dict[tuple[torch.device, torch.dtype], Decoder] = field(default_factory=dict, compare=False, repr=False)
    kind = "serac"

    @property
    def first_layer(self) -> int:
        return 0  # The counterfactual model starts from the input of the first block.

    def memory(self, layer: int, device: torch.device) -> Respond:
        scope = self.scope.to(device)

        def respond(prompts: Prompts, keys: Tensor, outputs: Tensor) -> Tensor:
            if _FACT not in prompts.decided:
                prompts.decided[_FACT] = scope.find(prompts.at_ends(keys))
            return outputs

        return respond

    @contextmanager
    def applied(self, decoder: Decoder) -> Iterator[None]:
        continues = False

        def starts() -> None:
            nonlocal continues
            continues = decoder.prompts is not None and _FACT in decoder.prompts.decided

        def answered(length: int) -> Tensor:
            """The positions from the last token on of each prompt within the scope of a fact."""
            assert decoder.prompts is not None
            within = (decoder.prompts.decided[_FACT] >= 0).to(decoder.device)[:, None]
            if continues:
                return within.expand(-1, length)
            return within & (torch.arange(length, device=decoder.device) >= decoder.prompts.ends[:, None])

        if self.whole is None:
            blocks = own_blocks(decoder, self.blocks, self.parameters)
            answers = answered_beside(decoder, blocks, starts, answered)
        else:
            answers = answered_by(decoder, self._other(decoder, self.whole), starts, answered)
        # The hooks of a call run in the order in which they were added, and the last one forgets the prompts.
        with answers, super().applied(decoder):
            yield

    def _other(self, decoder: Decoder, whole: WholeModel) -> Decoder:
        """The counterfactual model, on the device of ``decoder`` and in its data type. It is loaded once."""
        place = decoder.device, decoder.model.dtype
        if place not in self._loaded:
            super()._check_range(decoder)
            self._loaded[place] = whole.decoder(self.parameters, decoder)
        return self._loaded[place]

    def _check_range(self, decoder: Decoder) -> None:
        if self.whole is None:  # The weights of a whole model were checked when it was loaded.
            super()._check_range(decoder)

    def tensors(self) -> dict[str, Tensor]:
        """``centre`` (d_k,), ``facts`` (n, d_k), ``inside`` (n,) and ``outside`` (n,) of the classifier, and
        ``block.N.NAME``, the parameter NAME of block N of the counterfactual model. All are float32.

        If this is another model, ``other.NAME`` are its further parameters, in its data type.
        """
        scope = {name: getattr(self.scope, name) for name in ("centre", "facts", "inside", "outside")}
        blocks = {f"block.{name}": one for name, one in self.parameters.items()}
        other = self.whole.weights if self.whole else {}
        return {**scope, **blocks, **{f"other.{name}": one for name, one in other.items()}}

    def values(self) -> dict[str, Any]:
        own = {"layer": self.layer, "blocks": self.blocks, "width": self.width, "threshold": self.scope.share}
        return {**own, **({"config": self.whole.config} if self.whole else {})}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Self:
        scope = Scope(
            tensors["centre"], tensors["facts"], tensors["inside"], tensors["outside"], share=values["threshold"]
        )
        blocks, other = (
            {name.removeprefix(part): one for name, one in tensors.items() if name.startswith(part)}
            for part in ("block.", "other.")
        )
        whole = WholeModel(values["config"], other) if "config" in values else None
        return cls(values["layer"], scope, values["blocks"], values["width"], blocks, whole)

    def summary(self) -> dict[str, Any]:
        return {"facts": len(self.scope.facts), "blocks": self.blocks}

    def further_flop(self, lengths: Sequence[int]) -> float:
        """The similarities to all facts for each prompt, and if one is answered, the blocks for all tokens of all.

        Another model also has an output head of its own, for the last token of each prompt.
        """
        matrices = [one for one in self.parameters.values() if one.dim() == 2]
        attended = sum(length * (length + 1) / 2 for length in lengths)
        products = 2.0 * sum(lengths) * sum(one.numel() for one in matrices)
        compared = self.scope.facts.numel() + (self.width * self.whole.vocabulary if self.whole else 0)
        return 2.0 * len(lengths) * compared + products + 4.0 * self.blocks * attended * self.width


class Serac(Editor):
    name = "serac"
    version = 1
    sections = ("training", "serac")
    edit = CounterfactualEdit
    uses_contexts = True

    def check(self, method: WritingSettings, layers: Sequence[int], facts: int) -> None:
        check_one_layer(method, layers)

    def check_model(self, method: WritingSettings, layers: Sequence[int], model: Described) -> None:
        count = model.layout.block_count(model.config)
        if method.serac.counterfactual is None and method.serac.blocks > count:
            raise InputError(
                "The counterfactual model cannot have more blocks than the model.",
                got=f"method.serac.blocks={method.serac.blocks}",
                expected=f"at most {count}",
                remedy="lower method.serac.blocks",
            )

    def entries(self, method: WritingSettings, layers: Sequence[int], cost: ModelCost, tokens: int) -> int:
        block = cost.block_products + 8 * (cost.width + cost.key_width)  # Matrices, and at most so many biases.
        blocks = method.serac.blocks if method.serac.counterfactual is None else 0
        return blocks * block + (tokens + 1) * (cost.key_width + 2)  # A fact has a token or more.

    def counterfactual(self, method: WritingSettings) -> str | None:
        return method.serac.counterfactual

    def recipe(self, method: WritingSettings) -> dict[str, Any]:
        found = super().recipe(method)
        # Another model is an input of the edit, which its weights name, and has blocks of its own.
        del found["serac"]["counterfactual"]
        if method.serac.counterfactual is not None:
            del found["serac"]["blocks"]
        return found

    def write(self, decoder: Decoder, before: Edit | None, task: Task) -> Written:
        assert before is None or isinstance(before, CounterfactualEdit)
        (layer,) = task.layers
        if (task.counterfactual is None) != (task.method.serac.counterfactual is None):
            raise RuntimeError("the task does not have the counterfactual model that its method names")
        start = decoder if task.counterfactual is None else task.counterfactual
        count = task.method.serac.blocks if task.counterfactual is None else start.block_count
        scope = _extended(before.scope if before else None, decoder, layer, task)
        model = counterfactual_model(start, count, before.parameters if before else None)
        trained = dict(model.blocks.named_parameters())
        fits = minimise(FactPrompts(model, task, 0), list(trained.values()))
        parameters = {name: one.detach().cpu() for name, one in trained.items()}
        whole = None if task.counterfactual is None else WholeModel.of(start)
        return Written(CounterfactualEdit(layer, scope, count, start.width, parameters, whole), fits)


def _extended(scope: Scope | None, decoder: Decoder, layer: int, task: Task) -> Scope:
    """``scope`` with the facts of a task, on the CPU."""
    settings = task.method.serac
    texts = written_texts(decoder, settings.texts, task.method.training.seed)
    # The keys of first tokens are unlike all others, and much larger in many models.
    unrelated = text_keys(decoder, layer, texts)[:, 1:].flatten(0, 1).cpu()
    if scope is None:
        scope = Scope.empty(unrelated.mean(0), settings.threshold)
    keys = FactPrompts(decoder, task, layer).keys().cpu()
    subjects = [normalised(str(decoder.tokenizer.decode(text[-_SUBJECT_LENGTH:]))) for text in texts]
    others: list[Tensor] = []
    for request in task.requests:
        prompts = [encode_prompt(decoder.tokenizer, request.template, one).tokens for one in subjects if one]
        fit = [one for one in prompts if 0 < len(one) <= decoder.context_length]
        others.append(torch.cat([unrelated, end_keys(decoder, layer, fit, task.most_tokens).cpu()]))
    return scope.extended(keys, others)


EDITOR = Serac()
