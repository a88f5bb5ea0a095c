"""From words such as ``method=emmet method.batch_size=64`` to validated settings.

``conf/`` holds one YAML a choice. A run's settings are, later ones winning: the chosen corpus, method and dataset, what
the chosen model wants of every method (``editing``) and of this one (``methods.<name>``), and the words. A value may
refer to another setting (``${model.name}``) or to the environment (``${oc.env:NAME}``), as OmegaConf has it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from omegaconf import AnyNode, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from factsmith.artifacts.errors import InputError, closest
from factsmith.flows.configuration.keys import check_key, describe_settings, setting_types
from factsmith.tasks.planning.settings import Settings

__all__ = [
    "GROUPS",
    "UNUSED_BY_LOCATE",
    "choices",
    "compose",
    "compose_again",
    "compose_parts",
    "parse",
    "starting_choices",
]

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
    return compose_parts(*parse(words), stand_ins=stand_ins)


def parse(words: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """The choices that words name by group, and the settings they give, nested.

    Raises:
        InputError: a word that is not understood, an unknown key.
    """
    picked: dict[str, str] = {}
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise InputError(f"{word!r} is not understood.", expected="key=value", remedy="see `factsmith conf`")
        (picked if name in GROUPS else values)[name] = value
    for name in values:
        check_key(name, GROUPS)
    given = OmegaConf.create()
    try:
        for name, value in values.items():
            OmegaConf.update(given, name, _parsed(name, value))
        content = OmegaConf.to_container(given)
    except _UNUSABLE as error:
        raise _cannot_be_put_together(error) from None
    assert isinstance(content, dict)
    return picked, {str(name): value for name, value in content.items()}


def starting_choices() -> dict[str, str]:
    """The choices of a run that names none."""
    return {str(group): str(name) for group, name in load_yaml(conf_folder() / "config.yaml")["defaults"].items()}


def compose_parts(
    picked: Mapping[str, str], given: Mapping[str, Any], *, stand_ins: Mapping[str, Any] | None = None
) -> Settings:
    """Settings of a run.

    Args:
        picked: choices by group.
        given: settings that win over those of the choices, nested.
        stand_ins: for values that must be given, where this run makes no use of them.

    Raises:
        InputError: an unknown choice or key, a missing or unusable value.
    """
    names = {**starting_choices(), **{group: pick for group, pick in picked.items() if group in ("model", "method")}}
    model = _load_choice("model", names["model"])
    names |= {**_defaults(model), **picked}
    missing = [group for group in GROUPS if group not in names]
    if missing:
        raise InputError(f"Model {names['model']!r} names no {missing[0]}.", remedy=f"add {missing[0]}=CHOICE")

    editing, by_method = _part(model, "editing"), _part(model, "methods")
    parts = {group: _load_choice(group, names[group]) for group in GROUPS if group != "model"}
    try:
        parts["method"] = _merge(parts["method"], editing, _part(by_method, str(parts["method"].get("name"))))
        composed = _merge(OmegaConf.create({"model": model, **parts}), OmegaConf.create(dict(given)))
        for group, stood_in in (stand_ins or {}).items():
            for name, value in stood_in.items():
                if OmegaConf.is_missing(composed[group], name):
                    composed[group][name] = value
        _check_missing(composed)
        content = OmegaConf.to_container(composed, resolve=True)
    except _UNUSABLE as error:
        raise _cannot_be_put_together(error) from None
    _check_values(content)
    return _validated(content)


_OF_SCORING = ("runtime.", "tracking.")
_PLACES = ("model.path", "dataset.path", "dataset.metrics")


def compose_again(content: Mapping[str, Any], words: Sequence[str]) -> Settings:
    """Settings of an earlier run, for scoring what it wrote.

    Args:
        content: its settings, nested.
        words: how to score: metrics, ``runtime.*``, ``tracking.*``, and where model and dataset lie now.

    Raises:
        InputError: a word that would make it another run, or is not understood.
    """
    picked, given = parse(words)
    keys = [*picked, *(word.partition("=")[0] for word in words if word.partition("=")[0] not in picked)]
    for name in keys:
        if not name.startswith(_OF_SCORING) and name not in _PLACES:
            raise InputError(
                f"{name} was settled when the edit was made.",
                expected=f"{', '.join(_PLACES)}, runtime.* or tracking.*",
                remedy="leave the run out, and say in words what is to be edited and scored",
            )
    try:
        merged = OmegaConf.to_container(_merge(OmegaConf.create(dict(content)), OmegaConf.create(given)), resolve=True)
    except _UNUSABLE as error:
        raise _cannot_be_put_together(error) from None
    _check_values(merged)
    return _validated(merged)


_UNUSABLE = (OmegaConfBaseException, YAMLError, ValueError, TypeError, RecursionError)


def _cannot_be_put_together(error: Exception) -> InputError:
    return InputError("The settings cannot be put together.", got=str(error).partition("\n")[0])


def _parsed(name: str, value: str) -> Any:
    """The YAML value of a word. A text that YAML would take for a number (``007``, ``1_0``, ``on``) stays a text."""
    parsed = OmegaConf.from_dotlist([f"value={value}"])._get_node("value")
    plain = parsed._value() if isinstance(parsed, AnyNode) else parsed
    annotation = setting_types()[name]
    takes_text = {str, Path} & {annotation, *get_args(annotation)}
    return value if takes_text and isinstance(plain, int | float) else plain


def _defaults(model: DictConfig) -> dict[str, str]:
    """The other choices that go with a model."""
    found: dict[str, str] = {}
    defaults = OmegaConf.to_container(_part(model, "defaults"))
    assert isinstance(defaults, dict)
    for group, name in defaults.items():
        if not isinstance(group, str) or group not in GROUPS[1:] or not isinstance(name, str):
            raise InputError(
                "The model's defaults cannot be used.",
                got=f"{group!r}: {name!r}",
                expected=f"the name of a choice for each of {', '.join(GROUPS[1:])}",
            )
        found[group] = name
    return found


def _part(config: DictConfig, name: str) -> DictConfig:
    """Take the settings under ``name`` out of ``config``; none if there are none."""
    try:
        found = config.pop(name, None)
    except OmegaConfBaseException as error:
        raise InputError(f"{name!r} cannot be read.", got=str(error).partition("\n")[0]) from None
    if found is not None and not isinstance(found, DictConfig):
        raise InputError(f"{name!r} does not hold settings.", got=repr(found), expected="key: value")
    return OmegaConf.create() if found is None or found._is_none() else found


def _check_values(content: Any, name: str = "") -> None:
    """Refuse values that a setting's type alone would let through and nothing downstream could use."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            _check_values(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list):
        for value in content:
            _check_values(value, name)
    elif isinstance(content, bool) and setting_types().get(name) is not bool:
        raise InputError(f"{name} cannot be used.", got=repr(content), expected="no truth value")
    elif isinstance(content, int) and not -(2**63) <= content < 2**63:
        raise InputError(f"{name} cannot be used.", got=repr(content), expected="a number of 64 bits")
    elif isinstance(content, str) and ("\0" in content or not _is_unicode(content)):
        raise InputError(f"{name} cannot be used.", got=ascii(content), expected="Unicode text without NUL")
    elif isinstance(content, str) and content.startswith("~") and os.path.expanduser(content) == content:
        raise InputError(f"{name} cannot be used.", got=repr(content), expected="the home of a user there is")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _merge(*configs: DictConfig) -> DictConfig:
    merged = OmegaConf.merge(*configs)
    if not isinstance(merged, DictConfig):
        raise TypeError("the settings of a choice are not key: value")
    return merged


def _load_choice(group: str, name: str) -> DictConfig:
    if name in choices(group):
        return load_yaml(conf_folder() / group / f"{name}.yaml")
    path = Path(os.path.expanduser(name))
    if path.suffix not in {".yaml", ".yml"} or not os.path.exists(path):  # False for a name no file can have, too
        raise InputError(f"There is no {group} {name!r}.", remedy=closest(name, choices(group)))
    return load_yaml(path)


def load_yaml(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read.", got=error.strerror or error) from None
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError, RecursionError, AssertionError) as error:
        raise InputError(f"{path} does not hold YAML.", got=str(error).partition("\n")[0]) from None
    if not isinstance(loaded, DictConfig):
        raise InputError(f"{path} does not hold settings.", expected="key: value")
    return loaded


def _check_missing(composed: DictConfig) -> None:
    for name in sorted(OmegaConf.missing_keys(composed)):
        raise _not_given(name)


def _not_given(name: str) -> InputError:
    return InputError(f"{name} must be given.", remedy=f"add {name}=...")


_ABOUT_A_FIELD = ("missing", "extra_forbidden")
"""Faults of what a setting holds, which make no sense without the field's name."""


def _validated(content: Any) -> Settings:
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        # A union reports each of its types; the setting is what comes before them.
        where = ".".join(str(part) for part in first["loc"])
        known = [key for key, _ in describe_settings() if where == key or where.startswith(f"{key}.")]
        name = known[0] if known else where
        if known and name == where and first["type"] == "missing":
            raise _not_given(name) from None
        remedy = closest(name, [key for key, _ in describe_settings()]) if not known else None
        expected = f"{first['loc'][-1]}: {first['msg']}" if first["type"] in _ABOUT_A_FIELD else first["msg"]
        raise InputError(
            f"{name} cannot be used." if known else f"There is no setting {name!r}.",
            got=repr(first["input"]) if not isinstance(first["input"], Mapping) else None,
            expected=expected if known else None,
            remedy=remedy,
        ) from None
