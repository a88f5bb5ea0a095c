"""Keys of corpus text: the inputs of the edited projections at every token that is not padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from factsmith.tasks.decoder.batching import length_batches, pad
from factsmith.tasks.decoder.decoder import Decoder

__all__ = ["NonFiniteKeysError", "block_keys"]


class NonFiniteKeysError(Exception):
    """A forward pass gave keys that are NaN or infinite.

    Attributes:
        layer: the layer with these keys.
    """

    def __init__(self, layer: int) -> None:
        super().__init__(f"keys of layer {layer} contain NaN or infinity")
        self.layer = layer


@torch.inference_mode()
def block_keys(
    decoder: Decoder,
    blocks: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    most_tokens: int,
    device: torch.device | str = "cpu",
) -> dict[int, Tensor]:
    """Keys of every token of ``blocks`` at each of ``layers``. The forward passes stop at the last of ``layers``.

    Args:
        decoder: the model.
        blocks: token sequences that do not attend to each other.
        layers: the edited layers.
        most_tokens: most positions in one forward pass (or one longer block alone).
        device: where the keys go.

    Returns:
        The keys of each layer, (tokens, d_k), in the model's dtype, on ``device``. The rows are in the order of the
        blocks and of the tokens within them, independent of the batching.

    Raises:
        NonFiniteKeysError: a key is NaN or infinite.
    """
    lengths = [len(block) for block in blocks]
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    # A GPU copies to pinned memory while it computes the next pass.
    pinned = decoder.device.type == "cuda" and torch.device(device).type == "cpu"
    keys = {
        layer: torch.empty(starts[-1], decoder.key_width, dtype=decoder.model.dtype, device=device, pin_memory=pinned)
        for layer in sorted(set(layers))
    }
    sums = {layer: torch.zeros((), dtype=torch.float64, device=decoder.device) for layer in keys}
    for batch in length_batches(lengths, most_tokens):
        tokens = pad([blocks[index] for index in batch], decoder.device)
        # Consecutive blocks of equal length fill one range of rows. All others are copied block by block.
        contiguous = batch == list(range(batch[0], batch[0] + len(batch))) and len({lengths[i] for i in batch}) == 1

        def store(layer: int, found: Tensor, batch: list[int] = batch, contiguous: bool = contiguous) -> None:
            if contiguous:
                parts = [(starts[batch[0]], found.flatten(0, 1))]
            else:
                parts = [(starts[index], rows[: lengths[index]]) for index, rows in zip(batch, found, strict=True)]
            for start, rows in parts:
                keys[layer][start : start + len(rows)].copy_(rows, non_blocking=True)
                sums[layer] += rows.sum(dtype=torch.float64)

        with decoder.tapped(list(keys), store, stop=True):
            decoder.run(decoder.embed(tokens), 0, max(keys) + 1)
    # One wait for the device, also for its copies.
    for layer, finite in zip(keys, torch.stack([*sums.values()]).isfinite().tolist(), strict=True):
        if not finite:
            raise NonFiniteKeysError(layer)
    return keys
