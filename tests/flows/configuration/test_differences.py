"""What tells a run from others with the same choices."""

from __future__ import annotations

from factsmith.flows.configuration.composition import compose
from factsmith.flows.configuration.differences import differences


def test_the_settings_that_differ_from_the_choices():
    assert differences(compose([])) == {}
    given = [
        "method=emmet",
        "method.slack=0.5",
        "corpus.dynamic_multiplier=3",
        "runtime.threads=1",
        "dataset.batches=2",
    ]
    assert differences(compose(given)) == {"corpus.dynamic_multiplier": "3", "method.slack": "0.5"}


def test_what_a_choice_leaves_open_is_no_difference(arguments):
    found = differences(compose(arguments()))
    assert found["corpus.dynamic_multiplier"] == "20"
    assert not {"model.path", "method.layers", "method.batch_size"} & found.keys()
    assert differences(compose(arguments()).model_copy(update={"model": _renamed(compose(arguments()).model)})) == {}


def _renamed(model):
    return model.model_copy(update={"name": "a model of my own"})
