"""Published peak rates of GPUs, for those that nobody has measured."""

from __future__ import annotations

from dataclasses import dataclass

from factsmith.artifacts.errors import InputError, closest

__all__ = ["Gpu", "find_gpu"]


@dataclass(frozen=True)
class Gpu:
    """A GPU as its maker describes it.

    Attributes:
        name: name on the command line. The name that PyTorch gives the card contains it.
        memory: bytes.
        narrow: FLOP per second of dense bfloat16 and float16 products.
        float32: FLOP per second of float32 products, which Factsmith does not round to TF32.
        float64: FLOP per second of float64 products without tensor cores.
    """

    name: str
    memory: float
    narrow: float
    float32: float
    float64: float

    def rate(self, dtype: str) -> float:
        """Peak FLOP per second of products in a data type."""
        return {"float32": self.float32, "float64": self.float64}.get(dtype, self.narrow)


_GPUS = (
    Gpu("a100", 80e9, 312e12, 19.5e12, 9.7e12),
    Gpu("h100", 80e9, 989e12, 67e12, 34e12),
    Gpu("h200", 141e9, 989e12, 67e12, 34e12),
    Gpu("b200", 180e9, 2250e12, 75e12, 37e12),
    Gpu("l40s", 48e9, 362e12, 91.6e12, 1.4e12),
)
"""From NVIDIA's data sheets, SXM where there is one."""


def find_gpu(name: str) -> Gpu:
    """The GPU called ``name``.

    Raises:
        InputError: there is none.
    """
    known = {gpu.name: gpu for gpu in _GPUS}
    if name.lower() not in known:
        raise InputError(f"There is no GPU {name!r} here.", expected=", ".join(known), remedy=closest(name, known))
    return known[name.lower()]
