"""The form in which a deployment takes a run's settings: what Prefect's UI shows, and what its server checks.

A form has the parts that words have: a choice of each group, and the settings that are to differ from those of the
choices. Its fields carry the bounds and meanings of ``tasks/settings.py``, so that what a person types is refused
before a run starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model

from factsmith.artifacts.errors import InputError, closest
from factsmith.flows.configuration.composition import GROUPS, choices, compose_parts, parse, starting_choices
from factsmith.tasks.planning.settings import Settings

__all__ = ["Form", "RunSettings", "fill"]

_MEANINGS = {
    "model": "the model to edit",
    "corpus": "the text whose keys an edit must preserve; the model's own if left out",
    "method": "how facts are written",
    "dataset": "the facts to write; the model's own if left out",
}

# Unlike a default, a factory does not show in a schema: a field that is left out has the value of its choice.
_LEFT_OUT: dict[str, Any] = {"default_factory": lambda: None}


def _choice(group: str) -> tuple[Any, Any]:
    """A field that takes a name in ``conf/<group>``, or a YAML file of one's own."""
    named: Any = Literal[*choices(group)]
    annotation = named | Annotated[str, Field(title="YAML file", pattern=r"\.ya?ml$")]
    default = starting_choices().get(group)
    return annotation, Field(description=_MEANINGS[group], **({"default": default} if default else _LEFT_OUT))


def _changes(model: type[BaseModel], name: str) -> type[BaseModel]:
    """The fields of ``model`` and of the models in it, every one of which may be left out."""
    fields: dict[str, Any] = {}
    for key, field in model.model_fields.items():
        annotation: Any = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = _changes(annotation, f"{name}{key.title()}")
        elif annotation is bool:
            # Prefect's UI shows a boolean as a switch, which would say "off" where nothing was said.
            annotation = Annotated[bool, WithJsonSchema({"enum": [True, False]})]
        meaning = Field(description=field.description or annotation.__doc__, **_LEFT_OUT)
        fields[key] = (Annotated[annotation, meaning, *field.metadata], ...)
    return create_model(name, __config__=model.model_config, __doc__=model.__doc__, **fields)


_FIELDS: dict[str, Any] = {
    **{group: _choice(group) for group in GROUPS},
    "changes": (
        _changes(Settings, "Changes"),
        Field(description="settings that are to differ from the choices; leave out the rest", **_LEFT_OUT),
    ),
}

Form = create_model(
    "Form",
    __config__=ConfigDict(frozen=True, extra="forbid"),
    __doc__="A run as a person fills it in.",
    **_FIELDS,
)


def fill(words: Sequence[str]) -> dict[str, Any]:
    """The form that says what words say, as JSON.

    Raises:
        InputError: as `compose` does.
    """
    picked, changes = parse(words)
    compose_parts(picked, changes)
    form = Form.model_validate({**picked, "changes": changes} if changes else picked)
    filled: dict[str, Any] = form.model_dump(mode="json", exclude_unset=True)
    return filled


def _resolve(given: Any) -> Any:
    """Settings of a form; anything but a form is left to pydantic."""
    if not isinstance(given, Mapping):
        return given
    for name in given:
        if name not in Form.model_fields:
            raise InputError(f"The form has no field {name!r}.", remedy=closest(name, Form.model_fields))
    picked = {group: str(given[group]) for group in GROUPS if given.get(group) is not None}
    return compose_parts(picked, given.get("changes") or {})


RunSettings = Annotated[Settings, BeforeValidator(_resolve, json_schema_input_type=Form)]
"""Settings as flows take them: composed by the command line, or a form that Prefect hands over."""
