"""From words such as ``method=emmet method.batch_size=64`` to validated settings.

``conf/`` holds one YAML a choice. A run's settings are, later ones winning: the chosen corpus, method and dataset, what
the chosen model wants of every method (``editing``) and of this one (``methods.<name>``), and the words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from factsmith.artifacts.errors import InputError, closest
from factsmith.tasks.settings import Settings

__all__ = ["GROUPS", "UNUSED_BY_LOCATE", "choices", "compose", "describe_settings"]

GROUPS = ("model", "corpus", "method", "dataset")


def conf_folder() -> Path:
    return Path(str(resources.files("factsmith.conf")))


def choices(group: str) -> dict[str, str]:
    """The choices of a group, each with the comment that opens its file."""
    found = {}
    for path in sorted((conf_folder() / group).glob("*.yaml")):
        opening = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
        found[path.stem] = " ".join(opening)
    return found


UNUSED_BY_LOCATE: Mapping[str, Any] = {"method": {"layers": [0]}, "corpus": {"path": None}}
"""What stands in for values that must be given to edit, in runs that neither edit nor read a corpus."""


def compose(words: Sequence[str] = (), *, stand_ins: Mapping[str, Any] | None = None) -> Settings:
    """Settings of a run.

    Args:
        words: ``group=choice`` (a name in ``conf/<group>``, or a YAML file of your own) and ``key.path=value``.
        stand_ins: for values that must be given, where this run makes no use of them.

    Raises:
        InputError: a word that is not understood, an unknown choice or key, a missing or unusable value.
    """
    picked: dict[str, str] = {}
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise InputError(f"{word!r} is not understood.", expected="key=value", remedy="see `factsmith conf`")
        (picked if name in GROUPS else values)[name] = value
    for name in values:
        _check_key(name)

    start = _load(conf_folder() / "config.yaml")["defaults"]
    names = {**start, **{group: pick for group, pick in picked.items() if group in ("model", "method")}}
    model = _load_choice("model", names["model"])
    names |= {**model.pop("defaults", {}), **picked}
    missing = [group for group in GROUPS if group not in names]
    if missing:
        raise InputError(f"Model {names['model']!r} names no {missing[0]}.", remedy=f"add {missing[0]}=CHOICE")

    editing = model.pop("editing", {})
    by_method = model.pop("methods", {})
    parts = {group: _load_choice(group, names[group]) for group in GROUPS if group != "model"}
    parts["method"] = _merge(parts["method"], editing, by_method.get(str(parts["method"].get("name")), {}))
    try:
        given = OmegaConf.from_dotlist([f"{name}={value}" for name, value in values.items()])
        composed = _merge(OmegaConf.create({"model": model, **parts}), given)
        for group, stood_in in (stand_ins or {}).items():
            for name, value in stood_in.items():
                if OmegaConf.is_missing(composed[group], name):
                    composed[group][name] = value
        _check_missing(composed)
        content = OmegaConf.to_container(composed, resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        raise InputError("The settings cannot be put together.", got=str(error).splitlines()[0]) from None
    return _validated(content)


def describe_settings(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key with its meaning."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from describe_settings(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field.description or ""


def _check_key(name: str) -> None:
    known = {key for key, _ in describe_settings()}
    if name not in known:
        parent, _, last = name.rpartition(".")
        namesakes = sorted(key for key in known if key.rpartition(".")[2] == last)
        siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == parent}
        if namesakes:
            remedy = f"did you mean {namesakes[0]!r}?"
        elif siblings:
            remedy = closest(last, siblings)
        else:
            remedy = closest(name, {*known, *GROUPS})
        raise InputError(f"There is no setting {name!r}.", remedy=remedy)


def _merge(*configs: DictConfig) -> DictConfig:
    merged = OmegaConf.merge(*configs)
    assert isinstance(merged, DictConfig)
    return merged


def _load_choice(group: str, name: str) -> DictConfig:
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else conf_folder() / group / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"There is no {group} {name!r}.", remedy=closest(name, choices(group)))
    return _load(path)


def _load(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read.", got=str(error).splitlines()[0]) from None
    if not isinstance(loaded, DictConfig):
        raise InputError(f"{path} does not hold settings.", expected="key: value")
    return loaded


def _check_missing(composed: DictConfig) -> None:
    for name in sorted(OmegaConf.missing_keys(composed)):
        raise InputError(f"{name} must be given.", remedy=f"add {name}=...")


def _validated(content: Any) -> Settings:
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        # A union reports each of its types; the setting is what comes before them.
        where = ".".join(str(part) for part in first["loc"])
        known = [key for key, _ in describe_settings() if where == key or where.startswith(f"{key}.")]
        name = known[0] if known else where
        remedy = closest(name, [key for key, _ in describe_settings()]) if not known else None
        raise InputError(
            f"{name} cannot be used." if known else f"There is no setting {name!r}.",
            got=repr(first["input"]) if not isinstance(first["input"], Mapping) else None,
            expected=first["msg"] if known else None,
            remedy=remedy,
        ) from None
