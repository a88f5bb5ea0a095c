"""First and second moments of keys, summed in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["ROWS_PER_UPDATE", "Moments", "SectionSums", "grouped", "sections"]

ROWS_PER_UPDATE = 1024
"""Keys that are added to the moments in one product."""

_BLOCK = 512

_LEAST_SECTION = 16
"""Fewest keys of a section, in multiples of d_k.

The sum of a section, d_k x d_k numbers, is then added with d_k^2 additions where its products took 16 d_k^3. In a file
it has an eighth of the bytes that its keys would have in float16, or less."""


def sections(stops: Sequence[int], width: int, count: int) -> list[tuple[int, int]]:
    """Start and stop of each section of the first ``count`` keys. The last one may be cut short by ``count``.

    A section is summed by itself, and the sums are added in the order of the sections. The bits of the result then do
    not depend on who summed which section. Sections end where a shard of tokens does, so that no forward pass holds
    keys of two of them.

    Args:
        stops: positions of the stream where a shard of tokens ends, ascending; the last one is at least ``count``.
        width: d_k.
        count: the number of keys.
    """
    found, start = [], 0
    for stop in stops:
        if stop < count and stop - start >= _LEAST_SECTION * width:
            found.append((start, stop))
            start = stop
    return [*found, (start, count)]


class Moments:
    """Running moments of keys of width ``d``.

    The locate-then-edit methods preserve the uncentred second moment C0 = mean of k k^T (Meng et al. 2022b, section
    4.2.1). Sums are float64. If ``products`` are float64 too, the product of two float32 keys is exact. If they are
    float32, the products of the keys of one ``update`` are added up in float32, and the updates in float64.

    Args:
        width: d_k.
        device: device of the sums.
        products: data type of the products: float64 or float32. A GPU multiplies in float32 ten times as quickly or
            more.

    Attributes:
        count: number of keys so far.
        sum: sum of the keys, (d_k,) float64.
        outer: sum of their products k k^T, (d_k, d_k) float64; on a CPU only the upper triangle.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu", products: torch.dtype = torch.float64) -> None:
        self.width = width
        self.products = products
        self.count = 0
        self.sum = torch.zeros(width, dtype=torch.float64, device=device)
        self.outer = torch.zeros(width, width, dtype=torch.float64, device=device)

    def resume(self, count: int, total: Tensor, outer: Tensor) -> None:
        """Continue from the ``count``, ``sum`` (as ``total``) and ``outer`` of an earlier state."""
        self.count, self.sum, self.outer = count, total, outer

    def add(self, other: Moments) -> None:
        """Add the sums of ``other``, which may be on another device."""
        self.count += other.count
        self.sum += other.sum.to(self.sum.device)
        self.outer += other.outer.to(self.outer.device)

    def copy(self) -> Moments:
        """A copy of the sums. Keys added to it do not change the original."""
        other = Moments(self.width, self.sum.device, self.products)
        other.resume(self.count, self.sum.clone(), self.outer.clone())
        return other

    def to(self, device: torch.device | str) -> Moments:
        """The same sums on another device."""
        other = Moments(0, device, self.products)
        other.width = self.width
        other.resume(self.count, self.sum.to(device), self.outer.to(device))
        return other

    def update(self, keys: Tensor) -> None:
        """Add ``keys`` (n, d_k), of any dtype."""
        if self.outer.device.type == "cpu" and self.products == torch.float64:
            # A symmetric product needs half the work of a general one, but torch has no function for it. BLAS stores
            # matrices by columns, so it can use the transposes without a copy. NumPy computes the other sums too,
            # because the threads of two libraries that alternate would keep waiting for each other.
            from scipy.linalg.blas import dsyrk  # Here, because a plan sums nothing.

            rows = keys.float().numpy().astype(np.float64)
            self.sum.numpy()[...] += rows.sum(0)
            dsyrk(1.0, rows.T, beta=1.0, c=self.outer.numpy().T, overwrite_c=True, lower=True)
        else:
            keys = keys.to(self.outer.device, self.products)
            self.sum += keys.sum(0, dtype=torch.float64)
            if self.products == torch.float64:
                self.outer.addmm_(keys.T, keys)
            else:
                self.outer += keys.T @ keys
        self.count += len(keys)

    @property
    def covariance(self) -> Tensor:
        """C0: the uncentred mean of k k^T, (d_k, d_k) float64 on the device of the sums."""
        matrix = self.outer / self.count
        # BLAS fills only one triangle of a symmetric product. A GPU's two may differ in their last bits.
        for first in range(0, self.width, _BLOCK):
            rows = slice(first, first + _BLOCK)
            upper = matrix[rows, rows].triu()
            matrix[rows, rows] = upper + upper.triu(1).T
            matrix[rows, :first] = matrix[:first, rows].T
        return matrix

    @property
    def mean(self) -> Tensor:
        """The mean key, (d_k,) float64 on the device of the sums."""
        return self.sum / self.count


class SectionSums:
    """Moments of a stream of keys, which are summed section by section.

    Args:
        new: makes empty moments.

    Attributes:
        total: the moments of the complete sections; ``None`` if there are none.
        open: those of the keys after them, of a section that is not complete; ``None`` if there are none.
    """

    def __init__(self, new: Callable[[], Moments]) -> None:
        self._new = new
        self.total: Moments | None = None
        self.open: Moments | None = None

    @property
    def count(self) -> int:
        """Number of keys so far."""
        return sum(one.count for one in (self.total, self.open) if one is not None)

    def update(self, keys: Tensor) -> None:
        """Add ``keys`` (n, d_k), of any dtype, to the section that is not complete."""
        if self.open is None:
            self.open = self._new()
        self.open.update(keys)

    def close(self) -> None:
        """The section is complete."""
        if self.open is not None:
            section, self.open = self.open, None
            self.add(section)

    def add(self, section: Moments) -> None:
        """Add the moments of the next section, which may be on another device. They must not be changed afterwards."""
        if self.total is None:
            self.total = section
        else:
            self.total.add(section)
        if not _has_room_beside(self.total):
            self.total = self.total.to("cpu")

    def copy(self) -> SectionSums:
        """A copy. Keys added to it do not change the original."""
        other = SectionSums(self._new)
        other.total, other.open = (one and one.copy() for one in (self.total, self.open))
        return other


def _has_room_beside(moments: Moments) -> bool:
    """Whether a GPU has memory for the moments of another section beside these."""
    if (device := moments.outer.device).type != "cuda":
        return True
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused > 2 * moments.outer.nbytes


def grouped(units: Iterable[dict[int, Tensor]], size: int) -> Iterator[dict[int, Tensor]]:
    """The rows of each layer in groups of ``size``; the last group may be smaller.

    Sums are the same to the bit whichever units the rows come in.
    """
    pending: dict[int, Tensor] = {}
    for unit in units:
        pending = {layer: torch.cat([pending[layer], rows]) for layer, rows in unit.items()} if pending else unit
        count = len(next(iter(pending.values())))
        for first in range(0, count - size + 1, size):
            yield {layer: rows[first : first + size] for layer, rows in pending.items()}
        pending = {layer: rows[count - count % size :] for layer, rows in pending.items()} if count % size else {}
    if pending:
        yield pending
