"""Reading keys off the model, in the order of the token stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.tasks.keys.block_keys import NonFiniteKeysError, block_keys
from factsmith.tasks.model.model import Model

__all__ = ["KeyReader"]


class KeyReader:
    """Runs the corpus through the model, unit by unit.

    A unit is a fixed group of blocks, whichever rows are asked for. A row is therefore computed in the same forward
    passes, to the same bits, whether its shard is collected first, later, or after a kill.

    Args:
        model: the model.
        shard_blocks: yields the first position and the blocks of each token shard that holds positions of a span.
        block_length: the most tokens of a block.
        key_dtype: data type of the rows.
        tokens_per_pass: the most positions in one forward pass.
        device: where the rows go.
    """

    def __init__(
        self,
        model: Model,
        shard_blocks: Callable[[tuple[int, int]], Iterator[tuple[int, list[list[int]]]]],
        *,
        block_length: int,
        key_dtype: str,
        tokens_per_pass: int,
        device: torch.device,
    ) -> None:
        self._model = model
        self._shard_blocks = shard_blocks
        self._unit_blocks = max(1, tokens_per_pass // block_length)
        self._dtype: torch.dtype = getattr(torch, key_dtype)
        self._tokens_per_pass = tokens_per_pass
        self._device = device
        self._last: tuple[tuple[int, int], dict[int, Tensor]] | None = None

    def rows(self, span: tuple[int, int], layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Keys (n, d_k) of ``layers`` at the positions from ``span[0]`` to before ``span[1]``, one unit at a time.

        Raises:
            InputError: a key is NaN, infinite, or too large for the data type; names the layer.
        """
        start, stop = span
        for shard_start, blocks in self._shard_blocks(span):
            first = shard_start
            for number in range(0, len(blocks), self._unit_blocks):
                unit = blocks[number : number + self._unit_blocks]
                last = first + sum(map(len, unit))
                if first < stop and last > start:
                    found = self._unit((shard_start, number), unit, layers)
                    yield {
                        layer: self._stored(found[layer][max(0, start - first) : stop - first], layer)
                        for layer in layers
                    }
                first = last

    def _unit(self, name: tuple[int, int], unit: list[list[int]], layers: Sequence[int]) -> dict[int, Tensor]:
        # A unit that spans two key shards is kept from the first one.
        if self._last is None or self._last[0] != name or not set(layers) <= set(self._last[1]):
            try:
                found = block_keys(
                    self._model.decoder, unit, layers, most_tokens=self._tokens_per_pass, device=self._device
                )
            except NonFiniteKeysError as error:
                raise InputError(
                    f"Layer {error.layer} of {self._model.name} gives keys that are NaN or infinite.",
                    remedy="run the model in a wider dtype (model.dtype=float32)",
                ) from None
            self._last = name, found
        return self._last[1]

    def _stored(self, rows: Tensor, layer: int) -> Tensor:
        """Rows in the data type they are stored in. They are rounded to it even if they are only summed up."""
        rows = rows.to(torch.float32)
        if self._dtype == torch.float32:
            return rows
        largest = float(rows.abs().max()) if rows.numel() else 0.0
        limit = torch.finfo(self._dtype).max
        if largest > limit:
            raise InputError(
                f"Keys of layer {layer} do not fit float16.",
                got=f"a value of {largest:.6g}",
                expected=f"at most {limit:.6g}",
                remedy="set corpus.key_dtype=float32",
            )
        return rows.to(self._dtype)
