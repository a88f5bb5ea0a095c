"""SimIE: a sequence that comes close to one edit of all its facts  [Guo et al. 2025].

The ideal weights would give, at the keys K_i of every batch i, what the base method gives for this batch alone:
W_i' K_i. They solve a ridge regression, and recursive least squares solve it batch by batch. With P_0 = ridge I,
P_t = P_(t-1) + K_t K_t^T and W_t = W_(t-1) + (W_t' - W_(t-1)) K_t K_t^T P_t^-1. Keys are columns here. Every W_t' is
edited from W_0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.edit.delta import Delta, LowRankDelta
from factsmith.tasks.edit.refiners import Refiner
from factsmith.tasks.edit.settings import SimieSettings
from factsmith.tasks.edit.wrappers import Wrapper
from factsmith.tasks.facts.contexts import CLEAN, in_context
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.keys.block_keys import block_keys
from factsmith.tasks.preservation.history import History
from factsmith.tasks.preservation.identity import IdentityPreservation


class SimIE(Wrapper[SimieSettings]):
    """Remembers the keys of every token of the facts. A step has the rank of its keys, however many came before.

    P_t^-1 K_t comes from Woodbury's identity, as a history of keys that is added to ridge I.
    """

    name = "simie"

    def __init__(self, settings: SimieSettings, refiner: Refiner[Any] | None) -> None:
        super().__init__(settings, refiner)
        self._remembered: dict[int, History] = {}

    def keys(
        self, decoder: Decoder, requests: Sequence[EditRequest], layers: Sequence[int], *, most_tokens: int
    ) -> dict[int, Tensor]:
        """Keys of every token of each prompt and its new object, the last token included."""
        prompts = [in_context(CLEAN, one).encode(decoder.tokenizer, one.subject, one.target_new) for one in requests]
        texts = [prompt.tokens for prompt in prompts]
        found = block_keys(decoder, texts, layers, most_tokens=most_tokens, device=decoder.device)
        return {layer: keys.double().T.contiguous() for layer, keys in found.items()}

    def step(self, layer: int, delta: LowRankDelta, keys: Tensor, original: Tensor, total: Tensor) -> LowRankDelta:
        change: Delta = delta if self.refiner is None else self.refiner.refine(layer, delta, original)
        wanted = _times(change, keys)
        if total.numel():
            wanted = wanted - total @ keys.to(total)
        return LowRankDelta(wanted, self._gain(layer, keys).to(wanted)).contiguous()

    def remember(self, layer: int, keys: Tensor) -> None:
        self._gain(layer, keys)

    def _gain(self, layer: int, keys: Tensor) -> Tensor:
        """(d_in, n) P_t^-1 K_t, with ``keys`` remembered."""
        if layer not in self._remembered:
            self._remembered[layer] = History(IdentityPreservation(self.settings.ridge))
        history = self._remembered[layer]
        history.add(keys)
        solved = history.solve(keys)
        if len(history) >= len(keys):
            history.absorb()
        return solved


def _times(delta: Delta, keys: Tensor) -> Tensor:
    """(d_out, n) float64 product of ``delta`` and ``keys``."""
    if isinstance(delta, LowRankDelta):
        return delta.left @ (delta.right.T @ keys.to(delta.right))
    return delta.dense().double() @ keys.to(delta.dense().device)


WRAPPER = SimIE
