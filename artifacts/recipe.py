"""Recipes: what an artifact is made of, and the digest that names it.

A recipe holds everything that changes an artifact's bytes and nothing else: no paths, no worker counts, no batch
sizes. Two machines that resolve the same recipe look for the same artifact.
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
    """The one JSON spelling of ``value``: sorted keys, no spaces, UTF-8, no NaN.

    Raises:
        ValueError: ``value`` holds NaN or an infinity.
        TypeError: ``value`` holds something JSON has no word for.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(value: Any) -> str:
    """Digest of a JSON value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:DIGEST_LENGTH]


@dataclass(frozen=True)
class Series:
    """Artifacts that share everything but a small key: the shards of one key stream, the layers of one covariance.

    Args:
        kind: what the artifacts are: ``keys``, ``covariance``, ...
        version: of the code that writes them; raise it when the same parameters would give other bytes.
        parameters: JSON values that change the bytes.
        inputs: digests of what they are made from, by role.
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
        """How people and logs name the series."""
        return f"{self.kind}/{self.digest}"

    def member(self, **key: Any) -> Recipe:
        """The recipe of one artifact of the series."""
        return Recipe(self, key)


@dataclass(frozen=True)
class Recipe:
    """One artifact: a series and the key that tells its members apart."""

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
