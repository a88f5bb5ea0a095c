"""The manifest of an artifact: its recipe, its lineage, and the checksums of its files."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from factsmith.artifacts.errors import DamagedArtifactError
from factsmith.artifacts.recipe import canonical_json, digest_of

__all__ = ["MANIFEST_NAME", "FileEntry", "Manifest", "code_versions"]

MANIFEST_NAME = "manifest.json"


class FileEntry(BaseModel):
    """Size and SHA-256 of one file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The file that is written last into an artifact and read first.

    Attributes:
        digest: digest of the recipe, which is the artifact's name.
        series: digest of the artifact's series.
        recipe: the whole recipe.
        lineage: addresses of the artifacts that were read to make it.
        content: one checksum over all files. Equal bytes have equal checksums.
        files: size and checksum of every file, by relative path.
        summary: what people want to know without opening the artifact (tokens, layers, rank, ...).
        made: versions, device and settings that are not part of the recipe but may explain a different last bit.
        created: UTC, ISO 8601.
        seconds: duration of the build.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    digest: str
    series: str
    recipe: dict[str, Any]
    lineage: tuple[str, ...]
    content: str
    files: dict[str, FileEntry]
    summary: dict[str, Any]
    made: dict[str, Any]
    created: str
    seconds: float

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.bytes for entry in self.files.values())

    @property
    def address(self) -> str:
        return f"{self.kind}/{self.digest}"

    @staticmethod
    def content_of(files: Mapping[str, FileEntry]) -> str:
        return digest_of({path: entry.sha256 for path, entry in files.items()})

    def damage(self, folder: Path, checksum: Callable[[Path], str]) -> Iterator[str]:
        """Differences between the files in ``folder`` and those that were written, one line each."""
        for name, entry in self.files.items():
            file = folder / name
            try:
                if not file.is_file():
                    yield f"{file} is missing"
                elif (size := file.stat().st_size) != entry.bytes:
                    yield f"{file} has {size} bytes, not {entry.bytes}"
                elif checksum(file) != entry.sha256:
                    yield f"{file} has other bytes than were written"
            except FileNotFoundError:
                yield f"{file} is missing"
            except OSError as error:
                yield f"{file} cannot be read: {error.strerror}"

    def dump(self) -> bytes:
        """JSON text with its own checksum, so that a changed manifest is noticed too."""
        content = self.model_dump(mode="json")
        return json.dumps({**content, "checksum": _checksum(content)}, indent=1, ensure_ascii=False).encode()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check a manifest.

        Raises:
            DamagedArtifactError: the manifest is missing, was changed, or does not match its own recipe.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise DamagedArtifactError(f"{path} is missing.") from None
        except OSError as error:
            raise DamagedArtifactError(f"{path} cannot be read.", got=error.strerror) from None
        return cls.parse(data, path)

    @classmethod
    def parse(cls, data: bytes, where: object) -> Self:
        """The manifest that ``dump`` has written. ``where`` it is appears in messages.

        Raises:
            DamagedArtifactError: as in ``load``.
        """
        try:
            content = json.loads(data)
            checksum = content.pop("checksum")
            manifest = cls.model_validate(content)
            as_written = checksum == _checksum(content) and manifest.digest == digest_of(manifest.recipe)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise DamagedArtifactError(f"{where} is not a manifest.", got=str(error).partition("\n")[0]) from None
        if not as_written:
            raise DamagedArtifactError(f"{where} has been changed since it was written.")
        return manifest


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content)).hexdigest()


@cache
def code_versions() -> dict[str, str]:
    """Versions of the packages that compute artifacts. They are recorded, and are not part of a recipe."""
    versions = {"python": platform.python_version()}
    for package in ("factsmith", "torch", "transformers", "numpy", "zarr", "pyarrow"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
