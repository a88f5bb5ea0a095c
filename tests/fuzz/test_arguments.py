"""Arguments and YAML files of any content give settings that hold what was given, or are refused."""

from __future__ import annotations

import contextlib
import json
from typing import Literal, get_origin

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.choices import GROUPS, choices
from factsmith.flows.configuration.composition import compose
from factsmith.flows.configuration.keys import describe_settings, setting_types
from factsmith.tasks.planning.settings import Settings
from tests.fuzz.conftest import examples

KEYS = [key for key, _ in describe_settings()]

VALUES = [
    "", " ", "null", "~", "true", "off", "nan", ".nan", ".inf", "-inf", "1e999", "9" * 30, "-1", "0x10", "0o17",
    "007", "1_0", "1:30", "2020-01-01", "[]", "[1", "{}", "{a: 1}", "[true]", "[[1]]", "[1,,2]", "- 1", "&a [*a]",
    "&a 1", "*a", "!!python/object:os.system x", "!!python/name:os.system", "!!binary aGk=", "!!set {a}", "<<: 1",
    "? a", "%x", "@x", "`", "${model.name}", "${model}", "${model.path}", "${oc.env:HOME}", "${oc.env:NOWHERE}",
    "${nowhere:1}", "${oc.create:[1]}", "${oc.decode:'[1'}", "${", "${}", "${..}", "\\${x}", "'", '"', "'a'",
    "\u202e", "\x00", "\ud800", "😀", "~nobody/x", "a" * 5000, "???", "/", ".", "..", "a: b", "#", "x # y", "\t", "\n",
    "1\n2", "auto", "all", "even", "3", "[0,1]",
]  # fmt: skip

text = st.one_of(st.text(max_size=10), st.sampled_from(VALUES))


def sound(settings: Settings) -> None:
    """The settings survive a round trip through JSON, so they can be logged."""
    spelt = settings.model_dump_json()
    spelt.encode()
    assert Settings.model_validate(json.loads(spelt)) == settings
    assert all(-(2**63) <= number < 2**63 for number in settings.method.layers)


def composed_or_refused(arguments: list[str]) -> None:
    with contextlib.suppress(InputError):
        sound(compose(arguments))


@examples(40)
@given(st.lists(st.one_of(
    st.builds("{}={}".format, st.sampled_from(KEYS), text),
    st.builds("{}={}".format, st.sampled_from(GROUPS), st.one_of(text, st.sampled_from([
        *choices("model"), *choices("method"), "../dataset/embedded", "../config", "x.yaml", "/dev/null.yaml"]))),
    st.builds("{}={}".format, text, text),
    text,
), max_size=4))  # fmt: skip
def test_any_arguments_are_composed_or_refused(arguments):
    composed_or_refused(arguments)


TYPES = setting_types()


def kind_of(key: str) -> str:
    """The type of a setting. Those that take one of several words are one kind, whichever words these are."""
    return "words" if get_origin(TYPES[key]) is Literal else repr(TYPES[key])


FIRST_OF_ITS_TYPE = list({kind_of(key): key for key in reversed(KEYS)}.values())


@pytest.mark.parametrize(
    "key", [key if key in FIRST_OF_ITS_TYPE else pytest.param(key, marks=pytest.mark.slow) for key in KEYS]
)
def test_every_setting_with_every_odd_value(key):
    for value in VALUES:
        composed_or_refused([f"{key}={value}"])


@examples(25)
@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8))
@example("007")
@example("1_0")
@example("on")
@example("1e3")
@example("0x1F")
def test_a_name_is_taken_as_it_is_written(name):
    if name.lower() not in {"null", "nan"}:
        assert compose([f"model.path={name}"]).model.path == name
        assert str(compose(["dataset=facts", f"dataset.path={name}"]).dataset.path) == name


GOOD = {
    "name": "mine", "path": "embedded", "defaults": {"corpus": "embedded", "dataset": "embedded"},
    "editing": {"layers": [1], "preservation_weight": 5}, "methods": {"memit": {"layers": [2]}},
}  # fmt: skip

scalar = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text)
tree = st.recursive(
    scalar,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from([*GOOD, "layers", "memit", *GROUPS]), text),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=10,
)  # fmt: skip


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return tmp_path_factory.mktemp("own") / "own.yaml"


@examples(30)
@given(tree, st.sampled_from(sorted(GOOD)))
def test_any_part_of_a_yaml_is_composed_or_refused(own, part, name):
    for content in (part, {**GOOD, name: part}):
        own.write_bytes(json.dumps(content).encode())
        for group in ("model", "method", "dataset"):
            composed_or_refused([f"{group}={own}"])


@examples(30)
@given(st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).map(str.encode),
    st.lists(text, max_size=4).map(lambda lines: "\n".join(f"name: {line}" for line in lines).encode(errors="replace")),
))  # fmt: skip
@example(b"&a [*a]")
@example(b"name: &a [*a]")
@example(b"a: &a {b: *a}")
@example(b"[" * 5000)
@example(b"a: " + b"{b: " * 3000)
@example(b"!!python/object/apply:os.system ['true']")
@example(b"defaults: {corpus: ${oc.env:HOME}}")
@example(b"defaults: ${x}")
@example(b'"0"')
@example(b"methods: 3")
@example(b"1: 2")
@example(b"? [1]\n: 2")
def test_any_bytes_are_a_yaml_or_refused(own, content):
    own.write_bytes(content)
    for group in ("model", "method"):
        composed_or_refused([f"{group}={own}"])


def test_what_is_no_yaml_file_is_refused(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    for name in (str(tmp_path / "folder.yaml"), "a" * 300 + ".yaml", "a\0.yaml", "~nobody/x.yaml"):
        with pytest.raises(InputError):
            compose([f"model={name}"])


def test_a_setting_may_refer_to_another_and_to_the_environment(monkeypatch):
    monkeypatch.setenv("MODELS", "/models")
    settings = compose(["model.path=${oc.env:MODELS}/${model.name}"])
    assert settings.model.path == "/models/embedded"
