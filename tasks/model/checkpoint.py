"""Checkpoints in a folder or on the hub: find one, check its files, and load a model from it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.layout import Layout, layout_for
from factsmith.tasks.decoder.placement import DeviceMap, device_map
from factsmith.tasks.decoder.quiet import quiet_transformers
from factsmith.tasks.model.hub.repository import is_identifier
from factsmith.tasks.model.hub.weights import HubWeights, open_hub, weight_map, weight_names
from factsmith.tasks.model.loading import load_model
from factsmith.tasks.model.tensors import (
    StoredTensor,
    check_index,
    check_tensors,
    check_token_ids,
    check_types,
    own_dtype,
    refuse_adapter,
    said,
    stored_tensors,
    tensors_in,
)

__all__ = ["Checkpoint", "open_checkpoint", "open_model", "refuse_revision"]

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)

_CHAT_TEMPLATE = "chat_template.jinja"

_SMALL_FILES = ("config.json", "generation_config.json", _CHAT_TEMPLATE, *_TOKENIZER_FILES, "ledger.json")
"""Files that are fetched from the hub when a checkpoint is opened."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a Hugging Face checkpoint of a family that can be edited.

    Attributes:
        path: the folder. For a repository on the hub, the folder of its commit in the cache.
        config: the model's config.
        layout: the layout of the model's family.
        hub: the weights on the hub; ``None`` for a local folder.
    """

    path: Path
    config: PretrainedConfig
    layout: Layout
    hub: HubWeights | None = None

    @property
    def source(self) -> tuple[str, str | None]:
        """What ``from_pretrained`` loads it by: ``owner/name`` on the hub and the commit, or the folder."""
        if self.hub is None:
            return str(self.path.resolve()), None
        return self.hub.snapshot.repository.identifier, self.hub.snapshot.commit

    @property
    def block_count(self) -> int:
        return self.layout.block_count(self.config)

    @property
    def key_width(self) -> int:
        return self.layout.key_width(self.config)

    @property
    def context_length(self) -> int:
        return self.layout.context_length(self.config)

    @cached_property
    def weight_files(self) -> list[Path]:
        """The safetensors files that contain the weights. Weights on the hub are fetched now.

        Raises:
            InputError: there are no such files, or they cannot be fetched.
        """
        if self.hub is not None:
            self.hub.fetch()
        files = [self.path / name for name in weight_names(self.path)]
        for file in files:
            if not file.is_file():
                raise InputError(
                    f"The model {self.path} has no readable weights.",
                    expected=file.name,
                    remedy="save the model with save_pretrained; pickled weights (.bin, .pt) are never loaded",
                )
        return files

    @property
    def files(self) -> list[Path]:
        """The files that determine the weights: the config and the weight files. Weights on the hub are fetched now."""
        return [self.path / "config.json", *self.weight_files]

    @property
    def is_here(self) -> bool:
        """Whether all weight files are on this machine."""
        return all((self.path / name).is_file() for name in weight_names(self.path))

    def check_readable(self) -> None:
        """Check that the checkpoint has every tensor of its model, without fetching weights from the hub.

        Raises:
            InputError: a weight file or a tensor is missing, or there is a tensor that the model does not have.
        """
        if self.hub is None or self.is_here:
            _ = self.weight_files
            self.check_tensors()

    def check_tensors(self) -> None:
        """Check names, places, types and shapes of the tensors, once. See ``tensors``."""
        _ = self._tensors_checked

    @cached_property
    def _tensors_checked(self) -> None:
        if (listed := weight_map(self.path)) is not None:
            check_index(self.path, self._stored_tensors, listed, self.layout)
        check_types(self.path, self._stored_tensors, self.layout)
        check_tensors(self.path, self.config, self.layout)

    @property
    def own_dtype(self) -> str:
        """The data type of the weights. While they are on the hub, it is the one that the config says.

        Raises:
            InputError: a model cannot be run in this type.
        """
        if self.is_here:
            return own_dtype(self.path, self._stored_tensors, self.layout)
        configured = str(self.config.dtype).removeprefix("torch.")
        return configured if configured in ("float32", "bfloat16", "float16") else "float32"

    @cached_property
    def _stored_tensors(self) -> list[StoredTensor]:
        return stored_tensors(self.weight_files)

    @cached_property
    def tokenizer_files(self) -> list[Path]:
        return [self.path / name for name in _TOKENIZER_FILES if (self.path / name).is_file()]

    def check_weights(self) -> int:
        """Check every weight. Returns the number of parameters.

        Raises:
            InputError: a weight is NaN or infinite, or a file is not safetensors; names the tensor or the file.
        """
        count = 0
        for name, tensor in tensors_in(self.weight_files):
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise InputError(
                    f"The weights of the model {self.path} contain NaN or infinity.",
                    got=f"tensor {name!r}",
                    remedy="download the checkpoint again; weights must be finite",
                )
            count += tensor.numel()
        return count

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """The checkpoint's tokenizer.

        Raises:
            InputError: there is no readable tokenizer, or it does not give the offsets of tokens in the text.
        """
        with quiet_transformers():
            try:
                tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
            except Exception as error:  # Whatever it is, the tokenizer's files are at fault.
                raise InputError(f"The model {self.path} has no readable tokenizer.", got=said(error)) from None
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise InputError(
                f"The tokenizer of {self.path} does not give the offsets of tokens.", expected="a fast tokenizer"
            )
        if not tokenizer("a", add_special_tokens=False)["input_ids"]:
            # Transformers returns such a tokenizer if the files are missing.
            raise InputError(f"The model {self.path} has no readable tokenizer.", got="an empty vocabulary")
        check_token_ids(tokenizer, int(self.config.get_text_config().vocab_size), str(self.path))
        tokenizer.padding_side = "right"
        return tokenizer

    def copy_tokenizer(self, folder: Path) -> None:
        """Copy the files of the tokenizer to ``folder`` as they are.

        Transformers would write the tokenizer as this program has set it, padding on the right.
        """
        for file in (*self.tokenizer_files, self.path / _CHAT_TEMPLATE):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)

    def load(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        dtype: str,
        device: str,
        device_map: DeviceMap | None = None,
        blocks: int | None = None,
    ) -> Decoder:
        """Load the model, with weights in ``dtype``, onto ``device`` or spread over devices by ``device_map``.

        Args:
            tokenizer: its tokenizer.
            dtype: data type of the weights.
            device: the device of a model that is not spread.
            device_map: the device of each part of a model that is spread.
            blocks: load only the embedding and the first ``blocks`` blocks; ``None`` for all of the model.

        Raises:
            InputError: the weights cannot be read, or are not those of the model.
        """
        if blocks is not None:
            self.check_tensors()  # Those that are not loaded are checked here.
        model = load_model(
            self.path,
            self.config,
            self.layout,
            self.weight_files,
            dtype=dtype,
            device_map=device_map or {"": device},
            blocks=blocks,
        )
        return Decoder(model, tokenizer, self.layout, whole=blocks is None)

    def device_map(
        self, *, dtype: str, device: torch.device, gpu_memory_mb: int | None, cpu_memory_mb: int | None
    ) -> DeviceMap:
        """The device of each part of the model if it is spread. See ``placement.device_map``."""
        with quiet_transformers():
            return device_map(
                self.config,
                self.layout.blocks,
                dtype=getattr(torch, dtype),
                device=device,
                gpu_memory_mb=gpu_memory_mb,
                cpu_memory_mb=cpu_memory_mb,
            )


def open_model(name: str, revision: str | None = None, setting: str = "model.path") -> Checkpoint:
    """The checkpoint called ``name``: a folder if it exists, otherwise ``owner/name`` on the hub.

    Only the config and the tokenizer are read. On the hub, only these are fetched.

    Args:
        name: a folder, or the id of a repository on the hub.
        revision: branch, tag or commit of the repository; ``None`` for its main branch.
        setting: the setting that gives ``name``, for messages.

    Raises:
        InputError: there is no such checkpoint, it may not be read, or it cannot be edited.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() or not is_identifier(name):
        refuse_revision(name, revision)
        return open_checkpoint(folder)
    path, weights = open_hub(name, revision, _SMALL_FILES, setting)
    return replace(open_checkpoint(path), hub=weights)


def refuse_revision(name: str, revision: str | None) -> None:
    """Refuse a revision of the model ``name``, which is not on the hub.

    Raises:
        InputError: ``revision`` is set.
    """
    if revision is not None:
        raise InputError(
            f"The model {name} has no revisions, because it is not on the hub.",
            got=f"model.revision={revision}",
            remedy="set model.revision=null, or set model.path to the id of a repository on the hub",
        )


_NO_CHECKPOINT = {
    "delta.json": "this is a delta: `factsmith apply` writes the model that has it",
    "adapter_config.json": "this is an adapter: give the model that it was made for, or one it was merged into",
    "edit.json": "this is a model with a memory: `factsmith ask` reads it, and its folder base/ is the unedited model",
}
"""What a folder without a model is, by a file in it."""


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in folder ``path``. Only its config is read.

    Raises:
        InputError: there is no such folder, it has no readable config, or the model cannot be edited.
    """
    if not path.is_dir():
        raise InputError(
            f"The model {path} does not exist.",
            expected="a folder with a Hugging Face checkpoint, or owner/name of a checkpoint on the hub",
        )
    if not (path / "config.json").is_file():
        raise InputError(
            f"The model {path} has no config.json.",
            got=f"files {', '.join(sorted(file.name for file in path.iterdir())[:8]) or 'none'}",
            expected="a folder written by save_pretrained",
            remedy=next((remedy for name, remedy in _NO_CHECKPOINT.items() if (path / name).is_file()), None),
        )
    refuse_adapter(path)
    with quiet_transformers():
        try:
            raw = json.loads((path / "config.json").read_text())
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # Whatever it is, config.json is at fault.
            if isinstance(error, ValueError) and "does not recognize this architecture" in str(error):
                config = PretrainedConfig.from_dict({})
                vars(config).update(raw)  # They say why it is refused.
            else:
                raise InputError(f"The config of the model {path} cannot be read.", got=said(error)) from None
    return Checkpoint(path, config, layout_for(config, str(path)))
