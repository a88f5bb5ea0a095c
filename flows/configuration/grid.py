"""From arguments such as ``method=memit,emmet method.batch_size=1,16`` to the cells of a sweep.

An experiment is a YAML file in ``conf/experiment``, or one of the user's::

    settings: {model: embedded, method.ridge: auto}          # the settings of every cell
    axes:                                                    # the cells are the product of the axes
      - {method: [memit, emmet]}
      - {method.batch_size: [1, 16], dataset.batches: [10, 4]}   # an axis of pairs of values
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.choices import EXPERIMENT, load_choice

__all__ = ["MULTIPLIER", "Cell", "Grid", "read_grid", "varies"]

MULTIPLIER = "corpus.dynamic_multiplier"
"""The setting that varies in the FastMEMIT paper's tables."""

_MOST_CELLS = 10_000


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        place: the value of each setting that varies, as text.
        arguments: all arguments of the run.
    """

    place: Mapping[str, str]
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """The cell's name in MLflow and in messages."""
        return " ".join(f"{key}={value}" for key, value in self.place.items())


@dataclass(frozen=True)
class Grid:
    """The cells of a sweep.

    Attributes:
        name: name of the experiment, or ``sweep``.
        settings: the settings of every cell.
        axes: the settings that vary. An axis maps one or more settings to their values, equally many for each.
    """

    name: str
    settings: Mapping[str, str]
    axes: tuple[Mapping[str, tuple[str, ...]], ...]

    @property
    def varied(self) -> list[str]:
        """The settings that vary, in the order of the axes."""
        return [key for axis in self.axes for key in axis]

    @property
    def cells(self) -> list[Cell]:
        """The product of the axes. The last one varies fastest."""
        rows = [
            [dict(zip(axis, values, strict=True)) for values in zip(*axis.values(), strict=True)] for axis in self.axes
        ]
        found = []
        for picked in itertools.product(*rows):
            place = {key: value for row in picked for key, value in row.items()}
            arguments = tuple(f"{key}={value}" for key, value in {**self.settings, **place}.items())
            found.append(Cell(place, arguments))
        return found


def read_grid(arguments: Sequence[str]) -> Grid:
    """The grid that arguments describe.

    An argument with several values, separated by commas, is an axis. Commas in brackets, braces or quotes do not
    separate. ``experiment=NAME`` starts from ``conf/experiment``; the other arguments change its settings, replace an
    axis, or select values of an axis of several settings.

    Raises:
        InputError: an argument that is not understood, no such experiment, or a value that an axis does not have.
    """
    given: dict[str, tuple[str, ...]] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise InputError(f"{argument!r} is not understood.", expected="key=value or key=value,value,...")
        given[key] = tuple(_values(value))
    name = "sweep"
    settings: dict[str, str] = {}
    axes: list[dict[str, tuple[str, ...]]] = []
    if EXPERIMENT in given:
        (experiment, *more) = given.pop(EXPERIMENT)
        if more:
            raise InputError("A sweep runs one experiment.", got=f"experiment={','.join([experiment, *more])}")
        name, settings, axes = _read(experiment)
    for key, values in given.items():
        settings.pop(key, None)
        place = next((place for place, axis in enumerate(axes) if key in axis), None)
        if place is None:
            axes.append({key: values})
        else:
            axes[place] = _narrowed(axes[place], key, values) if len(axes[place]) > 1 else {key: values}
    for axis in axes:
        if _length(axis) == 1:
            settings |= {key: value for key, (value,) in axis.items()}
    axes = [axis for axis in axes if _length(axis) > 1]
    if not axes:
        raise InputError(
            "Nothing varies in this sweep.",
            expected="a setting with several values, such as corpus.dynamic_multiplier=1,2,10",
            remedy="add one, or name an experiment=...",
        )
    count = math.prod(map(_length, axes))
    if count > _MOST_CELLS:
        raise InputError(f"A sweep of {count:,} cells is too large.", expected=f"at most {_MOST_CELLS:,}")
    return Grid(name, settings, tuple(axes))


def varies(arguments: Sequence[str]) -> bool:
    """Whether arguments can be those of a sweep: a setting has several values, or an experiment is named."""
    try:
        return bool(read_grid(arguments).axes)
    except InputError:
        return False


def _length(axis: Mapping[str, tuple[str, ...]]) -> int:
    return len(next(iter(axis.values())))


def _values(text: str) -> Iterator[str]:
    """The parts of ``text`` between the commas that are not in brackets, braces or quotes."""
    depth, quote, part = 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth <= 0 and not quote:
            yield part
            part = ""
        else:
            part += letter
    yield part


def _narrowed(axis: Mapping[str, tuple[str, ...]], key: str, wanted: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The part of an axis where ``key`` has one of the wanted values."""
    for value in wanted:
        if value not in axis[key]:
            others = ", ".join(other for other in axis if other != key)
            raise InputError(
                f"{key}={value} is not in the experiment.",
                expected=", ".join(axis[key]),
                remedy=f"each value belongs to one of {others}: copy the YAML file, and use experiment=FILE.yaml",
            )
    kept = [place for place, value in enumerate(axis[key]) if value in wanted]
    return {name: tuple(values[place] for place in kept) for name, values in axis.items()}


def _read(name: str) -> tuple[str, dict[str, str], list[dict[str, tuple[str, ...]]]]:
    path, loaded = load_choice(EXPERIMENT, name)
    content = OmegaConf.to_container(loaded, resolve=False)
    expected = "settings (key: value) and axes (a list)"
    if not isinstance(content, dict) or not set(content) <= {"settings", "axes"}:
        raise InputError(
            f"{path} is not an experiment.", got=", ".join(map(str, content or "nothing")), expected=expected
        )
    settings, axes = content.get("settings") or {}, content.get("axes") or []
    if not isinstance(settings, dict) or not isinstance(axes, list):
        raise InputError(f"{path} is not an experiment.", expected=expected)
    found = []
    for axis in axes:
        if not isinstance(axis, dict) or not all(isinstance(values, list) and values for values in axis.values()):
            raise InputError(f"An axis of {path} cannot be used.", got=repr(axis)[:200], expected="{key: [value, ...]}")
        if len({len(values) for values in axis.values()}) != 1:
            raise InputError(
                f"The settings of an axis of {path} have different numbers of values.",
                got=", ".join(f"{len(values)} of {key}" for key, values in axis.items()),
                expected="the same number of values for each setting",
            )
        found.append({str(key): tuple(_text(value) for value in values) for key, values in axis.items()})
    return path.stem, {str(key): _text(value) for key, value in settings.items()}, found


def _text(value: Any) -> str:
    """A YAML value in the form that it has in an argument."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
