"""From choices and settings to validated settings.

The settings of a run are merged in this order, later ones winning: the chosen corpus, method and dataset; what the
chosen model sets for every method (``editing``) and for this one (``methods.<name>``); the user's settings. A value may
refer to another setting (``${model.name}``) or to the environment (``${oc.env:NAME}``), as in OmegaConf.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from omegaconf import AnyNode, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.choices import GROUPS, choice_names, load_choice, starting_choices
from factsmith.flows.configuration.keys import (
    check_key,
    check_renamed,
    describe_settings,
    sections,
    setting_types,
    setting_values,
    with_new_names,
)
from factsmith.flows.configuration.unread import UNUSED_BY_EDITS, given_settings, is_read, refuse_unread
from factsmith.flows.configuration.values import check_values, not_given, validated
from factsmith.tasks.planning.settings import Settings

if TYPE_CHECKING:
    from factsmith.tasks.tracking.runs import PastRun

__all__ = [
    "UNUSED_BUT_THE_MODEL",
    "UNUSED_BY_LOCATE",
    "UNUSED_WITHOUT_SCORES",
    "compose",
    "compose_again",
    "compose_cell",
    "compose_parts",
    "parse",
    "past_settings",
]

UNUSED_BY_LOCATE: Mapping[str, Any] = {
    "method": {"layers": [0]},
    "corpus": {"path": None},
    "abilities": {},
    "drift": {},
}
"""Stand-ins for required settings, for runs that neither edit nor read a corpus."""

UNUSED_BUT_THE_MODEL: Mapping[str, Any] = {**UNUSED_BY_LOCATE, "trace": {}, "dataset": {"path": None}}
"""The same for commands that read nothing but the model."""

UNUSED_WITHOUT_SCORES: Mapping[str, Any] = {"trace": {}, "abilities": {}}
"""The same for runs that score nothing."""


def compose(
    arguments: Sequence[str] = (), *, stand_ins: Mapping[str, Any] | None = None, reads: Collection[str] = ()
) -> Settings:
    """The settings of a run.

    Args:
        arguments: ``group=choice`` (a name in ``conf/<group>``, or a YAML file of the user's) and ``key.path=value``.
        stand_ins: values of required settings in the sections that this run does not read.
        reads: settings that it reads in any case, and sections that may be given although it does not read them.

    Raises:
        InputError: an argument that is not understood, an unknown choice or setting, a missing or unusable value, a
            setting that the run would not read.
    """
    return compose_parts(*parse(arguments), stand_ins=stand_ins, reads=reads)


def compose_cell(arguments: Sequence[str]) -> tuple[Settings, list[str]]:
    """The settings of one run of a sweep, and the names of those settings in ``arguments`` that it would not read.

    Raises:
        InputError: as in ``compose``, but for the settings that it would not read.
    """
    settings, given = _composed(*parse(arguments))
    return settings, [name for name in given if not is_read(name, settings)]


def parse(arguments: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """The choices by group, and the settings, nested, that arguments give.

    Raises:
        InputError: an argument that is not understood, or an unknown setting.
    """
    chosen: dict[str, str] = {}
    values: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name:
            raise InputError(f"{argument!r} is not understood.", expected="key=value", remedy="see `factsmith conf`")
        place = chosen if name in GROUPS else values
        if place.setdefault(name, value) != value:
            raise InputError(
                f"{name} is given twice.", got=f"{name}={place[name]} and {argument}", expected="one value"
            )
    given = OmegaConf.create()
    try:
        for name, value in values.items():
            if name in sections():
                OmegaConf.update(given, name, _mapping(name, value))
                continue
            check_key(name, GROUPS)
            OmegaConf.update(given, name, _parsed(name, value))
        content = OmegaConf.to_container(given)
    except _UNUSABLE as error:
        raise _cannot_be_composed(error) from None
    assert isinstance(content, dict)
    return chosen, {str(name): value for name, value in content.items()}


def compose_parts(
    chosen: Mapping[str, str],
    given: Mapping[str, Any],
    *,
    stand_ins: Mapping[str, Any] | None = None,
    reads: Collection[str] = (),
) -> Settings:
    """The settings of a run.

    Args:
        chosen: choices by group.
        given: settings that win over those of the choices, nested.
        stand_ins: values of required settings in the sections that this run does not read.
        reads: settings that it reads in any case, and sections that may be given although it does not read them.

    Raises:
        InputError: an unknown choice or setting, a missing or unusable value, a setting that the run would not read.
    """
    settings, names = _composed(chosen, given, stand_ins=stand_ins)
    unused = stand_ins or UNUSED_BY_EDITS
    given_groups = [group for group in chosen if group in unused]
    known = [name for name in (*given_groups, *names) if not {name, name.partition(".")[0]} & {*reads}]
    refuse_unread(known, settings, unused)
    return settings


def _composed(
    chosen: Mapping[str, str], given: Mapping[str, Any], *, stand_ins: Mapping[str, Any] | None = None
) -> tuple[Settings, list[str]]:
    """The settings, and the names of those that the user gave, in ``given`` or in a choice of the user's."""
    names = {**starting_choices(), **{group: name for group, name in chosen.items() if group in ("model", "method")}}
    _, model = load_choice("model", names["model"])
    names |= {**_defaults(model), **chosen}
    missing = [group for group in GROUPS if group not in names]
    if missing:
        raise InputError(f"Model {names['model']!r} names no {missing[0]}.", remedy=f"add {missing[0]}=CHOICE")

    parts = {group: load_choice(group, names[group])[1] for group in GROUPS if group != "model"}
    for group, part in parts.items():
        check_renamed([f"{group}.{name}" for name in map(str, part)])
    files = [group for group in parts if names[group] not in choice_names(group)]
    own = {group: OmegaConf.to_container(parts[group]) for group in files}
    editing, by_method = _part(model, "editing"), _part(model, "methods")
    try:
        parts["method"] = _merge(parts["method"], editing, _part(by_method, str(parts["method"].get("name"))))
        # Nothing else uses the parts, so that they need not be copied.
        base = OmegaConf.create({"model": model, **parts}, flags={"no_deepcopy_set_nodes": True})
        before = OmegaConf.to_container(base)
        composed = _merge(base, OmegaConf.create(dict(given)))
        for group, stand_in in (stand_ins or {}).items():
            for name, value in stand_in.items():
                if OmegaConf.is_missing(composed[group], name):
                    composed[group][name] = value
        if lacking := OmegaConf.is_missing(composed.corpus, "path"):
            composed.corpus.path = None  # Only the settings as a whole tell whether the corpus is read.
        _check_missing(composed)
        content = OmegaConf.to_container(composed, resolve=True)
    except _UNUSABLE as error:
        raise _cannot_be_composed(error) from None
    check_values(content)
    assert isinstance(before, dict)
    changed = given_settings(given, {str(name): value for name, value in before.items()})
    settings = validated(content)
    if lacking and settings.reads_corpus:
        raise not_given("corpus.path")
    return settings, [*changed, *given_settings(own, {})]


_SCORING = ("abilities", "drift", "runtime", "tracking")
_LOCATIONS = ("model.path", "dataset.path", "dataset.metrics")


def compose_again(content: Mapping[str, Any], arguments: Sequence[str]) -> Settings:
    """The settings of an earlier run, for scoring its edits.

    Args:
        content: the settings of the earlier run, nested.
        arguments: how to score: metrics, ``abilities.*``, ``drift.*``, ``runtime.*``, ``tracking.*``, and where model
            and dataset are now.

    Raises:
        InputError: an argument that would make it another run, or that is not understood.
    """
    chosen, given = parse(arguments)
    keys = [argument.partition("=")[0] for argument in arguments]
    for name in [*chosen, *(key for key in keys if key not in chosen)]:
        if name.partition(".")[0] not in _SCORING and name not in _LOCATIONS:
            raise InputError(
                f"{name} was decided when the edit was made.",
                expected=f"{', '.join(_LOCATIONS)}, abilities.*, drift.*, runtime.* or tracking.*",
                remedy="leave out the run, and give all settings of the edit to make and score",
            )
    earlier = OmegaConf.create(with_new_names(content))
    try:
        merged = OmegaConf.to_container(_merge(earlier, OmegaConf.create(given)), resolve=True)
    except _UNUSABLE as error:
        raise _cannot_be_composed(error) from None
    check_values(merged)
    settings = validated(merged)
    refuse_unread(given_settings(given, content), settings)
    return settings


def past_settings(run: PastRun) -> Settings:
    """The settings of an earlier run.

    Raises:
        InputError: the run has no stored settings, or another version of Factsmith wrote them.
    """
    try:
        return Settings.model_validate(with_new_names(run.content))
    except ValidationError as error:
        raise InputError(
            f"The settings of run {run.id} cannot be used.",
            got=f"{'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}",
            remedy="another version of Factsmith made it: run it again",
        ) from None


_UNUSABLE = (OmegaConfBaseException, YAMLError, ValueError, TypeError, RecursionError)


def _cannot_be_composed(error: Exception) -> InputError:
    return InputError("The settings cannot be composed.", got=str(error).partition("\n")[0])


def _parsed(name: str, value: str) -> Any:
    """The YAML value of an argument. A text setting keeps what YAML reads as a number (``007``, ``1_0``, ``on``)."""
    parsed = OmegaConf.from_dotlist([f"value={value}"])._get_node("value")
    plain = parsed._value() if isinstance(parsed, AnyNode) else parsed
    annotation = setting_types()[name]
    takes_text = {str, Path} & {annotation, *get_args(annotation)}
    return value if takes_text and isinstance(plain, int | float) else plain


def _mapping(name: str, value: str) -> DictConfig:
    """The settings in ``value``, such as ``{steps: 25}``, which are those of the section ``name``."""
    parsed = OmegaConf.from_dotlist([f"value={value}"])._get_node("value")
    if not isinstance(parsed, DictConfig):
        example = next(key for key, _ in describe_settings() if key.startswith(f"{name}."))
        raise InputError(
            f"{name} is a group of settings.",
            got=f"{name}={value}",
            expected=f"one of them, such as {example}=..., or several: {name}={{key: value}}",
        )
    content = OmegaConf.to_container(parsed)
    assert isinstance(content, dict)
    for key, _ in setting_values({str(one): inner for one, inner in content.items()}, f"{name}."):
        check_key(key, GROUPS)
    return parsed


def _defaults(model: DictConfig) -> dict[str, str]:
    """The other choices that a model names."""
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
    """Take the settings under ``name`` out of ``config``. They may be missing."""
    try:
        found = config.pop(name, None)
    except OmegaConfBaseException as error:
        raise InputError(f"{name!r} cannot be read.", got=str(error).partition("\n")[0]) from None
    if found is not None and not isinstance(found, DictConfig):
        raise InputError(f"{name!r} does not hold settings.", got=repr(found), expected="key: value")
    return OmegaConf.create() if found is None or found._is_none() else found


def _merge(*configs: DictConfig) -> DictConfig:
    """The settings in ``configs``, later ones winning. The first of them must not be used any more."""
    merged = OmegaConf.unsafe_merge(*configs)
    if not isinstance(merged, DictConfig):
        raise TypeError("the settings of a choice are not key: value")
    return merged


def _check_missing(composed: DictConfig) -> None:
    for name in sorted(OmegaConf.missing_keys(composed)):
        raise not_given(name)
