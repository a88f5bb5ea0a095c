"""Reading keys off the model, in the order of the token stream."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.keys.block_keys import NonFiniteKeysError, block_keys
from factsmith.tasks.model.model import Model
from factsmith.tasks.pipeline.turns import in_turn

__all__ = ["KeyReader", "KeyUnit"]


@dataclass(frozen=True)
class KeyUnit:
    """Blocks whose keys are computed together.

    Attributes:
        blocks: the blocks.
        start: position of their first token.
        stop: the position after their last token.
        wanted: the first position that was asked for, and the position after the last one.
    """

    blocks: list[list[int]]
    start: int
    stop: int
    wanted: tuple[int, int]


class KeyReader:
    """Runs the corpus through the model, unit by unit.

    A unit is a fixed group of blocks, whichever rows are asked for. A row is therefore computed in the same forward
    passes, to the same bits, whether its shard is collected first, later, or after a kill.

    If the model has replicas on several devices, they take the units in turn.

    Args:
        model: the model.
        shard_blocks: yields the first position and the blocks of each token shard that holds positions of a span.
        block_length: the most tokens of a block.
        key_dtype: data type of the rows.
        tokens_per_pass: the most positions in one forward pass.
        begin: called once in each thread that computes keys.
    """

    def __init__(
        self,
        model: Model,
        shard_blocks: Callable[[tuple[int, int]], Iterator[tuple[int, list[list[int]]]]],
        *,
        block_length: int,
        key_dtype: str,
        tokens_per_pass: int,
        begin: Callable[[], None],
    ) -> None:
        self._model = model
        self._shard_blocks = shard_blocks
        self._unit_blocks = max(1, tokens_per_pass // block_length)
        self._dtype: torch.dtype = getattr(torch, key_dtype)
        self._tokens_per_pass = tokens_per_pass
        self._begin = begin
        self._last: tuple[KeyUnit, dict[int, Tensor]] | None = None

    def units(self, span: tuple[int, int]) -> Iterator[KeyUnit]:
        """The units that hold positions from ``span[0]`` to before ``span[1]``, in order."""
        for shard_start, blocks in self._shard_blocks(span):
            first = shard_start
            for number in range(0, len(blocks), self._unit_blocks):
                unit = blocks[number : number + self._unit_blocks]
                last = first + sum(map(len, unit))
                if first < span[1] and last > span[0]:
                    yield KeyUnit(unit, first, last, (max(first, span[0]), min(last, span[1])))
                first = last

    def rows(
        self,
        span: tuple[int, int],
        layers: Sequence[int],
        *,
        cuts: Sequence[int] = (),
        device: torch.device | str = "cpu",
    ) -> Generator[dict[int, Tensor], None, None]:
        """Keys (n, d_k) of ``layers`` at the positions from ``span[0]`` to before ``span[1]``, one unit at a time.

        Args:
            span: the first position, and the position after the last one.
            layers: the layers.
            cuts: ascending positions at which a unit is cut in two.
            device: where the keys go.

        Raises:
            InputError: a key is NaN, infinite, or too large for the data type; names the layer.
        """

        def compute(decoder: Decoder, unit: KeyUnit) -> tuple[KeyUnit, dict[int, Tensor]]:
            # A unit that spans two key shards is kept from the first one.
            last = self._last
            if last and (last[0].start, last[0].stop) == (unit.start, unit.stop) and set(layers) <= set(last[1]):
                return unit, last[1]
            return unit, self._compute(decoder, unit, layers, device)

        replicas = self._model.replicas
        ahead = replicas[0].device.type == "cuda" and torch.device(device).type == "cpu"  # while the caller writes
        with closing(in_turn(replicas, compute, self.units(span), ahead=ahead, begin=self._begin)) as computed:
            for unit, found in computed:
                self._last = unit, found
                start, stop = unit.wanted
                bounds = [start, *(cut for cut in cuts if start < cut < stop), stop]
                for first, last in pairwise(bounds):
                    rows = slice(first - unit.start, last - unit.start)
                    yield {layer: self._stored(found[layer][rows], layer) for layer in layers}

    def read(self, decoder: Decoder, unit: KeyUnit, layers: Sequence[int]) -> dict[int, Tensor]:
        """Keys (n, d_k) of ``layers`` at the wanted positions of ``unit``, on the device of ``decoder``.

        Raises:
            InputError: as in ``rows``.
        """
        start, stop = unit.wanted
        rows = slice(start - unit.start, stop - unit.start)
        found = self._compute(decoder, unit, layers, decoder.device)
        return {layer: self._stored(found[layer][rows], layer) for layer in layers}

    def _compute(
        self, decoder: Decoder, unit: KeyUnit, layers: Sequence[int], device: torch.device | str
    ) -> dict[int, Tensor]:
        try:
            return block_keys(decoder, unit.blocks, layers, most_tokens=self._tokens_per_pass, device=device)
        except NonFiniteKeysError as error:
            raise InputError(
                f"Layer {error.layer} of {self._model.name} gives keys that are NaN or infinite.",
                remedy="run the model in a wider dtype (model.dtype=float32)",
            ) from None

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
