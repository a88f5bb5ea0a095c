"""Checkpoints on the hub: what is small comes first, the weights when somebody reads them.

Only safetensors are ever fetched; a repository that has none is refused before anything large moves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from factsmith.artifacts.errors import InputError
from factsmith.tasks.model.hub.repository import Repository
from factsmith.tasks.model.hub.snapshot import Snapshot, resolve

__all__ = ["HubWeights", "open_hub", "weight_names"]

INDEX = "model.safetensors.index.json"
"""Names the files of weights that are split over several."""

WEIGHTS = "model.safetensors"

_OTHERS = {".bin", ".pt", ".pth", ".msgpack", ".h5", ".gguf", ".onnx"}
"""Suffixes of weights in other formats."""


@dataclass(frozen=True)
class HubWeights:
    """Weights that may still be on the hub.

    Attributes:
        snapshot: the commit.
        names: of the files.
    """

    snapshot: Snapshot
    names: tuple[str, ...]

    @property
    def address(self) -> str:
        """``owner/name@commit``."""
        return f"{self.snapshot.repository.identifier}@{self.snapshot.commit}"

    def fetch(self) -> None:
        """Have the weights in the cache.

        Raises:
            InputError: they cannot be had, or do not fit the disk.
        """
        self.snapshot.fetch_large(self.names)


def open_hub(identifier: str, revision: str | None, small: tuple[str, ...]) -> tuple[Path, HubWeights]:
    """The folder in the cache that has the files ``small``, and the weights that will come beside them.

    Args:
        identifier: ``owner/name``.
        revision: branch, tag or commit; ``None`` for the main branch.
        small: names of files to fetch at once, as far as the repository has them.

    Raises:
        InputError: no such repository or revision, no right to read it, nobody answers, or no safetensors in it.
    """
    snapshot = resolve(Repository("model", identifier, revision, "model.path"))
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
                remedy="pickled weights (.bin, .pt) are never loaded: take a repository or a model.revision that has "
                "safetensors, or convert them with save_pretrained and set model.path=DIR",
            )
    return folder, HubWeights(snapshot, names)


def weight_names(folder: Path) -> tuple[str, ...]:
    """Names of the weight files of a checkpoint, as its index says, or of the only one.

    Raises:
        InputError: the index cannot be read, or names something else than safetensors files beside it.
    """
    index = folder / INDEX
    if not index.is_file():
        return (WEIGHTS,)
    try:
        names = tuple(sorted(set(json.loads(index.read_text())["weight_map"].values())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} cannot be read.", got=repr(error), expected="a weight_map") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{index} names weights that are never loaded.", got=name, expected="safetensors files")
    return names
