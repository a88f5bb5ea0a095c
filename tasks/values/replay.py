"""Computations that are launched again and again on the same tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from threading import Lock, get_ident

import torch

__all__ = ["Replayed"]

logger = logging.getLogger(__name__)

_FIRST_CALLS = 2
"""Calls before the recording. Libraries allocate their workspaces in them, which must not happen while recording."""

_recording = Lock()
"""PyTorch makes one recording at a time in a process. It frees the memory of all devices before each."""

_failed: list[torch.cuda.CUDAGraph] = []
"""A recording that failed. PyTorch's allocator does not forget it, still reads it, and then refuses further ones."""


class Replayed:
    """A computation that changes tensors in place and is called many times.

    On a CPU, a call just computes. A GPU often needs less time for the work than the CPU does to launch it. There, the
    third call records the work as a CUDA graph, and each call from then on launches it at once. If a recording fails,
    because the work waits for a result, each call computes, and no other work of the process is recorded any more.

    The graph keeps the memory of a whole computation. It is freed with this object, which ``compute`` should therefore
    not refer to: objects in a circle stay until Python looks for them.

    Args:
        compute: the computation. It must read and write the same tensors in every call, of the same shapes, and must
            not read any result on the CPU.
        device: the device that it runs on.
    """

    def __init__(self, compute: Callable[[], None], device: torch.device) -> None:
        self._compute = compute
        self._device = device
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = _stream(device, get_ident()) if device.type == "cuda" else None

    def __call__(self) -> None:
        if self._stream is None:
            self._compute()
            return
        with torch.cuda.device(self._device):
            if self._calls == _FIRST_CALLS:
                self._graph = self._recorded(self._stream)
            self._calls += 1
            if self._graph is not None:
                self._graph.replay()
                return
            # PyTorch asks that the first calls run on the stream that is recorded.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._compute()
            torch.cuda.current_stream().wait_stream(self._stream)

    def _recorded(self, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph | None:
        # A recording that fails leaves its stream as the current one. Leaving the outer context does not.
        with _recording, torch.cuda.stream(stream):
            if _failed:
                return None
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads write artifacts meanwhile. Only this one must not do what a recording forbids.
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    self._compute()
            except RuntimeError as error:
                logger.debug("the work is launched step by step, because it cannot be recorded: %s", error)
                _failed.append(graph)
                return None
            return graph


@cache
def _stream(device: torch.device, thread: int) -> torch.cuda.Stream:
    """The stream that a thread records on. Each stream keeps workspaces of libraries and memory of its own."""
    del thread  # A recording also records what other threads launch on its stream.
    return torch.cuda.Stream(device)
