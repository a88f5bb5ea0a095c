"""Checkpoints on the hub: the small files are fetched first, the weights when they are first read.

Only weights in safetensors files are fetched. A repository without any is refused before a large file is fetched.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from factsmith.artifacts.errors import InputError
from factsmith.tasks.model.hub.repository import Repository
from factsmith.tasks.model.hub.snapshot import Snapshot, resolve

__all__ = ["INDEX", "HubWeights", "open_hub", "weight_map", "weight_names"]

INDEX = "model.safetensors.index.json"
"""The file that lists the weight files if the weights are split over several."""

WEIGHTS = "model.safetensors"

_OTHERS = {".bin", ".pt", ".pth", ".msgpack", ".h5", ".gguf", ".onnx"}
"""Suffixes of weights in other formats."""


@dataclass(frozen=True)
class HubWeights:
    """Weights that may still be on the hub.

    Attributes:
        snapshot: the commit.
        names: names of the weight files.
    """

    snapshot: Snapshot
    names: tuple[str, ...]

    @property
    def address(self) -> str:
        """``owner/name@commit``."""
        return f"{self.snapshot.repository.identifier}@{self.snapshot.commit}"

    def fetch(self) -> None:
        """Fetch the weights into the cache, unless it has them.

        Raises:
            InputError: the weights cannot be fetched, or do not fit the disk.
        """
        self.snapshot.fetch_large(self.names)


def open_hub(
    identifier: str, revision: str | None, small: tuple[str, ...], setting: str = "model.path"
) -> tuple[Path, HubWeights]:
    """Fetch the small files of a checkpoint. Returns their folder in the cache, and the weights to fetch into it later.

    Args:
        identifier: ``owner/name``.
        revision: branch, tag or commit; ``None`` for the main branch.
        small: names of the small files. Those that the repository lacks are ignored.
        setting: the setting that gives ``identifier``, for messages.

    Raises:
        InputError: there is no such repository or revision, it may not be read, the hub does not answer, or there are
            no safetensors weights.
    """
    snapshot = resolve(Repository("model", identifier, revision, setting))
    folder = snapshot.fetch([*small, INDEX])
    names = weight_names(folder)
    listed = snapshot.sizes
    for name in names:
        if listed and name not in listed:
            others = [other for other in sorted(listed) if Path(other).suffix in _OTHERS]
            raise InputError(
                f"The model {identifier} has no safetensors weights.",
                got=f"{', '.join(others[:3]) or 'no weights'} at commit {snapshot.commit[:12]}",
                expected=name,
                remedy="use a repository or a revision with safetensors, or convert the weights with "
                f"save_pretrained and set {setting}=DIR; pickled weights (.bin, .pt) are never loaded",
            )
    return folder, HubWeights(snapshot, names)


def weight_names(folder: Path) -> tuple[str, ...]:
    """Names of the weight files that transformers loads from a folder.

    These are ``model.safetensors`` if it is there, whatever an index beside it lists, and otherwise the files of the
    index.

    Raises:
        InputError: the index cannot be read, or lists a file that is not a safetensors file in the same folder.
    """
    listed = weight_map(folder)
    return (WEIGHTS,) if listed is None else tuple(sorted(set(listed.values())))


def weight_map(folder: Path) -> dict[str, str] | None:
    """The weight file of each tensor, as the index says; ``None`` if transformers does not read an index.

    Raises:
        InputError: as in ``weight_names``.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return None
    try:
        listed = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index} cannot be read.", got=repr(error), expected="a weight_map") from None
    for name in listed.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(
                f"{index} lists a file that is never loaded.", got=name, expected="safetensors files in the same folder"
            )
    return listed
