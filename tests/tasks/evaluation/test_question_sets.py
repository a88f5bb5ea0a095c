"""Sets of questions: what counts as an answer, metrics by hand, and conditions on the unedited model."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from factsmith.flows.configuration.composition import compose
from factsmith.flows.run import run
from factsmith.tasks.decoder.generation import continuations, end_tokens
from factsmith.tasks.decoder.text import encode_prompt, text_after
from factsmith.tasks.evaluation.metrics.mquake import FAMILY as MQUAKE
from factsmith.tasks.evaluation.metrics.ripple import FAMILY as RIPPLE
from factsmith.tasks.evaluation.question_sets import EXAMPLES, contains
from factsmith.tasks.evaluation.summary import RecordValues
from factsmith.tasks.facts.record import Question, QuestionSet, Record
from factsmith.tasks.facts.request import EditRequest
from tests.runs import artifacts
from tests.tasks.facts.test_mquake import instance
from tests.tasks.facts.test_ripple import case, query, record


@pytest.mark.parametrize(
    ("prompt", "answer", "spellings", "right"),
    [
        ("She lives in", " the city of  Oslo, in", ["Oslo"], True),
        ("She lives in", " Oslofjord", ["Oslo"], False),
        ("She lives in", " Bergen", ["Oslo", "Bergen"], True),
        ("She lives in the Os", "lo region", ["lo"], False),
        ("Oslo is", " a city", ["Oslo"], False),
        ("He speaks", " Espan\u0303ol", ["Espa\u00f1ol"], True),
        ("Q: Where?\nA:", " New\n York", ["New York"], True),
    ],
)
def test_an_answer_contains_whole_words(prompt, answer, spellings, right):
    assert contains(answer, spellings, prompt) == right


def rows(*given: tuple) -> pa.Table:
    names = ("record", "kind", "set", "every", "condition", "correct")
    filled = [{"case_id": 0, "index": 0, "prompt": "", **dict(zip(names, one, strict=True))} for one in given]
    return pa.Table.from_pylist(filled, schema=MQUAKE.schema)


def test_metrics_of_mquake_by_hand():
    table = rows(
        ("a", "edit", 0, True, False, True),
        ("b", "edit", 0, True, False, False),
        ("c", "edit", 0, True, False, True),
        # Instance a recalls one of two hops, instance c both.
        ("a", "hops", 0, True, False, True),
        ("a", "hops", 0, True, False, False),
        ("c", "hops", 0, True, False, True),
        ("c", "hops", 0, True, False, True),
        # One question suffices, but a set whose prompt does not fit counts for nothing.
        ("a", "multi_hop", 0, False, False, False),
        ("a", "multi_hop", 0, False, False, True),
        ("c", "multi_hop", 0, False, False, False),
        ("c", "multi_hop", 0, False, False, False),
        ("d", "multi_hop", 0, False, False, True),
        ("d", "multi_hop", 0, False, False, None),
    )
    values = RecordValues.of(MQUAKE.by_record(table), [MQUAKE])
    assert values.summary() == {"Edit-wise": pytest.approx(200 / 3), "Instance-wise": 50, "Multi-hop": 50}
    assert values.counts == {"Edit-wise": 3, "Instance-wise": 2, "Multi-hop": 2}
    assert MQUAKE.skipped(table) == len(table), "the text of no answer is given here"


def test_a_test_counts_if_the_unedited_model_meets_its_conditions():
    def of_model(known: bool, first: bool) -> pa.Table:
        return rows(
            ("a", "Logical_Generalization", 0, False, False, first),
            ("a", "Logical_Generalization", 0, False, True, known),
            ("a", "Logical_Generalization", 1, False, False, False),
            ("a", "Forgetfulness", 0, True, False, True),
        )

    def summary(rows: pa.Table) -> dict:
        found = RecordValues.of(RIPPLE.by_record(rows), [RIPPLE]).summary()
        return {name: value for name, value in found.items() if value is not None}

    unedited, edited = of_model(True, False), of_model(False, True)
    assert summary(RIPPLE.counted(edited, unedited)) == {"LG": 50, "PV": 100}
    assert summary(RIPPLE.counted(edited, of_model(False, False))) == {"LG": 0, "PV": 100}
    assert MQUAKE.counted(edited, unedited) is edited


def test_questions_are_asked_once_and_judged_by_the_first_line_of_what_is_generated(decoder):
    def generated(text: str) -> str:
        prompt = encode_prompt(decoder.tokenizer, text).tokens
        limit = len(prompt) + RIPPLE.parameters["tokens"]
        (tokens,) = continuations(decoder, [prompt], [limit], most_tokens=512, ends=end_tokens(decoder))
        return text_after(decoder.tokenizer, prompt, tokens).lstrip("\n").partition("\n")[0]

    answer = generated("Mara speaks")
    word = max(answer.split(), key=len)
    asked = Question("Mara speaks", ((word,),))
    both = Question("Mara speaks", ((word,), ("Zzyzx",)))
    long = Question("Mara " * 90, ((word,),))
    sets = {
        "Logical_Generalization": (QuestionSet((asked,), every=True, conditions=(asked,)),),
        "Forgetfulness": (QuestionSet((both,), every=True), QuestionSet((long,), every=True)),
    }
    one = Record(EditRequest(3, "Mara", "{} speaks", "Danish"), {}, 0, sets=sets)
    done: list[int] = []
    table = RIPPLE.score(decoder, [one], most_tokens=512, advance=done.append)
    right = contains(answer, [word], "Mara speaks")
    assert table["answer"].to_pylist() == [answer, answer, answer, None]
    assert table["correct"].to_pylist() == [right, right, False, None]
    assert table["condition"].to_pylist() == [False, True, False, False]
    assert sum(done) == 4
    assert RIPPLE.skipped(table) == 1
    assert len(RIPPLE.passes(decoder.tokenizer, one)) == 2
    assert len({other.digest(RIPPLE.kinds) for other in (one, Record(one.request, {}, 0, sets={}))}) == 2


def test_questions_follow_examples(decoder):
    question = Question("Where does Mara live?", (("Oslo",),), is_question=True)
    one = Record(
        EditRequest(0, "Mara", "{}", "Oslo"), {}, 0, sets={"multi_hop": (QuestionSet((question,), every=False),)}
    )
    (asked,) = MQUAKE.asked([one])
    assert asked.text == f"{EXAMPLES}Q: Where does Mara live?\nA:"
    assert asked.prompt == "Where does Mara live?"


def dataset(arguments: list[str], name: str, path, records: list[dict], *more: str) -> list[str]:
    path.write_text(json.dumps(records))
    kept = [one for one in arguments if not one.startswith(("dataset=", "method.batch_size", "dataset.batches"))]
    return [*kept, f"dataset={name}", f"dataset.path={path}", *more]


def test_a_run_on_mquake_writes_instances(plain_flows, arguments, store, tmp_path, monkeypatch):
    from factsmith.tasks.evaluation import question_sets

    monkeypatch.setattr(question_sets, "EXAMPLES", "")  # They do not fit the tiny model.
    instances = [instance(number, f"Mara{number}") for number in range(3)]
    more = ("method.batch_size=2", "dataset.batches=null", "dataset.seed=null")
    report = run(compose(dataset(arguments(), "mquake", tmp_path / "m.json", instances, *more)))
    assert report.records == {"Edit-wise": 6, "Instance-wise": 3, "Multi-hop": 3}
    assert set(report.metrics["after"]) == {"Edit-wise", "Instance-wise", "Multi-hop"}
    assert sorted(one.summary["facts"] for one in artifacts(store, "edit")) == [2, 3], "the shared fact is written once"


@pytest.mark.parametrize("history", ["null", "full"])
def test_a_run_on_ripple_counts_what_the_unedited_model_knows(plain_flows, arguments, tmp_path, monkeypatch, history):
    """Each prompt is answered by itself here: queries for what the prompt says are right, others are wrong."""
    from factsmith.tasks.evaluation import question_sets

    monkeypatch.setattr(question_sets, "contains", lambda answer, spellings, prompt: spellings[0] in prompt)
    right, wrong = query("The known one is", "known"), query("The unknown one is", "Zzyzx")
    criteria = {
        "Forgetfulness": [case(right, needs=(right,)), case(wrong, needs=(wrong,)), case(wrong, needs=(right,))],
        "Compositionality_I": [case(right, needs=(wrong,))],
    }
    records = [record(f"The name of the mother of Mara{place} is Eve.", "MOTHER", **criteria) for place in range(2)]
    more = ("method.batch_size=1", "dataset.batches=2", f"method.sequence.history={history}")
    report = run(compose(dataset(arguments(), "ripple", tmp_path / "r.json", records, *more)))
    for phase in ("before", "after"):
        assert report.metrics[phase]["PV"] == 50, "the second test does not count, the third fails"
        assert report.metrics[phase]["CI"] is None
    assert "CI" not in report.records or not report.records["CI"]
    if history == "full":
        assert report.trajectory["sequence/PV"] == {1: 50, 2: 50}
