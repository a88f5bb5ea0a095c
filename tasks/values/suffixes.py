"""Prompts from the lookup token on. Everything before it is computed once and kept.

A change at the lookup token affects neither the blocks up to the edited one nor the positions before it. The prompts of
one context start with the same tokens (its prefix sentence), which are computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from factsmith.tasks.decoder.batching import pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.prefix_cache import PrefixCache, PrefixCompleteError
from factsmith.tasks.decoder.text import EncodedPrompt

__all__ = ["Suffixes"]


@dataclass(frozen=True)
class Suffixes:
    """Prompts from the lookup token on, as outputs of block ``layer``. Each row is a prompt.

    Attributes:
        decoder: the model.
        layer: L, the block whose output is changed.
        lookups: (rows,) lookup index of each prompt.
        lengths: (rows,) number of positions from the lookup token on.
        hidden: (rows, longest, d_model) output of block L from the lookup token on, right-padded.
        prefix: attention keys and values of the positions before the lookup token, in the blocks above L. The first
            ``lookups[row]`` positions of a row are real, the rest is padding.
        outputs: (rows, d_model) outputs of the MLP output projection of block L at the lookup tokens, if a norm comes
            after it; otherwise ``None``.
        inputs: (rows, d_model) inputs of block L at the lookup tokens, if its attention's output is changed too;
            otherwise ``None``. The prefix then has the keys and values of block L as well.
    """

    decoder: Decoder
    layer: int
    lookups: Tensor
    lengths: Tensor
    hidden: Tensor
    prefix: PrefixCache
    outputs: Tensor | None
    inputs: Tensor | None = None

    @classmethod
    @torch.no_grad()
    def prepare(
        cls, decoder: Decoder, layer: int, prompts: Sequence[EncodedPrompt], *, attention: bool = False
    ) -> Suffixes:
        """Run the blocks up to ``layer`` on ``prompts``, and those above on the positions before the lookup tokens.

        Args:
            decoder: the model.
            layer: L.
            prompts: the prompts.
            attention: whether the attention's output of block L is changed too, so that block L runs again.
        """
        device = decoder.device
        inputs = [prompt.inputs for prompt in prompts]
        lookups = torch.tensor([prompt.lookup for prompt in prompts], device=device)
        lengths = torch.tensor([len(tokens) for tokens in inputs], device=device) - lookups
        shared = min(_common_length(inputs), int(lookups.min())) if len(inputs) > 1 else 0
        trunk = PrefixCache()
        if shared:
            start = decoder.embed(torch.tensor([inputs[0][:shared]], device=device))
            trunk = _recorded(decoder, start, 0, PrefixCache())

        tokens = pad([one[shared:] for one in inputs], device)
        positions = shared + torch.arange(tokens.shape[1], device=device)[None]
        # After a shared prefix, the default causal mask no longer fits: queries also attend to the prefix.
        mask = (torch.arange(shared + tokens.shape[1], device=device) <= positions.T)[None, None] if shared else None
        kept: list[Tensor] = []

        def keep(_: int, output: Tensor) -> Tensor:
            kept.append(output[torch.arange(len(output), device=device), lookups - shared])
            return output

        first = layer if attention else layer + 1
        below = decoder.run(decoder.embed(tokens, positions), 0, layer, positions=positions, mask=mask, cache=trunk)
        with decoder.rewritten("mlp", [layer] if decoder.output_norm(layer) else [], keep):
            full = decoder.run(below, layer, layer + 1, positions=positions, mask=mask, cache=trunk)
        own = max(1, int(lookups.max()) - shared)
        prefix = _recorded(
            decoder,
            (below if attention else full)[:, :own],
            first,
            trunk,
            positions[:, :own],
            None if mask is None else mask[:, :, :own, : shared + own],
        )
        at = (lookups - shared)[:, None] + torch.arange(int(lengths.max()), device=device)
        inside = at.clamp(max=tokens.shape[1] - 1)[..., None].expand(-1, -1, full.shape[2])
        return cls(
            decoder,
            layer,
            lookups,
            lengths,
            full.gather(1, inside),
            prefix.select(slice(None), int(lookups.max())),
            kept[0] if kept else None,
            below[torch.arange(len(below), device=device), lookups - shared] if attention else None,
        )

    @classmethod
    def join(cls, parts: Sequence[Suffixes]) -> Suffixes:
        """The rows of all ``parts``, in their order."""
        longest = max(part.hidden.shape[1] for part in parts)
        hidden = [torch.nn.functional.pad(part.hidden, (0, 0, 0, longest - part.hidden.shape[1])) for part in parts]
        return cls(
            parts[0].decoder,
            parts[0].layer,
            torch.cat([part.lookups for part in parts]),
            torch.cat([part.lengths for part in parts]),
            torch.cat(hidden),
            PrefixCache.join([part.prefix for part in parts]),
            _joined([part.outputs for part in parts]),
            _joined([part.inputs for part in parts]),
        )

    def select(self, rows: Tensor) -> Suffixes:
        """Some rows, in the given order, without the padding that they do not need."""
        lookups, lengths = self.lookups[rows], self.lengths[rows]
        return Suffixes(
            self.decoder,
            self.layer,
            lookups,
            lengths,
            self.hidden[rows, : int(lengths.max())],
            self.prefix.select(rows, int(lookups.max())),
            None if self.outputs is None else self.outputs[rows],
            None if self.inputs is None else self.inputs[rows],
        )

    def effect(self, changes: Tensor) -> Tensor:
        """(rows, d_model) what ``changes`` (rows, d_model) do to the output of block L at the lookup tokens.

        A block adds its MLP's output to the residual stream, so both change by as much. Where a norm comes between, the
        changes are steps of its input, and only outputs that the block can have are reached. See ``OutputNorm``.
        """
        if self.outputs is None:
            return changes
        norm = self.decoder.output_norm(self.layer)
        assert norm is not None
        return norm.effect(self.outputs, changes)

    def run(self, changes: Tensor) -> Tensor:
        """(rows, longest, d_model) output of the last block, with the effect of ``changes``.

        Args:
            changes: (rows, d_model) changes of the output of block L or of its MLP, or (rows, 2, d_model) changes of
                the outputs of its MLP and of its attention.
        """
        if changes.ndim == 3:
            changed, _ = self._block(changes)
        else:
            changed = self.hidden[:, 0] + self.effect(changes).to(self.hidden.dtype)
        return self.decoder.run(
            torch.cat([changed[:, None], self.hidden[:, 1:]], dim=1),
            self.layer + 1,
            self.decoder.block_count,
            positions=self._positions,
            mask=self._mask,
            cache=self.prefix,
        )

    @torch.no_grad()
    def attention(self) -> Tensor:
        """(rows, d_model) float32 output of the attention of block L at the lookup tokens."""
        _, output = self._block(self.hidden.new_zeros(len(self.hidden), 2, self.hidden.shape[2]))
        return output.float()

    def _block(self, changes: Tensor) -> tuple[Tensor, Tensor]:
        """Run block L again at the lookup tokens. A change of its parts there reaches no other token of its output.

        In a block that runs its MLP after its attention, a change of the attention's output also changes the MLP's
        input. Where a norm follows the MLP, changes are steps in multiples of the root mean square of what they are
        added to, as in ``OutputNorm.effect``.

        Args:
            changes: (rows, 2, d_model) changes of the outputs of the MLP and of the attention.

        Returns:
            The output of block L, and that of its attention before the change, both (rows, d_model).
        """
        assert self.inputs is not None
        outputs: list[Tensor] = []

        def add(output: Tensor, steps: Tensor) -> Tensor:
            if self.outputs is not None:
                steps = steps * output[:, 0].float().square().mean(1, keepdim=True).sqrt()
            return output + steps[:, None].to(output.dtype)

        def change_attention(_: int, output: Tensor) -> Tensor:
            outputs.append(output[:, 0])
            return add(output, changes[:, 1])

        mask = self._mask[:, :, :1, : self._mask.shape[3] - self.hidden.shape[1] + 1]  # The prefix, and itself.
        with (
            self.decoder.rewritten("attention", [self.layer], change_attention),
            self.decoder.rewritten("mlp", [self.layer], lambda _, output: add(output, changes[:, 0])),
        ):
            output = self.decoder.run(
                self.inputs[:, None],
                self.layer,
                self.layer + 1,
                positions=self.lookups[:, None],
                mask=mask,
                cache=self.prefix,
            )
        return output[:, 0], outputs[0]

    @cached_property
    def _positions(self) -> Tensor:
        """(rows, longest) positions in the whole prompts."""
        return self.lookups[:, None] + self._steps

    @cached_property
    def _mask(self) -> Tensor:
        """(rows, 1, longest, prefix + longest), true where a position may attend."""
        before = torch.arange(int(self.lookups.max()), device=self.hidden.device)
        in_prefix = (before < self.lookups[:, None])[:, None].expand(-1, len(self._steps), -1)
        causal = (self._steps[:, None] >= self._steps).expand(len(self.lookups), -1, -1)
        return torch.cat([in_prefix, causal], dim=2)[:, None]

    @property
    def _steps(self) -> Tensor:
        return torch.arange(self.hidden.shape[1], device=self.hidden.device)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def _common_length(sequences: Sequence[tuple[int, ...]]) -> int:
    """The length of the longest prefix that all sequences share."""
    first, last = min(sequences), max(sequences)
    return next(
        (place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]),
        min(len(first), len(last)),
    )


def _recorded(
    decoder: Decoder,
    hidden: Tensor,
    start: int,
    prefix: PrefixCache,
    positions: Tensor | None = None,
    mask: Tensor | None = None,
) -> PrefixCache:
    """Attention keys and values of the blocks from ``start`` on, for ``prefix`` followed by ``hidden``."""
    recorder = prefix.recorder(decoder.block_count - 1)
    with suppress(PrefixCompleteError):
        decoder.run(hidden, start, decoder.block_count, positions=positions, mask=mask, cache=recorder)
    return recorder.recorded()
