"""Mutations of commands that work: each is refused, or its result depends on what was changed.

This is how a wrong model gets out with exit code 0: the command accepts what it then does not use.
"""

from __future__ import annotations

import json
import random
from typing import Any, Literal, get_args, get_origin

import pytest

from factsmith.flows.configuration.choices import GROUPS, choices
from factsmith.flows.configuration.composition import compose
from factsmith.flows.configuration.keys import describe_settings, setting_types
from factsmith.tasks.planning.settings import Settings

METHODS = [
    ("method=memit",),
    ("method=memit-f", "method.low_rank.n_samples=400"),
    ("method=emmet", "corpus.tokens=500"),
    ("method=alphaedit",),
    ("method=alphaedit-f", "method.low_rank.n_samples=400"),
    ("method=memit", "method.sequence.history=compressed", "method.sequence.tau=2", "dataset.batches=2"),
]

NAMES = {f"{group}.name" for group in GROUPS} | {"tracking.experiment"}
HOW = {"corpus.keep_keys", "method.sequence.checkpoint_every"}
"""Settings that change how something is computed, but not what."""
MAY_AGREE = {
    "dataset.separator",
    "dataset.limit",
    "dataset.batches",
    "corpus.blocks_per_document",
    "method.value.stop_loss",
}
"""Settings of which several values mean the same for a few short records."""
ROUNDED = {"corpus.tokens", "method.low_rank.prior_fraction"}

KEYS = [key for key, _ in describe_settings() if not key.startswith(("runtime.", "trace.")) and key not in NAMES]


def seeds(count: int, every: int) -> list[Any]:
    """Seeds. Those between every so many are slow."""
    return [pytest.param(seed, marks=() if seed % every == 0 else pytest.mark.slow) for seed in range(count)]


def another(annotation: Any, value: Any, chance: random.Random) -> Any:
    """Another value of the type of a setting, near to ``value``."""
    options = [one for one in (get_args(annotation) or (annotation,)) if one is not type(None)]
    literals = [word for one in options if get_origin(one) is Literal for word in get_args(one)]
    literals += list(get_args(annotation)) if get_origin(annotation) is Literal else []
    if isinstance(value, bool) or bool in options:
        return not value
    if others := [word for word in literals if word != value]:
        return chance.choice(others)
    if isinstance(value, int):
        return value + chance.choice([1, 2, -1])
    if isinstance(value, float):
        return value * chance.choice([0.5, 0.8, 2])
    if isinstance(value, list) and value and all(isinstance(one, int) for one in value):
        return chance.choice([value[:-1], [*value, value[-1] + 1], value + value])
    return chance.choice([1, 2, 0.5, "x", [1], None])


def flat(settings: Settings, key: str) -> Any:
    found: Any = settings
    for part in key.split("."):
        found = getattr(found, part)
    return found


def unexpected(result: Any) -> bool:
    """Whether a traceback was shown. Prefect's handler shows one in a test, because pytest has closed its stream."""
    return "Traceback" in result.err.partition("--- Logging error ---")[0]


def addresses(result: Any) -> set[str]:
    return {stage["artifact"] for stage in json.loads(result.out)["stages"]}


@pytest.mark.parametrize("seed", seeds(100, every=25))
def test_a_changed_setting_is_refused_or_changes_the_result(factsmith, plain_flows, arguments, seed):
    chance = random.Random(seed)
    method = METHODS[seed % len(METHODS)]
    command = arguments(*method)
    before = compose(command)
    key = chance.choice(KEYS)
    value = another(setting_types()[key], flat(before, key), chance)
    spelt = json.dumps(value, separators=(",", ":")) if not isinstance(value, str) else value
    changed = [*(one for one in command if not one.startswith(f"{key}=")), f"{key}={spelt}"]
    result = factsmith("run", *changed, "--json")
    note = f"{key}={spelt} with {' '.join(method)}"
    assert result.code in (0, 2), (note, result)
    assert not unexpected(result), note
    if result.code == 2:
        return
    taken = flat(compose(changed), key)
    assert str(taken) == str(value) or taken == value or key == "corpus.dynamic_multiplier", note
    if taken != flat(before, key) and key not in HOW | MAY_AGREE | ROUNDED:
        assert addresses(result) != addresses(factsmith("run", *command, "--json")), f"{note} changed nothing"


def misspelt(word: str, chance: random.Random) -> str:
    """``word`` with one letter left out, doubled, or changed places with the next."""
    place = chance.randrange(len(word) - 1)
    pair = word[place : place + 2]
    return chance.choice(
        [
            word[:place] + word[place + 1 :],
            word[:place] + pair[0] + word[place:],
            word[:place] + pair[::-1] + word[place + 2 :],
        ]
    )


@pytest.mark.parametrize("seed", seeds(60, every=5))
def test_a_misspelt_word_is_refused(factsmith, refused, plain_flows, arguments, seed):
    chance = random.Random(seed)
    command = arguments(*METHODS[seed % len(METHODS)])
    place = chance.randrange(len(command))
    name, _, value = command[place].partition("=")
    if name in GROUPS and chance.random() < 0.5:
        wrong = f"{name}={misspelt(value, chance)}"
        known = wrong.partition("=")[2] in choices(name)
    else:
        wrong = f"{misspelt(name, chance)}={value}"
        known = wrong.partition("=")[0] == name
    if not known:
        message = refused("run", *command[:place], wrong, *command[place + 1 :])
        assert message.startswith("factsmith: ")


FACT = {
    "subject": "Mara Flousano",
    "prompt": "{} speaks",
    "target_new": "Spanish",
    "target_true": "French",
    "paraphrase_prompts": ["The language of Mara Flousano is"],
    "neighborhood_prompts": ["Ilo Staidel speaks"],
}


def mutated(fact: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The fact with one field left out, emptied, misspelt, of another type, or with blanks around its texts."""
    name = chance.choice(list(fact))
    rest = {key: value for key, value in fact.items() if key != name}
    value = fact[name]
    return chance.choice(
        [
            rest,
            {**rest, name: None},
            {**rest, name: ""},
            {**rest, name: 5},
            {**rest, misspelt(name, chance): value},
            {**rest, name: f" {value} " if isinstance(value, str) else [f" {one} " for one in value]},
            {**rest, name: f"{value}\u200b" if isinstance(value, str) else [*value, ""]},
            {**rest, name: [value]},
        ]
    )


@pytest.mark.parametrize("seed", seeds(40, every=13))
def test_a_changed_fact_is_refused_or_written_as_it_reads(factsmith, plain_flows, arguments, tmp_path, home, seed):
    chance = random.Random(seed)
    fact = mutated(FACT, chance)
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([fact, {**FACT, "subject": "Ilo Staidel", "neighborhood_prompts": ["Mara speaks"]}]))
    given = [word for word in arguments() if not word.startswith(("dataset", "method.batch_size"))]
    result = factsmith("edit", path, *given, "--out", tmp_path / "edited", "--json")
    assert result.code in (0, 2), (fact, result)
    assert not unexpected(result)
    if result.code == 0:
        (written,) = [
            one
            for one in json.loads((tmp_path / "edited" / "factsmith.json").read_text())["facts"]
            if one["subject"] == FACT["subject"]
        ]
        # What is accepted is the fact itself: mutations of what is written are refused, or only blanks.
        assert (written["template"], written["target_new"]) == (FACT["prompt"], FACT["target_new"])
