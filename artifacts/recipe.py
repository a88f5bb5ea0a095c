"""Recipes: everything that determines an artifact's bytes, and the digest that names it.

A recipe holds nothing that does not change the bytes: no paths, no worker counts, no batch sizes. Two machines with the
same recipe look for the same artifact.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

__all__ = ["Recipe", "Series", "canonical_json", "digest_of"]

DIGEST_LENGTH = 32
"""Hex digits of a digest: 128 bits of a SHA-256."""


def canonical_json(value: Any) -> bytes:
    """The canonical JSON of ``value``: sorted keys, no spaces, UTF-8, no NaN.

    Raises:
        ValueError: ``value`` holds NaN or an infinity.
        TypeError: ``value`` holds something that JSON cannot represent.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(value: Any) -> str:
    """Digest of a JSON value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:DIGEST_LENGTH]


@dataclass(frozen=True)
class Series:
    """Artifacts whose recipes differ only in a small key: the shards of a key stream, the layers of a covariance.

    Args:
        kind: the kind of artifact: ``keys``, ``covariance``, ...
        version: version of the code that writes them. Raise it when the same parameters would give other bytes.
        parameters: JSON values that change the bytes.
        inputs: digests of the artifacts that they are made from, by role.
    """

    kind: str
    version: int
    parameters: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def content(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "version": self.version,
            "parameters": dict(self.parameters),
            "inputs": dict(self.inputs),
        }

    @cached_property
    def digest(self) -> str:
        return digest_of(self.content)

    @property
    def address(self) -> str:
        """The name of the series in logs and commands."""
        return f"{self.kind}/{self.digest}"

    def member(self, **key: Any) -> Recipe:
        """The recipe of one artifact of the series."""
        return Recipe(self, key)


@dataclass(frozen=True)
class Recipe:
    """The recipe of one artifact: its series, and its key within the series."""

    series: Series
    key: Mapping[str, Any]

    @cached_property
    def content(self) -> dict[str, Any]:
        return {"series": self.series.content, "key": dict(self.key)}

    @cached_property
    def digest(self) -> str:
        return digest_of(self.content)

    @property
    def address(self) -> str:
        return f"{self.series.kind}/{self.digest}"
