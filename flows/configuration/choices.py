"""The choices in ``conf/``: one YAML file for each model, corpus, method, dataset and experiment."""

from __future__ import annotations

import copy
import os
from functools import cache
from importlib import resources
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from factsmith.artifacts.errors import InputError, closest

__all__ = ["EXPERIMENT", "GROUPS", "choice_names", "choices", "load_choice", "load_yaml", "starting_choices"]

GROUPS = ("model", "corpus", "method", "dataset")
"""Groups of choices that make up a run's settings."""

EXPERIMENT = "experiment"
"""The group of choices that describe sweeps."""


def choices(group: str) -> dict[str, str]:
    """The choices of a group, each with the comment at the top of its file."""
    found = {}
    for name, path in _shipped(group).items():
        comment = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
        found[name] = " ".join(comment)
    return found


def choice_names(group: str) -> list[str]:
    """The names of the choices of a group, without reading their files."""
    return list(_shipped(group))


def starting_choices() -> dict[str, str]:
    """The choices of a run that names none."""
    defaults = _load_shipped(_conf() / "config.yaml")["defaults"]
    return {str(group): str(name) for group, name in defaults.items()}


def load_choice(group: str, name: str) -> tuple[Path, DictConfig]:
    """The file and the content of a choice: a name in ``conf/<group>``, or a YAML file of the user's.

    Raises:
        InputError: there is no such choice or file, or it does not hold settings.
    """
    shipped = _shipped(group)
    if name in shipped:
        return shipped[name], copy.deepcopy(_load_shipped(shipped[name]))
    path = Path(os.path.expanduser(name))
    # Functions of os.path are also False for a name that no file can have.
    if path.suffix not in {".yaml", ".yml"} or not os.path.exists(path):
        is_model = group == "model" and os.path.isfile(path / "config.json")
        remedy = f"a folder is given as model=local model.path={name}" if is_model else closest(name, shipped)
        raise InputError(f"There is no {group} {name!r}.", remedy=remedy)
    return path, load_yaml(path)


def load_yaml(path: Path) -> DictConfig:
    """The settings in a YAML file.

    Raises:
        InputError: the file cannot be read, or does not hold settings.
    """
    try:
        loaded = OmegaConf.load(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read.", got=error.strerror or error) from None
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError, RecursionError, AssertionError) as error:
        raise InputError(f"{path} does not hold YAML.", got=str(error).partition("\n")[0]) from None
    if not isinstance(loaded, DictConfig):
        raise InputError(f"{path} does not hold settings.", expected="key: value")
    return loaded


@cache
def _load_shipped(path: Path) -> DictConfig:
    """The settings in a file of ``conf/``. Parsing them takes longer than copying them."""
    return load_yaml(path)


@cache
def _shipped(group: str) -> dict[str, Path]:
    """The files of a group in ``conf/``."""
    return {path.stem: path for path in sorted((_conf() / group).glob("*.yaml"))}


def _conf() -> Path:
    return Path(str(resources.files("factsmith.conf")))
