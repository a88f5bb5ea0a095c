"""Checkpoints, in a folder or on the hub: what they are, what they hold, and how a model is loaded from one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.layout import HFModel, Layout, layout_for
from factsmith.tasks.decoder.placement import DeviceMap, device_map
from factsmith.tasks.decoder.quiet import quiet_transformers
from factsmith.tasks.model.hub.repository import is_identifier
from factsmith.tasks.model.hub.weights import HubWeights, open_hub, weight_names

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

_SMALL_FILES = ("config.json", "generation_config.json", "chat_template.jinja", *_TOKENIZER_FILES)
"""What is fetched from the hub before anything is decided."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a Hugging Face checkpoint of a family that can be edited.

    Attributes:
        path: the folder; of a repository on the hub, that of its commit in the cache.
        config: of the model.
        layout: of its family.
        hub: where the weights come from, if not from the folder.
    """

    path: Path
    config: PretrainedConfig
    layout: Layout
    hub: HubWeights | None = None

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
        """The safetensors files that hold the weights; those on the hub are fetched now.

        Raises:
            InputError: there are none, or they cannot be fetched.
        """
        if self.hub is not None:
            self.hub.fetch()
        files = [self.path / name for name in weight_names(self.path)]
        for file in files:
            if not file.is_file():
                raise InputError(
                    f"The model {self.path} has no weights that can be read.",
                    expected=f"{file.name}",
                    remedy="save it with save_pretrained; pickled weights (.bin, .pt) are never loaded",
                )
        return files

    @property
    def is_here(self) -> bool:
        """Whether the weights can be read without fetching any."""
        return all((self.path / name).is_file() for name in weight_names(self.path))

    def check_readable(self) -> None:
        """See that there are weights and a tokenizer, without fetching what is large.

        Raises:
            InputError: there are not.
        """
        if self.hub is None:
            _ = self.weight_files

    @cached_property
    def tokenizer_files(self) -> list[Path]:
        return [self.path / name for name in _TOKENIZER_FILES if (self.path / name).is_file()]

    def check_weights(self) -> int:
        """Look at every weight; the number of parameters.

        Raises:
            InputError: a weight is NaN or infinite, or a file is not safetensors; says where.
        """
        count = 0
        for name, tensor in self._tensors():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise InputError(
                    f"The model {self.path} holds NaN or infinity.",
                    got=f"in tensor {name!r}",
                    remedy="get the checkpoint again; weights must be finite",
                )
            count += tensor.numel()
        return count

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for file in self.weight_files:
            try:
                with safe_open(file, framework="pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118 - not a dict
                        yield name, tensors.get_tensor(name)
            except SafetensorError as error:
                raise InputError(f"{file} is not a whole safetensors file.", got=error) from None

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """The checkpoint's tokenizer.

        Raises:
            InputError: there is none, or none that tells where in the text a token stands.
        """
        with quiet_transformers():
            try:
                tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
            except (OSError, ValueError, KeyError) as error:
                raise InputError(
                    f"The model {self.path} has no tokenizer that can be read.", got=str(error).splitlines()[0]
                ) from None
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise InputError(f"The tokenizer of {self.path} gives no offsets.", expected="a fast tokenizer")
        if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # what transformers makes of missing files
            raise InputError(f"The model {self.path} has no tokenizer that can be read.", got="an empty vocabulary")
        tokenizer.padding_side = "right"
        return tokenizer

    def load(
        self, tokenizer: PreTrainedTokenizerFast, *, dtype: str, device: str, device_map: DeviceMap | None = None
    ) -> Decoder:
        """The model in memory, weights in ``dtype``, whole on ``device`` or spread as ``device_map`` says."""
        with quiet_transformers():
            try:
                model: HFModel = AutoModelForCausalLM.from_pretrained(
                    self.path,
                    config=self.config,
                    dtype=getattr(torch, dtype),
                    device_map=device_map,
                    attn_implementation=self.layout.attention_implementation,
                    local_files_only=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                )
            except (OSError, ValueError, RuntimeError) as error:
                if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                    raise  # the model is as it should be
                raise InputError(f"The model {self.path} cannot be loaded.", got=str(error).splitlines()[0]) from None
        return Decoder(model.to(device) if device_map is None else model, tokenizer, self.layout)

    def device_map(
        self, *, dtype: str, device: torch.device, gpu_memory_mb: int | None, cpu_memory_mb: int | None
    ) -> DeviceMap:
        """Where each part of the model would lie; ``placement.device_map`` says how it is decided."""
        with quiet_transformers():
            return device_map(
                self.config,
                self.layout.blocks,
                dtype=getattr(torch, dtype),
                device=device,
                gpu_memory_mb=gpu_memory_mb,
                cpu_memory_mb=cpu_memory_mb,
            )


def open_model(name: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint that ``name`` means: a folder if there is one, else ``owner/name`` on the hub.

    Reads, and of the hub fetches, its config and tokenizer only.

    Args:
        name: folder or id.
        revision: of an id: branch, tag or commit.

    Raises:
        InputError: there is neither, it may not be read, or it cannot be edited.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() or not is_identifier(name):
        refuse_revision(name, revision)
        return open_checkpoint(folder)
    path, weights = open_hub(name, revision, _SMALL_FILES)
    return replace(open_checkpoint(path), hub=weights)


def refuse_revision(name: str, revision: str | None) -> None:
    """
    Raises:
        InputError: a revision is asked of the model ``name``, which is not on the hub.
    """
    if revision is not None:
        raise InputError(
            f"The model {name} has no revisions: it is not on the hub.",
            got=f"model.revision={revision}",
            remedy="set model.revision=null, or model.path to the id of a repository on the hub",
        )


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in folder ``path``; reads its config only.

    Raises:
        InputError: no such folder, no config in it, or a family that no layout knows.
    """
    if not path.is_dir():
        raise InputError(
            f"The model {path} does not exist.",
            expected="a folder with a Hugging Face checkpoint, or owner/name of one on the hub",
        )
    if not (path / "config.json").is_file():
        raise InputError(
            f"The model {path} has no config.json.",
            got=f"files {', '.join(sorted(file.name for file in path.iterdir())[:8]) or 'none'}",
            expected="a folder that save_pretrained wrote",
        )
    with quiet_transformers():
        try:
            model_type = json.loads((path / "config.json").read_text()).get("model_type")
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            if isinstance(error, ValueError) and "does not recognize this architecture" in str(error):
                config = PretrainedConfig.from_dict({})
                setattr(config, "model_type", str(model_type))  # noqa: B010 - a class variable to mypy
            else:
                raise InputError(
                    f"The config of model {path} cannot be read.", got=str(error).splitlines()[0]
                ) from None
    return Checkpoint(path, config, layout_for(config, str(path)))
