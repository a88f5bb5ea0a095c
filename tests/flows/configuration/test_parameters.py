"""Deployment parameters accept and refuse what arguments do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import preprocess_schema, validate
from pydantic import TypeAdapter

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.choices import GROUPS, choices
from factsmith.flows.configuration.composition import compose
from factsmith.flows.configuration.keys import describe_settings
from factsmith.flows.configuration.parameters import RunSettings, deployment_parameters
from factsmith.flows.edit import edit
from factsmith.flows.evaluate import evaluate
from factsmith.flows.precompute import precompute
from factsmith.flows.run import run
from factsmith.tasks.planning.settings import Settings

settings_of: TypeAdapter[Settings] = TypeAdapter(RunSettings)

LOCAL = ["model=local", "model.path=m", "corpus.path=c.jsonl", "dataset.path=f.json", "method.layers=[1,2]"]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """Of a flow's parameters, as Prefect's server gets it."""
    given: dict[str, Any] = json.loads(json.dumps(parameter_schema(run.fn).model_dump_for_openapi()))
    return given


def refusals(schema: dict[str, Any], form: dict[str, Any]) -> list[str]:
    """What Prefect's server says against a form."""
    return [error.message for error in validate({"settings": form}, preprocess_schema(schema), preprocess=False)]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["method=emmet", "method.batch_size=64", "dataset.batches=null", "method.slack_of_one=null"],
        ["method.batch_size=all", "method.ridge=auto", "corpus.tokens=2048", "corpus.keep_keys=false"],
        ["corpus.dynamic_multiplier=auto", "corpus.auto.steps=[2,4.5]", "corpus.auto.tolerance=1.1"],
        [*LOCAL, "method.value.learning_rate=1e-2", "method.context_seed=3", "dataset.cases=[1,2]"],
        ["model=local", "model.path=2024", *LOCAL[2:]],
    ],
)
def test_a_form_means_what_arguments_mean(schema, arguments):
    form = json.loads(json.dumps(deployment_parameters(arguments)))
    assert refusals(schema, form) == []
    assert settings_of.validate_python(form) == compose(arguments)


def test_settings_pass_as_they_are():
    settings = compose(["method=emmet"])
    assert settings_of.validate_python(settings) is settings


@pytest.mark.parametrize("flow", [precompute, edit, evaluate, run])
def test_every_flow_takes_the_form(schema, flow):
    schema = parameter_schema(flow.fn).model_dump_for_openapi()
    assert schema["properties"]["settings"]["$ref"].endswith("DeploymentParameters")


def test_the_form_offers_every_choice_and_setting_that_an_edit_reads(schema):
    definitions = schema["definitions"]
    form = definitions["DeploymentParameters"]["properties"]
    for group in GROUPS:
        assert form[group]["description"]
        assert form[group]["anyOf"][0]["enum"] == list(choices(group))
    assert "trace" not in definitions["Changes"]["properties"]
    for key, meaning in describe_settings():
        if key.startswith("trace."):
            continue
        fields = definitions["Changes"]["properties"]
        *above, last = key.split(".")
        for name in above:
            fields = definitions[fields[name]["$ref"].rpartition("/")[2]]["properties"]
        assert fields[last]["description"] == meaning
        # A value that the form fills in by itself would win over the choice's.
        assert "default" not in fields[last]
        assert fields[last].get("type") != "boolean"


@pytest.mark.parametrize(
    ("form", "theirs", "ours"),
    [
        ({"method": "memmit"}, "'memmit' is not valid", "did you mean 'memit'"),
        ({"modle": "embedded"}, "'modle' was unexpected", "did you mean 'model'"),
        ({"changes": {"method": {"batchsize": 3}}}, "'batchsize' was unexpected", "did you mean 'method.batch_size'"),
        ({"changes": {"methods": {}}}, "'methods' was unexpected", "did you mean 'method"),
        ({"changes": {"method": {"slack": -1}}}, "-1 is less than the minimum of 0", "greater than or equal to 0"),
        ({"changes": {"corpus": {"tokens": 0}}}, "0 is not valid", "greater than or equal to 1"),
        ({"changes": {"method": {"spread": "odd"}}}, "'odd' is not one of", "'even' or 'square_root'"),
        ({"changes": {"corpus": {"keep_keys": "perhaps"}}}, "'perhaps' is not one of", "boolean"),
        ({"changes": {"corpus": {"dynamic_multiplier": "many"}}}, "'many' is not valid", "valid number"),
    ],
)
def test_a_form_that_cannot_be_used_is_refused_by_the_server_and_by_us(schema, form, theirs, ours):
    assert theirs in " ".join(refusals(schema, form))
    with pytest.raises(InputError) as caught:
        settings_of.validate_python(form)
    assert ours in str(caught.value)
