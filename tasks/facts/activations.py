"""Keys and current outputs of the facts to write, layer by layer, while the layers below are edited.

One pass through the model serves all layers. Prompts are cut after the lookup token, because later tokens cannot
influence it. Hidden states are kept at the input of the next edited block instead of being recomputed from the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from factsmith.tasks.decoder.batching import length_batches, pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.facts.contexts import CLEAN, Context, asked_facts, in_context
from factsmith.tasks.facts.request import EditRequest

__all__ = ["FactActivations"]


class FactActivations:
    """The activations of facts in a model whose layers are edited one after the other, from the lowest up.

    They stay on the model's device. A fact whose question is asked in some of the contexts has two keys: that of its
    prompt, averaged over the other contexts, and that of its question, averaged over these. An average of both would be
    far from either, because a subject that a question names late is not what it is at the start of a text.

    Args:
        decoder: the model; each call uses the weights that it has then.
        requests: B edit requests.
        contexts: contexts, the clean one first.
        clean_weight: weight of the clean prompt in an averaged key; ``None`` to weight all prompts equally.
        most_tokens: maximum number of positions in one forward pass.

    Attributes:
        owners: (keys,) the fact of each key: all facts in order, then those that have a question.
    """

    def __init__(
        self,
        decoder: Decoder,
        requests: Sequence[EditRequest],
        contexts: Sequence[Context] = (CLEAN,),
        *,
        clean_weight: float | None = None,
        most_tokens: int = 8192,
    ) -> None:
        self.decoder = decoder
        self.facts = len(requests)
        self.contexts = len(contexts)
        prompts = [
            in_context(context, request).encode(decoder.tokenizer, request.subject)
            for request in requests
            for context in contexts
        ]
        lengths = [prompt.lookup + 1 for prompt in prompts]
        self._batches = list(length_batches(lengths, most_tokens, spare=decoder.pass_cost))
        self._last = [
            torch.tensor([lengths[row] - 1 for row in batch], device=decoder.device) for batch in self._batches
        ]
        asked = asked_facts(contexts, requests)
        self.owners = [*range(self.facts), *asked]
        asks = torch.tensor([not isinstance(one, str) and one.question is not None for one in contexts])
        weights = _weights(torch.ones_like(asks), clean_weight).repeat(self.facts, 1)
        weights[asked] = _weights(~asks, clean_weight)
        self._weights = weights.to(decoder.device)
        self._question_weights = _weights(asks, None).to(decoder.device)
        self._first_question = int(asks.int().argmax())
        self._next = 0
        with torch.inference_mode():
            self._hidden = [
                decoder.embed(pad([prompts[row].tokens[: lengths[row]] for row in batch], decoder.device))
                for batch in self._batches
            ]

    @torch.inference_mode()
    def keys(self, layer: int) -> tuple[Tensor, Tensor]:
        """The keys at ``layer`` with the current weights below it.

        Returns:
            The keys averaged over their contexts, and those of the clean prompts and of the questions as they are, both
            (d_in, keys) float64, in the order of ``owners``.
        """
        self._advance(layer)
        rows = self._empty(self.facts * self.contexts, self.decoder.key_width)
        for batch, hidden, last in zip(self._batches, self._hidden, self._last, strict=True):

            def take(_: int, found: Tensor, batch: list[int] = batch, last: Tensor = last) -> None:
                rows[batch] = found[torch.arange(len(batch), device=last.device), last].double()

            with self.decoder.tapped([layer], take, stop=True):
                self.decoder.run(hidden, layer, layer + 1)
        by_fact = rows.view(self.facts, self.contexts, -1)
        averaged, clean = (by_fact * self._weights[:, :, None]).sum(1), by_fact[:, 0]
        if asked := self.owners[self.facts :]:
            averaged = torch.cat([averaged, (by_fact[asked] * self._question_weights[:, None]).sum(1)])
            clean = torch.cat([clean, by_fact[asked, self._first_question]])
        return averaged.T, clean.T

    @torch.inference_mode()
    def projected(self, layer: int) -> Tensor:
        """The output of the MLP output projection of ``layer`` at the clean prompts' lookup tokens.

        (d_model, B) float64.
        """
        projection = self.decoder.projection(layer)
        _, clean = self.keys(layer)
        outputs: Tensor = projection(clean.T[: self.facts].to(self.decoder.model.dtype))
        return outputs.double().to(self.decoder.device).T

    @torch.inference_mode()
    def mlp_outputs(self, layer: int, last_layer: int) -> Tensor:
        """What the MLP of ``last_layer`` adds to the residual stream at the clean prompts' lookup tokens.

        (d_model, B) float64: the output of its projection, after the norm if the block has one. ``layer`` is the next
        layer to be edited.
        """
        if layer == last_layer:
            outputs = self.projected(layer)
        else:
            found = self._empty(self.facts, self.decoder.width)
            for facts, hidden, last in self._clean(layer):

                def keep(_: int, output: Tensor, facts: list[int] = facts, last: Tensor = last) -> Tensor:
                    found[facts] = output[torch.arange(len(last), device=last.device), last].double()
                    return output

                with self.decoder.rewritten("mlp", [last_layer], keep):
                    self.decoder.run(hidden, layer, last_layer + 1)
            outputs = found.T
        norm = self.decoder.output_norm(last_layer)
        return outputs if norm is None else norm.added(outputs.T).T

    @torch.inference_mode()
    def outputs(self, layer: int, last_layer: int) -> Tensor:
        """The current output of block ``last_layer`` at the clean prompts' lookup tokens, (d_model, B) float64.

        ``layer`` is the next layer to be edited. Hidden states are kept at its input.
        """
        found = self._empty(self.facts, self.decoder.width)
        for facts, hidden, last in self._clean(layer):
            above = self.decoder.run(hidden, layer, last_layer + 1)
            found[facts] = above[torch.arange(len(last), device=last.device), last].double()
        return found.T

    def _clean(self, layer: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """The clean prompts, in groups: their facts, hidden states at the input of ``layer``, and lookup indices."""
        self._advance(layer)
        for batch, hidden, last in zip(self._batches, self._hidden, self._last, strict=True):
            clean = [place for place, row in enumerate(batch) if row % self.contexts == 0]
            if clean:
                yield [batch[place] // self.contexts for place in clean], hidden[clean], last[clean]

    def _empty(self, rows: int, width: int) -> Tensor:
        return torch.empty(rows, width, dtype=torch.float64, device=self.decoder.device)

    def _advance(self, layer: int) -> None:
        """Advance the hidden states to the input of block ``layer``. The blocks below it do not change any more."""
        if layer > self._next:
            self._hidden = [self.decoder.run(hidden, self._next, layer) for hidden in self._hidden]
            self._next = layer


def _weights(counted: Tensor, first: float | None) -> Tensor:
    """(contexts,) float64 weights of the contexts that are ``counted``, (contexts,) bool, with the sum 1.

    The first of them weighs ``first``, or as much as each other if that is ``None`` or there are no others.
    """
    count = int(counted.sum())
    first = 1 / max(1, count) if first is None or count == 1 else first
    weights = counted.double() * ((1 - first) / max(1, count - 1))
    weights[counted.nonzero()[:1]] = first
    return weights
