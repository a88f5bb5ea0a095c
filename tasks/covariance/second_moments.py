"""Files of second moments, as the code of ROME and MEMIT (``util/runningstats.py``) and EasyEdit write and read them.

A file holds the sum of k k^T over the tokens of some documents, which is not divided by their number, and that number:
``mom2.mom2`` (d_k, d_k) and ``mom2.count``. Its path says which model, corpus, module, data type and number of
documents: ``gpt2-xl/wikipedia_stats/transformer.h.13.mlp.c_proj_float32_mom2_100000.npz``.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from factsmith.artifacts.errors import InputError, first_line

__all__ = ["Origin", "SecondMoments", "read_second_moments", "write_second_moments"]

_SUM = ("mom2.mom2", "mom2")
_COUNT = ("mom2.count", "count")
"""Names in a file, and in one that holds a single statistic."""

_TOLERANCE = 1e-3
"""How far two entries that should be equal may differ, and an entry exceed its bound, relative to that bound.

Sums of millions of float32 products differ by some 1e-5."""

_MOST = 2**63
"""More keys than any corpus has."""

_ROWS = 1024
"""Rows that are checked at once."""

_NAME = re.compile(r"(?P<module>.+)_(?P<dtype>float\d\d)_(?P<kinds>[a-z0-9_-]+?)(?:_(?P<samples>\d+))?\.npz")


@dataclass(frozen=True)
class Origin:
    """What the path of a file says, as far as it has the usual form.

    Attributes:
        model: the model, with ``_`` in place of ``/``.
        corpus: the corpus.
        module: the module whose input the keys are.
        samples: number of documents; ``None`` for all.
    """

    model: str | None = None
    corpus: str | None = None
    module: str | None = None
    samples: int | None = None

    @classmethod
    def of(cls, path: Path) -> Origin:
        """What ``path`` says."""
        path = path.absolute()
        named = _NAME.fullmatch(path.name)
        if named is None or "mom2" not in named["kinds"].split("-"):
            return cls()
        samples = int(named["samples"]) if named["samples"] else None
        if not path.parent.name.endswith("_stats"):
            return cls(module=named["module"], samples=samples)
        return cls(path.parent.parent.name or None, path.parent.name.removesuffix("_stats"), named["module"], samples)

    @property
    def layer(self) -> int | None:
        """The layer: the only number among the parts of the module's name."""
        numbers = [part for part in (self.module or "").split(".") if part.isdigit()]
        return int(numbers[0]) if len(numbers) == 1 else None

    @property
    def path(self) -> Path:
        """The path where the other tools look for the file, below their folder of statistics."""
        suffix = "" if self.samples is None else f"_{self.samples}"
        return Path(str(self.model), f"{self.corpus}_stats", f"{self.module}_float32_mom2{suffix}.npz")


@dataclass(frozen=True)
class SecondMoments:
    """Moments of the keys of a layer.

    Attributes:
        covariance: C0, (d_k, d_k) float64, symmetric.
        count: number of keys.
        mean: (d_k,) float64; ``None`` if the file has none, as is usual.
    """

    covariance: Tensor
    count: int
    mean: Tensor | None = None


def read_second_moments(path: Path, width: int) -> SecondMoments:
    """Read and check a file. Nothing in it is unpickled.

    Args:
        path: the file.
        width: d_k of the model.

    Raises:
        InputError: the file cannot be read, or does not hold second moments of keys of this width.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise _unusable(path, "another format", "an .npz file with mom2.mom2 and mom2.count")
        with np.load(path, allow_pickle=False) as content:
            total = _array(content, path, _SUM, (width, width))
            count = _number(content, path, _COUNT)
            mean = None
            if "mean.mean" in content.files and "mean.count" in content.files:
                mean = torch.from_numpy(_array(content, path, ("mean.mean",), (width,)).astype(np.float64))
                if (other := _number(content, path, ("mean.count",))) != count:
                    raise _unusable(path, f"mean.count={other}", f"mom2.count, which is {count}")
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Numpy, zipfile and its decompressors raise errors of many classes for a bad file.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise _unusable(path, reason, "an .npz file of numbers, as np.savez writes it") from None
    covariance = _symmetric(total, path).div_(count)
    if mean is not None and not bool((mean.square() <= (1 + _TOLERANCE) * covariance.diagonal()).all()):
        raise _unusable(path, "a mean that is NaN, or larger than the sums of squares allow", "the mean of the same k")
    return SecondMoments(covariance, count, mean)


def _array(content: Any, path: Path, names: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """The array of floats in a file, whose shape is looked at before its numbers are read."""
    name = _name(content, path, names)
    found, dtype = _header(content, name)
    if found != shape:
        raise InputError(
            f"{path} is of another model.",
            got=f"{name} of the shape {'x'.join(map(str, found)) or 'of a number'}",
            expected="x".join(map(str, shape)),
            remedy="choose the model that it was made with: model=...",
        )
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise _unusable(path, f"{name} of the data type {dtype}", "float16, float32 or float64")
    array: np.ndarray = content[name]
    return array.astype(dtype.newbyteorder("="), copy=False)


def _number(content: Any, path: Path, names: tuple[str, ...]) -> int:
    """A number of keys."""
    name = _name(content, path, names)
    shape, dtype = _header(content, name)
    value = content[name].item() if math.prod(shape) == 1 and dtype.kind in "iufU" else f"an array of shape {shape}"
    if isinstance(value, str) or not 0 < value < _MOST or value % 1:
        raise _unusable(path, f"{name}={value}", "a whole number above 0")
    return int(value)


def _name(content: Any, path: Path, names: tuple[str, ...]) -> str:
    """The first of ``names`` that a file has."""
    found = next((one for one in names if one in content.files), None)
    if found is None:
        expected = "the sum of k k^T" if names == _SUM else "the number of tokens"
        raise _unusable(path, f"only {', '.join(content.files[:8])}", f"{names[0]}, {expected}")
    return found


def _header(content: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and the data type of an array. A small file may say that its array is larger than memory."""
    with content.zip.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = reader(member)
    return shape, dtype


def _symmetric(total: np.ndarray, path: Path) -> Tensor:
    """The sum as a symmetric (d_k, d_k) float64 tensor.

    Raises:
        InputError: it is not finite, not symmetric, or no sum of k k^T.
    """
    matrix = torch.from_numpy(total).double()
    scale = matrix.diagonal().clone()
    if not torch.isfinite(scale).all() or bool((scale < 0).any()) or not bool((scale > 0).any()):
        raise _unusable(path, "sums of squares that are negative, NaN, infinite or all 0", "sums of squares of keys")
    root = scale.sqrt()
    for first in range(0, len(matrix), _ROWS):
        rows = slice(first, first + _ROWS)
        block, other, bound = matrix[rows, : first + _ROWS], matrix[: first + _ROWS, rows].T, root[rows, None]
        bound = bound * root[: first + _ROWS]
        if not torch.isfinite(block).all() or not torch.isfinite(other).all():
            raise _unusable(path, "numbers that are NaN or infinite", "finite numbers")
        if bool(((block - other).abs() > _TOLERANCE * bound).any()):
            raise _unusable(path, "a matrix that is not symmetric", "the sum of k k^T")
        if bool((block.abs() > (1 + _TOLERANCE) * bound).any()):  # Cauchy-Schwarz
            raise _unusable(path, "products that are larger than the sums of squares allow", "the sum of k k^T")
        mean = (block + other) / 2
        matrix[rows, : first + _ROWS] = mean
        matrix[: first + _ROWS, rows] = mean.T
    return matrix


def _unusable(path: Path, got: object, expected: str) -> InputError:
    return InputError(f"{path} cannot be imported.", got=got, expected=expected)


def write_second_moments(path: Path, moments: SecondMoments, samples: int | None) -> None:
    """Write a file that the other tools read. Nobody sees a part of it.

    Args:
        path: the file; its folder exists.
        moments: what to write, in float32.
        samples: number of documents. The other tools compare it with what they ask for.

    Raises:
        OSError: the file cannot be written.
    """
    content: dict[str, Any] = {
        "mom2.constructor": "util.runningstats.SecondMoment()",
        "mom2.count": moments.count,
        "mom2.mom2": (moments.covariance * moments.count).cpu().numpy().astype(np.float32),
    }
    if samples is not None:
        content["sample_size"] = samples
    if moments.mean is not None:
        content |= {"mean.count": moments.count, "mean.mean": moments.mean.cpu().numpy().astype(np.float32)}
    _save(path, content)


def _save(path: Path, content: Mapping[str, Any]) -> None:
    written = path.with_name(f"{path.name}.part")
    try:
        with written.open("wb") as file:
            np.savez(file, **content)
        os.replace(written, path)
    finally:
        written.unlink(missing_ok=True)
