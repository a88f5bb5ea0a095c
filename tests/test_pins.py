"""The versions that were tested: complete, exact, and those that pyproject.toml allows."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(line.partition("==")[0]): line.partition("==")[2].partition(";")[0].strip()
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
}
NOT_TESTED = {"lm-eval"}
"""Extras that the tests replace by a stand-in."""


def requirements() -> list[Requirement]:
    """All that the project requires, with its extras."""
    extras = {name: of_one for name, of_one in PROJECT["optional-dependencies"].items() if name not in NOT_TESTED}
    return [
        Requirement(one) for one in [*PROJECT["dependencies"], *(one for extra in extras.values() for one in extra)]
    ]


def test_every_pin_is_one_version():
    assert all(re.fullmatch(r"\d+(\.\w+)*", version) for version in PINS.values()), PINS


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_what_is_required_is_pinned_within_its_range(requirement):
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_what_is_required_in_turn_is_pinned():
    """Whoever installs with constraints.txt gets no version that nobody has seen."""
    named = map(Requirement, [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])
    waiting = {canonicalize_name(one.name) for one in named}
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        try:
            of_one = [Requirement(one) for one in requires(name) or []]
        except PackageNotFoundError:
            pytest.skip(f"needs the extra dev: {name} is not installed")
        needed = {
            canonicalize_name(one.name) for one in of_one if one.marker is None or one.marker.evaluate({"extra": ""})
        }
        waiting |= needed - seen
    assert seen - PINS.keys() <= {"setuptools"}  # Each environment has its own.
