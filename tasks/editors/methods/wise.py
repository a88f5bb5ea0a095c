"""WISE: a side memory beside one MLP output projection, and a router that decides which prompts use it
[Wang et al. 2024, "WISE: Rethinking the Knowledge Memory"].

The side memory is a copy of the weight. Gradient descent writes facts into a random part of its entries, and a margin
keeps its activation distance large for facts and small for unrelated text. A prompt whose distance at its last token is
above a share of the facts' least distance goes through the copy, with all of its tokens and those that follow. All
other prompts go through the weight.

In a sequence, batches are written into the same shard until it has ``wise.shard`` facts. The next batch then starts a
new shard from the unedited weight, with another mask. Whenever ``wise.merged`` shards are complete, TIES merges them
into one copy. A prompt goes to the copy with the largest distance among those whose threshold it exceeds
(WISE-Retrieve). A run with at most ``wise.shard`` facts therefore has one copy, and merges nothing.

Differences from the code in EasyEdit: the distance is that of the paper, without an activation function on the MLP's
output; it is read at the last token of the prompt, not averaged over the tokens of a pass, so generated tokens stay
with their prompt; the least distance is that of the copy as it is, not as it was when each fact was written; unrelated
text is written by the unedited model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from factsmith.tasks.decoder.batching import Prompts
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.edit.edit import Edit
from factsmith.tasks.editors.editor import Editor, Task, Written
from factsmith.tasks.editors.memory.edit import OneLayerMemory, Respond, check_one_layer
from factsmith.tasks.editors.memory.side import (
    Side,
    activation_distances,
    margin_losses,
    merged_changes,
    random_mask,
)
from factsmith.tasks.editors.memory.texts import text_keys, written_texts
from factsmith.tasks.editors.settings import WiseSettings, WritingSettings
from factsmith.tasks.editors.training import FactPrompts, minimise, trained_changes
from factsmith.tasks.model.cost import ModelCost

__all__ = ["EDITOR", "SideEdit"]

_SIDE = "wise side"


@dataclass(frozen=True)
class SideEdit(OneLayerMemory):
    """A side memory beside one layer.

    Attributes:
        route: share of the least distance of a copy's facts above which a prompt goes to the copy.
        sides: the copies, in the order in which they were made: merged ones, complete shards, the present shard.
    """

    route: float
    sides: tuple[Side, ...]
    kind = "wise"

    def memory(self, layer: int, device: torch.device) -> Respond:
        sides = [side.to(device) for side in self.sides]
        thresholds = torch.tensor([self.route * side.least for side in sides], device=device)

        def respond(prompts: Prompts, keys: Tensor, outputs: Tensor) -> Tensor:
            if (chosen := prompts.decided.get(_SIDE)) is None:
                queries = prompts.at_ends(keys)
                distances = torch.stack([activation_distances(side.change, queries) for side in sides], dim=1)
                largest, side = distances.where(distances > thresholds, -1).max(1)
                chosen = prompts.decided[_SIDE] = side.where(largest >= 0, -1)
            outputs = outputs.clone()
            for number in sorted(set(chosen.tolist()) - {-1}):
                rows = chosen == number
                added = torch.nn.functional.linear(keys[rows].float(), sides[number].change)
                outputs[rows] = (outputs[rows].float() + added).to(outputs.dtype)
            return outputs

        return respond

    def tensors(self) -> dict[str, Tensor]:
        """``N.change`` (d_model, d_k) and ``N.keys`` (facts, d_k) of each copy N, float32."""
        return {
            f"{number}.{name}": tensor
            for number, side in enumerate(self.sides)
            for name, tensor in (("change", side.change), ("keys", side.keys))
        }

    def values(self) -> dict[str, Any]:
        return {"layer": self.layer, "route": self.route, "shards": [side.shards for side in self.sides]}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Self:
        sides = tuple(
            Side(tensors[f"{number}.change"], tensors[f"{number}.keys"], shards)
            for number, shards in enumerate(values["shards"])
        )
        return cls(values["layer"], values["route"], sides)

    def summary(self) -> dict[str, Any]:
        return {"copies": len(self.sides), "least": [side.least for side in self.sides]}

    def further_parameters(self) -> int:
        return sum(side.change.numel() for side in self.sides)

    def further_flop(self, lengths: Sequence[int]) -> float:
        """A product with every copy for each prompt. If all prompts are routed, one for each of their tokens too."""
        products = len(self.sides) * len(lengths) + sum(lengths)
        return 2.0 * products * self.sides[0].change.numel()


class Wise(Editor):
    name = "wise"
    version = 1
    sections = ("training", "wise")
    edit = SideEdit
    uses_contexts = True

    def check(self, method: WritingSettings, layers: Sequence[int], facts: int) -> None:
        check_one_layer(method, layers)

    def entries(self, method: WritingSettings, layers: Sequence[int], cost: ModelCost, tokens: int) -> int:
        return cost.projection + tokens * cost.key_width  # A fact has a token or more.

    def write(self, decoder: Decoder, before: Edit | None, task: Task) -> Written:
        assert before is None or isinstance(before, SideEdit)
        (layer,) = task.layers
        settings, seed = task.method.wise, task.method.training.seed
        complete, present = _continued(before.sides if before else (), decoder, layer, settings)
        mask = random_mask(present.change.shape, settings.mask, seed, sum(side.shards for side in complete))
        mask = mask.to(decoder.device)
        prompts = FactPrompts(decoder, task, layer)
        keys = prompts.keys()
        unrelated = text_keys(decoder, layer, written_texts(decoder, settings.texts, seed)).flatten(0, 1)

        with trained_changes(decoder, {layer: present.change}) as changes:
            change = changes[layer]
            change.register_hook(lambda gradient: gradient * mask)

            def keep_within_limit() -> None:
                if settings.norm is not None:
                    change.data.clamp_(-settings.norm, settings.norm)

            def margins() -> Tensor:
                return margin_losses(
                    activation_distances(change, keys.flatten(0, 1)).view(keys.shape[:2]),
                    activation_distances(change, unrelated),
                    most=settings.unrelated_most,
                    least=settings.facts_least,
                    gap=settings.gap,
                )

            optimiser = torch.optim.SGD if settings.optimiser == "sgd" else torch.optim.Adam
            fits = minimise(prompts, [change], keep_within_limit, further=margins, optimiser=optimiser)
        written = Side(change.detach().cpu(), torch.cat([present.keys, keys[:, 0].cpu()]))
        return Written(SideEdit(layer, settings.route, _merged((*complete, written), settings)), fits)


def _continued(
    sides: Sequence[Side], decoder: Decoder, layer: int, settings: WiseSettings
) -> tuple[tuple[Side, ...], Side]:
    """The copies that are complete, and the shard that the next batch is written into."""
    if sides and sides[-1].shards == 1 and len(sides[-1].keys) < settings.shard:
        return tuple(sides[:-1]), sides[-1]
    return tuple(sides), Side(torch.zeros(decoder.weight(layer).shape), torch.zeros(0, decoder.key_width))


def _merged(sides: tuple[Side, ...], settings: WiseSettings) -> tuple[Side, ...]:
    """``sides`` with the last complete shards merged, if there are enough of them."""
    last = sides[-settings.merged :]
    if settings.merged == 1 or len(last) < settings.merged:
        return sides
    if any(side.shards > 1 or len(side.keys) < settings.shard for side in last):
        return sides
    change = merged_changes([side.change for side in last], settings.density)
    return (*sides[: -settings.merged], Side(change, torch.cat([side.keys for side in last]), settings.merged))


EDITOR = Wise()
