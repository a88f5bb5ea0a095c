"""Keys and present outputs of the facts to write, layer by layer, while the layers below are being edited.

One sweep serves all layers: prompts end at the lookup token, since nothing behind it can reach it, and hidden states
wait before the next edited block instead of being computed from the start again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from factsmith.tasks.decoder.batching import length_batches, pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.text import PLACEHOLDER, encode_prompt
from factsmith.tasks.facts.request import EditRequest

__all__ = ["FactActivations"]


class FactActivations:
    """Facts on their way up through a model whose edited layers change one after the other.

    Args:
        decoder: the model; its weights are read as they are at each call.
        requests: B facts.
        contexts: templates, the clean one first.
        clean_weight: of the clean prompt in an averaged key; ``None`` for the same as every other prompt.
        most_tokens: positions in one forward pass, at most.
    """

    def __init__(
        self,
        decoder: Decoder,
        requests: Sequence[EditRequest],
        contexts: Sequence[str] = (PLACEHOLDER,),
        *,
        clean_weight: float | None = None,
        most_tokens: int = 8192,
    ) -> None:
        self.decoder = decoder
        self.facts = len(requests)
        self.contexts = len(contexts)
        prompts = [
            encode_prompt(decoder.tokenizer, context.replace(PLACEHOLDER, request.template, 1), request.subject)
            for request in requests
            for context in contexts
        ]
        lengths = [prompt.lookup + 1 for prompt in prompts]
        self._batches = list(length_batches(lengths, most_tokens))
        self._last = [
            torch.tensor([lengths[row] - 1 for row in batch], device=decoder.device) for batch in self._batches
        ]
        others = self.contexts - 1
        clean = 1 / self.contexts if clean_weight is None or not others else clean_weight
        self._weights = torch.tensor([clean] + others * [(1 - clean) / max(1, others)], dtype=torch.float64)
        self._next = 0
        with torch.inference_mode():
            self._hidden = [
                decoder.embed(pad([prompts[row].tokens[: lengths[row]] for row in batch], decoder.device))
                for batch in self._batches
            ]

    @torch.inference_mode()
    def keys(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys at ``layer`` under the weights below it: averaged over the contexts, and those of the clean prompts.

        Both (d_in, B) float64.
        """
        self._advance(layer)
        rows = torch.empty(self.facts * self.contexts, self.decoder.key_width, dtype=torch.float64)
        for batch, hidden, last in zip(self._batches, self._hidden, self._last, strict=True):

            def take(_: int, found: Tensor, batch: list[int] = batch, last: Tensor = last) -> None:
                rows[batch] = found[torch.arange(len(batch), device=last.device), last].double().cpu()

            with self.decoder.tapped([layer], take, stop=True):
                self.decoder.run(hidden, layer, layer + 1)
        by_fact = rows.view(self.facts, self.contexts, -1)
        return (by_fact * self._weights[:, None]).sum(1).T, by_fact[:, 0].T

    @torch.inference_mode()
    def mlp_outputs(self, layer: int) -> Tensor:
        """(d_model, B) float64: output of the MLP of ``layer`` at the clean prompts' lookup tokens."""
        projection = self.decoder.projection(layer)
        _, clean = self.keys(layer)
        outputs: Tensor = projection(clean.T.to(device=self.decoder.device, dtype=self.decoder.model.dtype))
        return outputs.double().cpu().T

    @torch.inference_mode()
    def outputs(self, layer: int, last_layer: int) -> Tensor:
        """(d_model, B) float64: output of block ``last_layer`` at the clean prompts' lookup tokens, as it is now.

        ``layer`` is the next layer to be edited: hidden states are kept before it.
        """
        self._advance(layer)
        found = torch.empty(self.facts, self.decoder.width, dtype=torch.float64)
        for batch, hidden, last in zip(self._batches, self._hidden, self._last, strict=True):
            clean = [place for place, row in enumerate(batch) if row % self.contexts == 0]
            if clean:
                above = self.decoder.run(hidden[clean], layer, last_layer + 1)
                facts = [batch[place] // self.contexts for place in clean]
                found[facts] = above[torch.arange(len(clean), device=last.device), last[clean]].double().cpu()
        return found.T

    def _advance(self, layer: int) -> None:
        """Bring the hidden states before block ``layer``, through blocks that will not change any more."""
        if layer > self._next:
            self._hidden = [self.decoder.run(hidden, self._next, layer) for hidden in self._hidden]
            self._next = layer
