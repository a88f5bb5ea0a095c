"""The model of a run: its checkpoint, and its tokenizer and weights once they are needed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.recipe import Recipe, Series, digest_of
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.placement import DeviceMap
from factsmith.tasks.model.checkpoint import Checkpoint
from factsmith.tasks.model.cost import model_cost
from factsmith.tasks.model.limits import Limits, limits
from factsmith.tasks.model.settings import ModelSettings
from factsmith.tasks.pipeline.settings import RuntimeSettings

__all__ = ["Fingerprint", "Model"]


@dataclass(frozen=True)
class Fingerprint:
    """Everything that determines the numbers a model computes.

    Attributes:
        weights: digest of the checkpoint's config and weight files.
        tokenizer: digest of the tokenizer's files.
        dtype: data type of the weights in memory.
        attention: the attention implementation.
    """

    weights: str
    tokenizer: str
    dtype: str
    attention: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The recipe parameters of every artifact that a forward pass produces."""
        return {"dtype": self.dtype, "attention": self.attention}

    @property
    def inputs(self) -> dict[str, str]:
        """The recipe inputs of every artifact that a forward pass produces."""
        return {"model": self.weights, "tokenizer": self.tokenizer}


class Model:
    """A checkpoint that can be edited, loaded when a stage first needs it.

    Args:
        checkpoint: the checkpoint.
        settings: name and dtype.
        runtime: placement on devices.
        devices: the devices of a model that is not spread. Each has a replica of it.
        checksums: computes the SHA-256 of files.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: ModelSettings,
        runtime: RuntimeSettings,
        devices: Sequence[torch.device],
        checksums: Callable[[Iterable[Path]], Mapping[Path, str]],
    ) -> None:
        self.checkpoint = checkpoint
        self.settings = settings
        self.name = settings.name
        self._dtype = settings.dtype
        self._devices = devices
        self._runtime = runtime
        self._checksums_of = checksums
        self._checksums: dict[Path, str] = {}
        self._blocks: int | None = None

    def needs_only(self, blocks: int) -> None:
        """Load only the embedding and the first ``blocks`` blocks: nothing in this run reads more of the model.

        A model that is spread over devices is still loaded whole.
        """
        self._blocks = blocks

    @property
    def needed_blocks(self) -> int | None:
        """The first blocks, if nothing in this run reads more of the model; ``None`` for all."""
        return self._blocks

    @property
    def dtype(self) -> str:
        """Data type of the weights in memory: as set, or the checkpoint's own."""
        return self.checkpoint.own_dtype if self._dtype == "auto" else self._dtype

    @property
    def block_count(self) -> int:
        """Number of decoder blocks."""
        return self.checkpoint.block_count

    @property
    def key_width(self) -> int:
        """d_k, the width of a key."""
        return self.checkpoint.key_width

    @property
    def context_length(self) -> int:
        """The most tokens that the model takes."""
        return self.checkpoint.context_length

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the ``model`` artifact. Reads the weights, and fetches them if they are on the hub."""
        return Series("model", 1, {"files": self._read(self.checkpoint.files)}).member()

    def _read(self, files: Iterable[Path]) -> dict[str, str]:
        """The checksums of files, by name.

        Raises:
            InputError: a file has other bytes than when it was first read.
        """
        found = self._checksums_of(files)
        for file, checksum in found.items():
            if self._checksums.setdefault(file, checksum) != checksum:
                raise InputError(
                    f"{file} was written to while it was read.", remedy="run again when nothing writes to the model"
                )
        return {file.name: checksum for file, checksum in found.items()}

    def check_unchanged(self) -> None:
        """Check that the files still have the bytes that fingerprint and recipe were made from.

        Raises:
            InputError: one has changed; names it.
        """
        self._read(list(self._checksums))

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint. Reads the weights, and fetches them if they are on the hub."""
        return self.fingerprint_with(self.recipe.digest)

    def fingerprint_with(self, weights: str) -> Fingerprint:
        """The fingerprint with ``weights`` as the digest of the weights, without reading them."""
        files = self._read(self.checkpoint.tokenizer_files)
        return Fingerprint(weights, digest_of(files), self.dtype, self.checkpoint.layout.attention_implementation)

    @cached_property
    def device_map(self) -> DeviceMap | None:
        """The device of each part of the model, or ``None`` if it is not spread.

        Raises:
            InputError: the model does not fit, or memory limits are set for a model that is not spread.
        """
        runtime = self._runtime
        if runtime.device_map is not None:
            return self.checkpoint.device_map(
                dtype=self.dtype,
                device=self._devices[0],
                gpu_memory_mb=runtime.gpu_memory_mb,
                cpu_memory_mb=runtime.cpu_memory_mb,
            )
        if runtime.gpu_memory_mb is not None or runtime.cpu_memory_mb is not None:
            raise InputError(
                "runtime.gpu_memory_mb and runtime.cpu_memory_mb limit a model that is spread over devices.",
                got="runtime.device_map=null",
                remedy="set runtime.device_map=auto, or leave them out",
            )
        return None

    @property
    def made(self) -> dict[str, Any]:
        """Where the model runs and in what passes, for the manifests of what it computes."""
        limits = self.limits
        return {
            "device_map": self.device_map,
            "tokens_per_pass": limits.most_tokens,
            "memory_mb": limits.memory // 2**20,
        }

    @cached_property
    def limits(self) -> Limits:
        """How much runs at once, on each device."""
        item = getattr(torch, self.dtype).itemsize
        return limits(self._runtime, self._devices[0], lambda: model_cost(self.checkpoint), item)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer."""
        self._read(self.checkpoint.tokenizer_files)
        tokenizer = self.checkpoint.load_tokenizer()
        self.check_unchanged()
        return tokenizer

    @cached_property
    def decoder(self) -> Decoder:
        """The model in memory, or its first blocks if no more is needed. Loads the weights at the first access."""
        return self._load(self._devices[0], self.tokenizer)

    @cached_property
    def replicas(self) -> list[Decoder]:
        """The model in the memory of each device: ``decoder``, then one for each further device."""
        # A tokenizer cannot be used by several threads at the same time.
        return [self.decoder, *(self._load(device, copy.deepcopy(self.tokenizer)) for device in self._devices[1:])]

    def _load(self, device: torch.device, tokenizer: PreTrainedTokenizerFast) -> Decoder:
        self._read(self.checkpoint.files)
        decoder = self.checkpoint.load(
            tokenizer,
            dtype=self.dtype,
            device=str(device),
            device_map=self.device_map,
            blocks=None if self.device_map else self._blocks,
        )
        self.check_unchanged()
        return decoder
