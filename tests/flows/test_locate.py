"""``locate``: traced once, then cached. Facts that it cannot use are reported."""

from __future__ import annotations

import json

import pytest
from mlflow import MlflowClient

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_table
from factsmith.flows.configuration.composition import UNUSED_BY_LOCATE, compose
from factsmith.flows.locate import locate
from factsmith.tasks.model.checkpoint import Checkpoint
from factsmith.tasks.tracking.tracker import tracking_uri
from tests.runs import artifacts, contents, last_of_each, states


@pytest.fixture
def traced(plain_flows, home):
    """Trace the embedded model, a little."""

    def call(*arguments):
        few = ["trace.facts=3", "trace.samples=2", "dataset.limit=6"]
        return locate(compose(last_of_each(*few, *arguments), stand_ins=UNUSED_BY_LOCATE))

    return call


def test_a_second_trace_is_cached_and_loads_no_model(traced, store, home, monkeypatch):
    first = traced()
    before = contents(store)
    monkeypatch.setattr(Checkpoint, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    second = traced()
    assert set(states(first).values()) == {"built"}
    assert set(states(second).values()) == {"cached"}
    assert contents(store) == before
    assert (first.layers, first.effects, first.mediated) == (second.layers, second.effects, second.mediated)
    assert first.facts == 3
    assert first.clean > 0.5 > first.corrupted
    run = MlflowClient(tracking_uri(home)).get_run(second.mlflow_run_id)
    assert run.data.metrics["mediated/layer_0"] == pytest.approx(first.mediated[0])
    assert run.data.tags["layers"] == str(first.layers)
    assert not [name for name in run.data.params if name.startswith(("method.", "corpus."))]


def test_more_facts_trace_only_those_that_are_new(traced, store):
    traced()
    traced("trace.facts=5")
    (small, large) = sorted((one.summary["facts"], one) for one in artifacts(store, "location"))
    assert (small[0], large[0]) == (3, 5)
    assert sorted(one.summary["facts"] for one in artifacts(store, "effects")) == [2, 3]
    table = load_table(large[1].path / "effects.parquet")
    assert len(set(table["fact"].to_pylist())) == 5


def test_facts_that_the_model_does_not_know_are_passed_over(traced, tmp_path):
    path = tmp_path / "facts.jsonl"
    from factsmith.tasks.model.embedded.world import World

    lines = []
    for at, record in enumerate(World().records()[:4]):
        asked = record["requested_rewrite"]
        true = asked["target_true"]["str"] if at != 1 else "nothing of the kind"
        fact = {"subject": asked["subject"], "prompt": asked["prompt"], "target_new": "x", "target_true": true}
        lines.append(json.dumps({name: value for name, value in fact.items() if at != 2 or name != "target_true"}))
    path.write_text("\n".join(lines))
    report = traced("dataset=facts", f"dataset.path={path}")
    assert (report.facts, report.unknown) == (2, 1)
    path.write_text("\n".join(lines[1:3]))
    with pytest.raises(InputError, match="knows none of the 1 facts"):
        traced("dataset=facts", f"dataset.path={path}")


def test_neither_layers_nor_a_corpus_need_be_given(factsmith, plain_flows, gpt2_folder, tmp_path, refused):
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps({"subject": "Mara", "prompt": "{} speaks", "target_new": "Danish"}))
    given = ["model=local", f"model.path={gpt2_folder}", f"dataset.path={path}"]
    message = refused("locate", *given)
    assert "no fact to trace" in message
    assert "target_true" in message


def test_known_facts_are_told_apart(factsmith, plain_flows, refused, home, tmp_path):
    """The true object is the first choice, is only likelier than the new one, or is neither."""
    from factsmith.tasks.model.embedded.world import World

    lines = []
    for case, record in enumerate(World().records()[:3]):
        asked = record["requested_rewrite"]
        true, new = asked["target_true"]["str"], asked["target_new"]["str"]
        objects = [(true, new), (new, "nothing of the kind"), (new, true)][case]
        fact = {"case_id": case, "subject": asked["subject"], "prompt": asked["prompt"]}
        lines.append(json.dumps({**fact, "target_true": objects[0], "target_new": objects[1]}))
    facts, cases = tmp_path / "facts.jsonl", tmp_path / "cases.json"
    facts.write_text("\n".join(lines))
    given = ["known", "dataset=facts", f"dataset.path={facts}"]
    document = json.loads(factsmith(*given, "--json", "--out", str(cases)).out)
    assert (document["facts"], document["recalled"], document["preferred"]) == (3, [0], [0, 1])
    assert json.loads(cases.read_text()) == [0]
    result = factsmith(*given, "--preferred", "--out", str(cases))
    assert "knows 1 of 3 facts" in result.out
    assert json.loads(cases.read_text()) == [0, 1]
    assert "known" in factsmith("runs").out
    assert "is not a writable folder" in refused(*given, "--out", str(tmp_path / "none" / "cases.json"), clean=False)
    assert "trace.facts would have no effect" in refused(*given, "trace.facts=3", clean=False)


def test_the_command_prints_what_to_do(factsmith, plain_flows):
    given = ["trace.facts=3", "trace.samples=2", "dataset.limit=3"]
    result = factsmith("locate", *given)
    assert result.code == 0, result
    document = json.loads(factsmith("locate", "--json", *given).out)
    assert f"method.layers={json.dumps(document['layers'], separators=(',', ':'))}" in result.out
    assert len(document["mediated"]) == 6
    assert set(document["effects"]) == {"hidden", "mlp", "attention", "severed"}
