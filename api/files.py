"""Files that appear only when they are complete, and what is read from them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from factsmith.artifacts.checksums import Checksums
from factsmith.artifacts.errors import InputError, first_line
from factsmith.artifacts.formats import allow_others, load_json, save_json, save_tensors
from factsmith.tasks.pipeline.environment import check_vacant

__all__ = ["new_folder", "read_folder", "write_folder"]

_TENSORS = "tensors.safetensors"
_CHECKSUM = "sha256"
"""The field of the JSON document with the checksum of the tensors' file."""


def write_folder(folder: Path | str, document: str, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a JSON document and tensors to a new folder. It appears only when it is complete.

    Args:
        folder: a folder that does not exist or is empty.
        document: name of the JSON file.
        content: what it holds.
        tensors: the tensors, by name.

    Returns:
        The folder.

    Raises:
        InputError: the folder is not empty, or cannot be written.
    """
    with new_folder(folder) as staging:
        save_tensors(staging / _TENSORS, tensors)
        save_json(staging / document, {**content, _CHECKSUM: Checksums.read(staging / _TENSORS)})
    return Path(folder).expanduser().absolute()


@contextmanager
def new_folder(folder: Path | str) -> Iterator[Path]:
    """A folder to write files to. It takes the place of ``folder`` when all is well.

    Raises:
        InputError: ``folder`` is not new or empty, or cannot be written.
    """
    folder = Path(folder).expanduser().resolve()
    check_vacant(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as staging:
            written = Path(staging) / folder.name
            written.mkdir()
            yield written
            allow_others(written)
            written.rename(folder)  # An empty folder is replaced.
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{folder} cannot be written.", got=reason) from None


def read_folder(folder: Path | str, document: str, form: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON document and the tensors of a folder.

    Args:
        folder: the folder.
        document: name of the JSON file.
        form: the value of its field ``format``.
        what: what the folder holds and which function writes it, for messages.

    Raises:
        InputError: the folder cannot be read, or holds something else.
    """
    folder = Path(folder).expanduser()
    try:
        content = load_json(folder / document)
        checksum = Checksums.read(folder / _TENSORS)
        with safe_open(folder / _TENSORS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - It is not a dict.
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise InputError(
            f"{folder} cannot be read as {what}.",
            got=f"{type(error).__name__}: {error}",
            expected=f"{document} and {_TENSORS}",
        ) from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != form:
        raise InputError(f"{folder} is not {what}.", got=f"format {found!r}", expected=f"format {form!r}")
    if content.pop(_CHECKSUM, checksum) != checksum:
        raise InputError(
            f"{folder / _TENSORS} is not the file that {document} was written with.", remedy="copy the folder again"
        )
    return content, tensors
