"""UltraEdit: a single step of ridge regression from hidden states and gradients  [Gu et al. 2025].

For each token of the new objects, h is the input of an edited module at the position that predicts the token, and g is
the gradient of the token's NLL with respect to the module's output there. Both are normalised by the mean and the
standard deviation of everything that was seen in a sequence, this batch included. The change moves the output at h by

    v = -eta |h^|^2 g^

in the sense of ridge regression: Delta^T = (H^T H + I)^-1 H^T V, where H (tokens, d_in) holds h as it is.

Modules of the same shape share their statistics, as in the code. The gradient there is that of the mean over tokens;
here it is that of the sum, which the normalisation makes equal, and which does not depend on how passes are batched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.layout import HFModule, Layout
from factsmith.tasks.decoder.placement import empty_model
from factsmith.tasks.edit.delta import LowRankDelta, plus
from factsmith.tasks.edit.edit import Edit, ModuleEdit, ModulePlace, stored_changes
from factsmith.tasks.editors.editor import Described, Editor, Fit, Task, Written
from factsmith.tasks.editors.modules import find_modules
from factsmith.tasks.editors.normalisation import SeenFeatures, read_features, stored_features
from factsmith.tasks.editors.settings import WritingSettings
from factsmith.tasks.editors.training import FactPrompts, Labels, check_losses
from factsmith.tasks.model.cost import ModelCost

__all__ = ["EDITOR", "UltraEditEdit", "ridge_step"]


@dataclass(frozen=True)
class UltraEditEdit(ModuleEdit):
    """Changes of modules, and what their features were normalised by.

    Attributes:
        features: h and g side by side, (d_in + d_out,), of all modules of a shape, by the shape.
    """

    features: Mapping[str, SeenFeatures]
    kind = "ultraedit"

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), **stored_features(self.features)}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Self:
        return cls(stored_changes(tensors), read_features(tensors))


class UltraEdit(Editor):
    name = "ultraedit"
    version = 1
    sections = ("ultraedit",)
    edit = UltraEditEdit
    rate = "method.ultraedit.learning_rate"

    def check(self, method: WritingSettings, layers: Sequence[int], facts: int) -> None:
        if facts == 1 and not method.in_sequence:
            raise InputError(
                f"method={method.name} cannot write a fact alone: it writes what distinguishes a fact from others.",
                got="batches of 1",
                remedy="write several facts together, or one after the other with method.sequence.history=none",
            )

    def check_model(self, method: WritingSettings, layers: Sequence[int], model: Described) -> None:
        _places(model.layout.blocks(empty_model(model.config)), model.layout, method, layers)

    def steps(self, method: WritingSettings) -> int:
        return 1

    def entries(self, method: WritingSettings, layers: Sequence[int], cost: ModelCost, tokens: int) -> int:
        names = method.ultraedit.modules
        modules = len(layers) * (1 if names is None else len(names))
        thin = tokens * (cost.width + cost.key_width)
        return modules * (cost.projection if method.in_sequence else min(thin, cost.projection))

    def write(self, decoder: Decoder, before: Edit | None, task: Task) -> Written:
        assert before is None or isinstance(before, UltraEditEdit)
        places = _places(decoder.blocks, decoder.layout, task.method, task.layers)
        losses = torch.zeros(len(task.requests))
        with before.applied(decoder) if before else nullcontext(), _tapped(decoder, places) as taps:
            prompts = FactPrompts(decoder, task, min(layer for layer, _ in places))

            def take(labels: Labels, each: Tensor) -> None:
                each.sum().backward()
                losses[labels.prompts] = labels.by_prompt(each).detach().cpu()
                for tap in taps.values():
                    tap.keep(labels)

            prompts.run(take, backward=True)
        check_losses(losses, task.requests)
        features = dict(before.features) if before else {}
        for tap in taps.values():
            rows = torch.cat([tap.hidden, tap.gradient], dim=1)
            features[tap.shape] = features.get(tap.shape, SeenFeatures.none(rows.shape[1])).with_rows(rows)
        rate = task.method.ultraedit.learning_rate
        steps = {place: ridge_step(tap.hidden, tap.gradient, features[tap.shape], rate) for place, tap in taps.items()}
        deltas = {place: plus(before.deltas[place] if before else None, step) for place, step in steps.items()}
        return Written(UltraEditEdit(deltas, features), [Fit(1, float(loss)) for loss in losses])


def ridge_step(hidden: Tensor, gradient: Tensor, seen: SeenFeatures, rate: float) -> LowRankDelta:
    """The change of a module in float32, from (H^T H + I)^-1 H^T = H^T (H H^T + I)^-1 in float64.

    Args:
        hidden: (tokens, d_in) H.
        gradient: (tokens, d_out) g.
        seen: mean and spread of both side by side.
        rate: eta.
    """
    hidden, gradient = hidden.double(), gradient.double()
    normal = seen.normalised(torch.cat([hidden, gradient], dim=1))
    normal_hidden, normal_gradient = normal.split([hidden.shape[1], gradient.shape[1]], dim=1)
    wanted = -rate * normal_hidden.square().sum(1, keepdim=True) * normal_gradient
    gram = hidden @ hidden.T
    gram.diagonal().add_(1)
    left = torch.linalg.solve(gram, wanted).T
    return LowRankDelta(left.float().contiguous(), hidden.T.float().contiguous())


def _places(blocks: nn.ModuleList, layout: Layout, method: WritingSettings, layers: Sequence[int]) -> list[ModulePlace]:
    """The modules that are changed: those that are named, or the MLP output projections."""

    def projection(block: HFModule) -> list[str]:
        return [name for name, module in block.named_modules() if module is layout.projection(block)]

    return find_modules(blocks, layers, method.ultraedit.modules, projection)


class _Tap:
    """Takes the inputs of a module, and the gradient with respect to its output, in each pass."""

    def __init__(self) -> None:
        self._hidden: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._input: Tensor | None = None
        self._zero: Tensor | None = None

    @cached_property
    def hidden(self) -> Tensor:
        """(tokens, d_in) float64 inputs at the positions that predict labels, of all passes. Read after the last."""
        return torch.cat(self._hidden)

    @cached_property
    def gradient(self) -> Tensor:
        """(tokens, d_out) float64 gradients there."""
        return torch.cat(self._gradients)

    @property
    def shape(self) -> str:
        return f"{self.hidden.shape[1]}x{self.gradient.shape[1]}"

    def hook(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Add a zero to the output, whose gradient is that of the output. A block that runs again adds the same."""
        self._input = inputs[0].detach()
        if self._zero is None:
            self._zero = torch.zeros_like(output).requires_grad_()
        return output + self._zero

    def keep(self, labels: Labels) -> None:
        """Keep the rows that predict labels, after a backward pass."""
        assert self._input is not None
        assert self._zero is not None
        assert self._zero.grad is not None
        self._hidden.append(self._rows(self._input, labels))
        self._gradients.append(self._rows(self._zero.grad, labels))
        self._input = self._zero = None

    @staticmethod
    def _rows(states: Tensor, labels: Labels) -> Tensor:
        """Some blocks join the rows of a pass, so they are separated first."""
        return states.view(len(labels.prompts), -1, states.shape[-1])[labels.rows, labels.columns].double().cpu()


@contextmanager
def _tapped(decoder: Decoder, places: Sequence[ModulePlace]) -> Iterator[dict[ModulePlace, _Tap]]:
    taps = {place: _Tap() for place in places}
    with ExitStack() as stack:
        for (layer, name), tap in taps.items():
            stack.callback(decoder.blocks[layer].get_submodule(name).register_forward_hook(tap.hook).remove)
        yield taps


EDITOR = UltraEdit()
