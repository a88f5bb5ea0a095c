"""Token-wise accuracy of answers against hand-computed values, and against plain transformers."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from factsmith.tasks.evaluation.family import load_families
from factsmith.tasks.evaluation.metrics.portability import FAMILY as PORTABILITY
from factsmith.tasks.evaluation.metrics.zsre import FAMILY as ZSRE
from factsmith.tasks.evaluation.summary import RecordValues
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from tests.constant import constant_decoder, nll_of, spelling_tokenizer


def summarise(rows: pa.Table, family=ZSRE) -> dict[str, float | None]:
    return RecordValues.of(family.by_record(rows), [family]).summary()


def row(record: str, kind: str, index: int, correct: int | None, tokens: int | None) -> dict:
    return {
        "record": record, "case_id": 1, "kind": kind, "index": index, "prompt": "p",
        "nll": None if tokens is None else 1.0, "tokens": tokens, "correct": correct, "answer": "a",
    }  # fmt: skip


def record(target: str = "ab", **given) -> Record:
    request = EditRequest(7, "Ilo", "Where is {}?", target)
    prompts = {
        "rewrite": (request.prompt,), "paraphrase": ("In what is Ilo?", "Ilo?"), "neighborhood": ("nq question: x?",),
        "portability": ("What is it like?",),
    }  # fmt: skip
    return Record(request, prompts, 0, **{"answers": {"neighborhood": ("b",), "portability": ("aab",)}, **given})


def test_by_hand():
    rows = pa.Table.from_pylist(
        [
            row("a", "rewrite", 0, 2, 4),
            row("b", "rewrite", 0, 1, 1),
            # Of a's paraphrases one is half right and one wrong; the mean is over records, not prompts or tokens.
            row("a", "paraphrase", 0, 1, 2),
            row("a", "paraphrase", 1, 0, 1),
            row("b", "paraphrase", 0, 3, 3),
            row("a", "neighborhood", 0, 1, 5),
            row("b", "neighborhood", 0, None, None),  # did not fit the model
        ],
        schema=ZSRE.schema,
    )
    found = summarise(rows)
    assert found["Eff"] == pytest.approx(75)
    assert found["Gen"] == pytest.approx(62.5)
    assert found["Spe"] == pytest.approx(20)
    assert found["H"] == pytest.approx(3 / (1 / 75 + 1 / 62.5 + 1 / 20))
    assert ZSRE.skipped(rows) == 1


@pytest.mark.parametrize("bos", [False, True])
def test_each_token_of_an_answer_counts(gpt2_folder, bos):
    """With "a" as the first choice everywhere, " ab" is right in one token of three, " b" in none, " aab" in two."""
    scores = {"a": 2.0, "b": 1.0, "Ġ": 0.5}
    decoder = constant_decoder(gpt2_folder, spelling_tokenizer(bos=bos), scores)
    rows = ZSRE.score(decoder, [record()], most_tokens=100)
    assert rows.schema == ZSRE.schema
    assert rows["kind"].to_pylist() == ["rewrite", "paraphrase", "paraphrase", "neighborhood"]
    assert rows["answer"].to_pylist() == ["ab", "ab", "ab", "b"]
    assert rows["tokens"].to_pylist() == [3, 3, 3, 2]
    assert rows["correct"].to_pylist() == [1, 1, 1, 0]
    assert rows["nll"].to_pylist() == pytest.approx([nll_of(["Ġ", "a", "b"], scores)] * 3 + [nll_of("Ġb", scores)])
    found = summarise(rows)
    assert (found["Eff"], found["Gen"], found["Spe"], found["H"]) == pytest.approx((100 / 3, 100 / 3, 0, 0))

    rows = PORTABILITY.score(decoder, [record()], most_tokens=100)
    assert rows["prompt"].to_pylist() == ["What is it like?"]
    assert summarise(rows, PORTABILITY) == {"Por": pytest.approx(50)}


def test_of_tokens_equally_likely_the_first_of_the_vocabulary_is_chosen(gpt2_folder):
    tokenizer = spelling_tokenizer([("Ġ", "a"), ("Ġ", "b")])
    decoder = constant_decoder(gpt2_folder, tokenizer, {"Ġa": 3.0, "Ġb": 3.0})
    rows = ZSRE.score(decoder, [record("a")], most_tokens=100)
    assert rows["answer"].to_pylist() == ["a", "a", "a", "b"]
    assert len(set(rows["nll"].to_pylist())) == 1
    found = summarise(rows)
    assert (found["Eff"], found["Gen"], found["Spe"]) == (100, 100, 0)


def test_a_token_that_reaches_over_the_end_of_the_prompt_is_the_answer_s(gpt2_folder):
    tokenizer = spelling_tokenizer([("?", "Ġ"), ("?Ġ", "a")])
    assert tokenizer.tokenize("Ilo?") == ["I", "l", "o", "?"]
    assert tokenizer.tokenize("Ilo? ab") == ["I", "l", "o", "?Ġa", "b"]
    scores = {"?Ġa": 1.0}
    decoder = constant_decoder(gpt2_folder, tokenizer, scores)
    rows = ZSRE.score(decoder, [record()], most_tokens=100)
    assert rows["tokens"].to_pylist() == [2, 2, 2, 2]  # "?Ġ" and "b" of the neighbour
    assert rows["correct"].to_pylist() == [1, 1, 1, 0]
    assert rows["nll"].to_pylist()[0] == pytest.approx(nll_of(["?Ġa", "b"], scores))


@torch.no_grad()
def test_rows_are_what_transformers_says(decoder):
    """Prompt and answer are cut at the prompt's own tokens, which these tokenizers allow."""
    answers = {"neighborhood": ("Oslo",), "portability": ("Mara Flousano speaks",)}
    given = record("New York", answers=answers)
    for family in (ZSRE, PORTABILITY):
        rows = family.score(decoder, [given], most_tokens=64)
        assert len(rows) == sum(len(given.prompts[kind]) for kind in family.kinds)
        for one in rows.to_pylist():
            start = len(decoder.tokenizer(one["prompt"])["input_ids"])
            tokens = decoder.tokenizer(f"{one['prompt']} {one['answer']}")["input_ids"]
            scores = decoder.model(input_ids=torch.tensor([tokens])).logits[0, start - 1 : -1]
            wanted = torch.tensor(tokens[start:])
            assert one["tokens"] == len(wanted)
            assert one["correct"] == int((scores.argmax(-1) == wanted).sum())
            assert one["nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(scores, wanted)), rel=1e-4)


def test_neighbours_of_counterfact_have_the_true_object_for_an_answer(gpt2_folder):
    request = EditRequest(7, "Ilo", "{} is", "ab", "b")
    prompts = {"rewrite": (request.prompt,), "neighborhood": ("Oro is", "Ena is")}
    decoder = constant_decoder(gpt2_folder, spelling_tokenizer(), {"b": 1.0})
    rows = ZSRE.score(decoder, [Record(request, prompts, 0)], most_tokens=100)
    assert rows["answer"].to_pylist() == ["ab", "b", "b"]
    found = summarise(rows)
    assert (found["Eff"], found["Gen"], found["Spe"], found["H"]) == (pytest.approx(100 / 3), None, 50, None)


def test_neighbours_without_an_answer_and_records_without_a_question_are_not_asked(gpt2_folder):
    decoder = constant_decoder(gpt2_folder, spelling_tokenizer(), {})
    rows = ZSRE.score(decoder, [record(answers={})], most_tokens=100)
    assert set(rows["kind"].to_pylist()) == {"rewrite", "paraphrase"}
    assert summarise(rows)["Spe"] is None
    bare = Record(EditRequest(7, "Ilo", "{} is", "ab"), {"rewrite": ("Ilo is",)}, 0)
    rows = PORTABILITY.score(decoder, [bare], most_tokens=100)
    assert (len(rows), rows.schema) == (0, PORTABILITY.schema)
    assert summarise(rows, PORTABILITY) == {"Por": None}
    assert PORTABILITY.passes(decoder.tokenizer, bare) == []


def test_an_answer_that_does_not_fit_is_counted_in_no_metric(gpt2_folder):
    decoder = constant_decoder(gpt2_folder, spelling_tokenizer(), {"a": 1.0})
    done = []
    rows = ZSRE.score(decoder, [record(answers={"neighborhood": ("a" * 96,)})], most_tokens=100, advance=done.append)
    assert sum(done) == 4
    assert ZSRE.skipped(rows) == 1
    assert rows["nll"].is_null().to_pylist() == [False, False, False, True]
    assert summarise(rows)["Spe"] is None


def test_what_is_fed_is_what_a_plan_counts(gpt2_folder):
    tokenizer = spelling_tokenizer(bos=True)
    asked = record()
    expected = [("Where is Ilo?", "ab"), ("In what is Ilo?", "ab"), ("Ilo?", "ab"), ("nq question: x?", "b")]
    # A BOS, the prompt, a space and the answer but for its last letter.
    assert ZSRE.passes(tokenizer, asked) == [
        (1 + len(prompt) + len(answer), 1 + len(answer)) for prompt, answer in expected
    ]


def test_no_two_families_name_a_metric_alike():
    names = [name for family in load_families() for name in family.metrics]
    assert len(names) == len(set(names))
    assert {"ES", "Eff", "H", "Por"} <= set(names)
