"""The parameters of a deployment: what Prefect's UI shows as a form, and what its server checks.

Parameters have the same parts as arguments: a choice of each group, and the settings that differ from those of the
choices. The fields carry the bounds and meanings of the settings, so Prefect refuses a wrong value before a run starts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model

from factsmith.artifacts.errors import InputError, closest
from factsmith.flows.configuration.choices import GROUPS, choice_names, starting_choices
from factsmith.flows.configuration.composition import compose_parts, parse
from factsmith.flows.configuration.unread import UNUSED_BY_EDITS
from factsmith.tasks.planning.settings import Settings

__all__ = ["DeploymentParameters", "RunSettings", "deployment_parameters"]

_MEANINGS = {
    "model": "the model to edit",
    "corpus": "the text whose keys an edit must preserve; by default the model's own choice",
    "method": "how facts are written",
    "dataset": "the facts to write; by default the model's own choice",
}

# Unlike a default, a default factory does not appear in the schema. A field that is left out keeps its choice's value.
_OPTIONAL: dict[str, Any] = {"default_factory": lambda: None}


def _choice(group: str) -> tuple[Any, Any]:
    """A field that takes a name in ``conf/<group>``, or a YAML file of the user's."""
    named: Any = Literal[*choice_names(group)]
    annotation = named | Annotated[str, Field(title="YAML file", pattern=r"\.ya?ml$")]
    default = starting_choices().get(group)
    return annotation, Field(description=_MEANINGS[group], **({"default": default} if default else _OPTIONAL))


def _changes(model: type[BaseModel], name: str, without: Collection[str] = ()) -> type[BaseModel]:
    """The fields of ``model`` and of the models in it, all optional, ``without`` some of the outermost."""
    fields: dict[str, Any] = {}
    for key, field in model.model_fields.items():
        if key in without:
            continue
        annotation: Any = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = _changes(annotation, f"{name}{key.title()}")
        elif annotation in (bool, bool | None):
            # Prefect's UI shows a boolean as a switch, which would read "off" if nothing was chosen.
            values = [True, False] if annotation is bool else [True, False, None]
            annotation = Annotated[annotation, WithJsonSchema({"enum": values})]
        meaning = Field(description=field.description or annotation.__doc__, **_OPTIONAL)
        fields[key] = (Annotated[annotation, meaning, *field.metadata], ...)
    return create_model(name, __config__=model.model_config, __doc__=model.__doc__, **fields)


_FIELDS: dict[str, Any] = {
    **{group: _choice(group) for group in GROUPS},
    "changes": (
        _changes(Settings, "Changes", without=UNUSED_BY_EDITS),
        Field(description="settings that differ from the choices; leave out the rest", **_OPTIONAL),
    ),
}

DeploymentParameters = create_model(
    "DeploymentParameters",
    __config__=ConfigDict(frozen=True, extra="forbid"),
    __doc__="The choices and settings of a run.",
    **_FIELDS,
)


def deployment_parameters(arguments: Sequence[str]) -> dict[str, Any]:
    """The deployment parameters with the same meaning as ``arguments``, as JSON.

    Raises:
        InputError: as in ``compose``.
    """
    chosen, changes = parse(arguments)
    compose_parts(chosen, changes)
    parameters = DeploymentParameters.model_validate({**chosen, "changes": changes} if changes else chosen)
    found: dict[str, Any] = parameters.model_dump(mode="json", exclude_unset=True)
    return found


def _resolve(given: Any) -> Any:
    """The settings of deployment parameters. Anything else is left to pydantic."""
    if not isinstance(given, Mapping):
        return given
    for name in given:
        if name not in DeploymentParameters.model_fields:
            raise InputError(
                f"There is no deployment parameter {name!r}.", remedy=closest(name, DeploymentParameters.model_fields)
            )
    chosen = {group: str(given[group]) for group in GROUPS if given.get(group) is not None}
    return compose_parts(chosen, given.get("changes") or {})


RunSettings = Annotated[Settings, BeforeValidator(_resolve, json_schema_input_type=DeploymentParameters)]
"""Settings as flows take them: composed by the command line, or as deployment parameters from Prefect."""
