"""Corrupted runs in which a state of the clean run is restored.

A state that is restored at one place changes no place before it, and no block below it. A run therefore starts at this
place above this layer. The places before it are read as the attention keys and values of the corrupted run. In the last
block only the last place is read.

Runs that start at the same place have the same length, wherever they start. They go up through the blocks together:
at each block, the runs that start there join those from below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from factsmith.tasks.decoder.decoder import Part
from factsmith.tasks.decoder.prefix_cache import PrefixCompleteError
from factsmith.tasks.locate.runs import PARTS, Kind, Runs

__all__ = ["Restoration", "Restorations", "RestoredRuns", "window"]


def window(layer: int, size: int, block_count: int) -> tuple[int, int]:
    """The first layer of the window of ``size`` layers around ``layer``, and the layer after its last one.

    The window is cut off at the ends of the model.
    """
    return max(0, layer - size // 2), min(block_count, layer - size // 2 + size)


@dataclass(frozen=True)
class Restoration:
    """A state to restore: the outputs ``kind`` of the layers ``start`` to ``stop - 1``."""

    kind: Kind
    start: int
    stop: int


class Restorations:
    """The restorations of some kinds at every layer.

    Attributes:
        each: R restorations, those with the lowest first layer first. Those of one kind are in the order of layers.
        severed: whether all MLPs above a restored layer keep their outputs of the corrupted run at the place where it
            is restored.
        held: for MLPs and attentions, (layers, R): whether a restoration replaces this output of a layer above its
            first one.
        blocks: the number of blocks that all R runs go through.
    """

    def __init__(
        self, kinds: Iterable[Kind], block_count: int, size: int, device: torch.device, *, severed: bool = False
    ) -> None:
        """List the restorations in a model of ``block_count`` layers, with windows of ``size`` layers."""
        every = [
            Restoration(kind, *((layer, layer + 1) if kind == "hidden" else window(layer, size, block_count)))
            for kind in kinds
            for layer in range(block_count)
        ]
        self.each = sorted(every, key=lambda one: one.start)
        self.severed = severed
        self.held = {
            part: torch.tensor(
                [
                    [one.kind == part and one.start < layer < one.stop for one in self.each]
                    for layer in range(block_count)
                ],
                device=device,
            )
            for part in PARTS
        }
        self.blocks = sum(block_count - 1 - one.start for one in self.each)

    def of(self, kind: Kind) -> list[int]:
        """The indices in ``each`` of the restorations of ``kind``, one for each layer."""
        return [index for index, one in enumerate(self.each) if one.kind == kind]


class RestoredRuns:
    """Corrupted runs from one place on, one for each of R restorations and n rows.

    Args:
        runs: the runs without a restoration.
        restored: the restorations. If they are severed, ``place`` must be the subject's last token.
        rows: (n,) the rows in which states are restored.
        place: the place where they are restored.
        at_once: most positions in one forward pass.
    """

    def __init__(self, runs: Runs, restored: Restorations, rows: Tensor, place: int, at_once: int) -> None:
        self.runs = runs
        self.restored = restored
        self.rows = rows
        self.place = place
        self.at_once = at_once
        count = len(restored.each)
        self._length = runs.length - place
        self._rows = rows.repeat(count)
        self._which = torch.arange(count, device=rows.device).repeat_interleave(len(rows))
        self._states = runs.corrupted[0].new_empty(len(self._rows), self._length, runs.decoder.width)
        self._started = 0

    def probabilities(self, advance: Callable[[int], None]) -> Tensor:
        """(R, n) P(object), float64.

        Args:
            advance: called with the number of positions that have just passed through a block.
        """
        for layer in range(self.runs.decoder.block_count):
            self._run(layer)
            advance(self._started * len(self.rows) * self._length)
            self._start(layer)
        return self.runs.probability(self._states[:, -1], self.runs.facts[self._rows]).view(-1, len(self.rows))

    def _start(self, layer: int) -> None:
        """Add the runs whose first restored layer is ``layer``, after its block."""
        corrupted = self.runs.corrupted[layer][self.rows, self.place :]
        each, count = self.restored.each, len(self.rows)
        while self._started < len(each) and each[self._started].start == layer:
            states = self._states[self._started * count :][:count]
            states.copy_(corrupted)
            states[:, 0] = self.runs.restored(each[self._started].kind, layer, self.place, self.rows)
            self._started += 1

    def _run(self, layer: int) -> None:
        """Take all runs that have started through block ``layer``."""
        last = layer == self.runs.decoder.block_count - 1 and self._length > 1
        step = max(1, self.at_once // self._length)
        for start in range(0, self._started * len(self.rows), step):
            some = slice(start, min(start + step, self._started * len(self.rows)))
            if last:
                self._states[some, -1:] = self._last_place(layer, some)
            else:
                with self._restoring(layer, some):
                    self._states[some] = self.runs.run(self._states[some], layer, self.place, self._rows[some])

    def _last_place(self, layer: int, some: slice) -> Tensor:
        """(m, 1, d_model) output of block ``layer`` at the last place. Of the others, only keys and values are made."""
        hidden, rows = self._states[some], self._rows[some]
        recorder = self.runs.prefix(layer, self.place, rows).recorder(layer)
        with suppress(PrefixCompleteError):
            self.runs.run(hidden[:, :-1], layer, self.place, rows, recorder)
        return self.runs.run(hidden[:, -1:], layer, self.runs.length - 1, rows, recorder.recorded())

    @contextmanager
    def _restoring(self, layer: int, some: slice) -> Iterator[None]:
        """While open, block ``layer`` replaces the outputs of MLP and attention at ``place`` that the runs replace."""
        rows, which = self._rows[some], self._which[some]

        def replace(part: Part) -> Callable[[int, Tensor], Tensor]:
            def change(_: int, output: Tensor) -> Tensor:
                if self.restored.severed:
                    output[:, 0] = self.runs.corrupted_mlps[layer][rows]
                else:
                    clean = self.runs.clean[part][layer][self.runs.facts[rows], self.place]
                    held = self.restored.held[part][layer, which, None]
                    output[:, 0] = torch.where(held, clean, output[:, 0])
                return output

            return change

        with ExitStack() as stack:
            for part in ("mlp",) if self.restored.severed else PARTS:
                stack.enter_context(self.runs.decoder.rewritten(part, [layer], replace(part)))
            yield
