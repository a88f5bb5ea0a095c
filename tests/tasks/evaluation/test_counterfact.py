"""CounterFact's metrics against hand-computed values, and likelihoods against plain transformers."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest
import torch

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.likelihood import continuation_likelihoods
from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.evaluation.metrics.counterfact import FAMILY as COUNTERFACT
from factsmith.tasks.evaluation.summary import RecordValues
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from tests.constant import constant_decoder, nll_of, spelling_tokenizer

PROMPTS = ["Mara Flousano speaks", "The home town of Ilo is", "A", "Mara Flousano speaks", "Pisel was born in"]
TARGETS = ["Danish", "New York", "music critic", "Greek", "Oslo"]


def row(record: str, kind: str, index: int, new: float, true: float | None, correct_new=0, correct_true=0) -> dict:
    return {
        "record": record, "case_id": 1, "kind": kind, "index": index, "prompt": "p",
        "nll_new": new, "tokens_new": 2, "correct_new": correct_new,
        "nll_true": true, "tokens_true": None if true is None else 2,
        "correct_true": None if true is None else correct_true,
    }  # fmt: skip


def summarise(rows: pa.Table) -> dict[str, float | None]:
    return RecordValues.of(COUNTERFACT.by_record(rows), [COUNTERFACT]).summary()


def table(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=COUNTERFACT.schema)


def test_by_hand():
    rows = table(
        row("a", "rewrite", 0, 1.0, 2.0, correct_new=2),
        row("b", "rewrite", 0, 3.0, 2.0, correct_new=1),
        # record a: one paraphrase of two; b: one of one. The mean is over records, not prompts.
        row("a", "paraphrase", 0, 1.0, 2.0),
        row("a", "paraphrase", 1, 2.0, 1.0, correct_new=2),
        row("b", "paraphrase", 0, 1.0, 3.0),
        row("a", "neighborhood", 0, 2.0, 1.0, correct_true=2),
        row("a", "neighborhood", 1, 2.0, 1.0),
        row("b", "neighborhood", 0, 1.0, 2.0),
        row("b", "neighborhood", 1, 2.0, 1.0),
    )
    found = summarise(rows)
    e = math.exp
    assert found["ES"] == 50.0
    assert found["PS"] == pytest.approx(75.0)
    assert found["NS"] == pytest.approx(75.0)
    assert found["S"] == pytest.approx(3 / (1 / 50 + 1 / 75 + 1 / 75))
    assert found["EM"] == pytest.approx(100 * ((e(-1) - e(-2)) + (e(-3) - e(-2))) / 2)
    assert found["PM"] == pytest.approx(100 * (0.0 + (e(-1) - e(-3))) / 2)
    assert found["NM"] == pytest.approx(100 * ((e(-1) - e(-2)) + 0.0) / 2)
    assert (found["Eff*"], found["Gen*"], found["Spe*"]) == (50.0, pytest.approx(25.0), pytest.approx(25.0))


def test_a_tie_is_no_success():
    rows = table(row("a", "rewrite", 0, 1.0, 1.0), row("a", "neighborhood", 0, 1.0, 1.0))
    found = summarise(rows)
    assert found["ES"] == 0.0
    assert found["NS"] == 0.0


def test_a_score_of_nothing_is_nothing_and_a_zero_makes_s_zero():
    found = summarise(table(row("a", "rewrite", 0, 1.0, 2.0)))
    assert found["PS"] is None
    assert found["S"] is None
    zero = table(
        row("a", "rewrite", 0, 2.0, 1.0), row("a", "paraphrase", 0, 1.0, 2.0), row("a", "neighborhood", 0, 2.0, 1.0)
    )
    assert summarise(zero)["S"] == 0.0


def test_facts_without_a_true_object_tell_only_whether_they_are_said():
    found = summarise(table(row("a", "rewrite", 0, 0.1, None, correct_new=2)))
    assert found["ES"] is None
    assert found["EM"] is None
    assert found["Eff*"] == 100.0


@torch.no_grad()
def test_likelihoods_are_those_of_transformers(decoder):
    prompts = [encode_prompt(decoder.tokenizer, prompt, target=target) for prompt in PROMPTS for target in TARGETS]
    for most_tokens in (1, 64, 10_000):
        found = continuation_likelihoods(decoder, prompts, most_tokens=most_tokens)
        for prompt, likelihood in zip(prompts, found, strict=True):
            scores = decoder.model(input_ids=torch.tensor([prompt.tokens])).logits[0].log_softmax(-1)
            start = len(prompt.tokens) - prompt.continued
            picked = [float(scores[place - 1, prompt.tokens[place]]) for place in range(start, len(prompt.tokens))]
            first = [
                int(scores[place - 1].argmax()) == prompt.tokens[place] for place in range(start, len(prompt.tokens))
            ]
            assert likelihood.tokens == prompt.continued
            assert likelihood.nll == pytest.approx(-sum(picked) / len(picked), rel=1e-4)
            assert likelihood.correct == sum(first)


def test_no_input_runs_twice(decoder, monkeypatch):
    monkeypatch.setattr(Decoder, "pass_cost", 0)  # With padding, which costs less than another pass, there is more.
    prompts = [encode_prompt(decoder.tokenizer, prompt, target=target) for prompt in PROMPTS for target in TARGETS]
    positions = 0

    def count(_module, inputs, _output):
        nonlocal positions
        positions += inputs[0].shape[:2].numel()

    handle = decoder.blocks[0].register_forward_hook(count)
    continuation_likelihoods(decoder, prompts, most_tokens=10_000)
    handle.remove()
    inputs = {prompt.inputs for prompt in prompts}
    needed = [one for one in inputs if not any(other != one and other[: len(one)] == one for other in inputs)]
    assert len(needed) < len(prompts)
    assert positions <= 1.12 * sum(map(len, needed))


def test_scores_have_a_row_a_prompt(decoder):
    request = EditRequest(7, "Mara Flousano", "{} speaks", "Danish", "Greek")
    prompts = {"rewrite": (request.prompt,), "paraphrase": ("Her mother tongue is", "A"), "neighborhood": ("B",)}
    rows = COUNTERFACT.score(decoder, [Record(request, prompts, 0)], most_tokens=1000)
    assert rows.schema == COUNTERFACT.schema
    assert rows["kind"].to_pylist() == ["rewrite", "paraphrase", "paraphrase", "neighborhood"]
    assert rows["index"].to_pylist() == [0, 0, 1, 0]
    assert set(rows["case_id"].to_pylist()) == {7}
    assert rows["nll_new"].null_count == 0


def test_a_prompt_that_does_not_fit_is_counted_and_changes_no_other_score(decoder):
    request = EditRequest(7, "Mara Flousano", "{} speaks", "Danish", "Greek")
    tokens = decoder.context_length - len(encode_prompt(decoder.tokenizer, "", target="Danish").inputs)
    fitting = [" A" * count for count in range(tokens // 2, 2 * tokens)]
    lengths = {
        text: max(len(encode_prompt(decoder.tokenizer, text, target=one).inputs) for one in ("Danish", "Greek"))
        for text in fitting
    }
    longest = max((text for text in fitting if lengths[text] <= decoder.context_length), key=len)
    shortest = min((text for text in fitting if lengths[text] > decoder.context_length), key=len)
    assert len(shortest) == len(longest) + 2
    prompts = {"rewrite": (request.prompt,), "paraphrase": (longest, shortest), "neighborhood": ("B",)}
    done = []
    rows = COUNTERFACT.score(decoder, [Record(request, prompts, 0)], most_tokens=1000, advance=done.append)
    assert sum(done) == 8
    assert COUNTERFACT.skipped(rows) == 1
    assert [value is None for value in rows["nll_true"].to_pylist()] == [False, False, True, False]
    without = Record(request, {**prompts, "paraphrase": (longest,)}, 0)
    assert summarise(COUNTERFACT.score(decoder, [without], most_tokens=1000)) == summarise(rows)


def test_a_record_whose_prompts_are_all_too_long_is_counted_in_nothing(decoder):
    request = EditRequest(7, "Mara Flousano", "{} speaks", "Danish " * 200, "Greek")
    rows = COUNTERFACT.score(decoder, [Record(request, {"rewrite": (request.prompt,)}, 0)], most_tokens=1000)
    assert COUNTERFACT.skipped(rows) == len(rows) == 1
    assert set(summarise(rows).values()) == {None}


def asked_in_all_kinds(new: str, true: str) -> Record:
    request = EditRequest(7, "Ilo", "{} is", new, true)
    return Record(request, {kind: (f"{kind} is",) for kind in COUNTERFACT.kinds}, 0)


@pytest.mark.parametrize("bos", [False, True])
def test_each_token_of_an_object_counts_alike(gpt2_folder, bos):
    """Mean, not sum, of NLL: "aab" of four tokens beats "b" of two, and neither is the first choice whole."""
    scores = {"a": 3.0, "b": 1.0, "Ġ": 1.0}
    decoder = constant_decoder(gpt2_folder, spelling_tokenizer(bos=bos), scores)
    rows = COUNTERFACT.score(decoder, [asked_in_all_kinds("aab", "b")], most_tokens=100)
    new, true = nll_of(["Ġ", "a", "a", "b"], scores), nll_of(["Ġ", "b"], scores)
    assert rows["nll_new"].to_pylist() == pytest.approx([new] * 3)
    assert rows["nll_true"].to_pylist() == pytest.approx([true] * 3)
    assert [rows[f"{what}_new"].to_pylist()[0] for what in ("tokens", "correct")] == [4, 2]
    assert [rows[f"{what}_true"].to_pylist()[0] for what in ("tokens", "correct")] == [2, 0]
    found = summarise(rows)
    assert (found["ES"], found["PS"], found["NS"], found["S"]) == (100, 100, 0, 0)
    more = pytest.approx(100 * (math.exp(-new) - math.exp(-true)))
    assert (found["EM"], found["PM"], -found["NM"]) == (more, more, more)
    assert (found["Eff*"], found["Gen*"], found["Spe*"]) == (0, 0, 0)


def test_objects_equally_likely_are_a_tie_whichever_of_them_the_model_would_say(gpt2_folder):
    tokenizer = spelling_tokenizer([("Ġ", "a"), ("Ġ", "b")])
    decoder = constant_decoder(gpt2_folder, tokenizer, {"Ġa": 3.0, "Ġb": 3.0})
    for new, true, said in (("a", "b", 100), ("b", "a", 0)):
        found = summarise(COUNTERFACT.score(decoder, [asked_in_all_kinds(new, true)], most_tokens=100))
        assert (found["ES"], found["PS"], found["NS"]) == (0, 0, 0)
        assert (found["EM"], found["PM"], found["NM"]) == (0, 0, 0)
        assert (found["Eff*"], found["Gen*"], found["Spe*"]) == (said, said, 100 - said)


def test_a_token_that_reaches_over_the_end_of_the_prompt_is_the_object_s(gpt2_folder):
    """The prompt is cut differently with one object behind it than alone, and than with the other."""
    tokenizer = spelling_tokenizer([("s", "Ġ"), ("sĠ", "a")])
    assert [tokenizer.tokenize(text) for text in ("is", "is ab", "is b")] == [
        ["i", "s"], ["i", "sĠa", "b"], ["i", "sĠ", "b"],
    ]  # fmt: skip
    scores = {"sĠa": 2.0, "b": 2.0, "sĠ": 1.0}
    decoder = constant_decoder(gpt2_folder, tokenizer, scores)
    rows = COUNTERFACT.score(decoder, [asked_in_all_kinds("ab", "b")], most_tokens=100)
    assert rows["nll_new"].to_pylist() == pytest.approx([nll_of(["sĠa", "b"], scores)] * 3)
    assert rows["nll_true"].to_pylist() == pytest.approx([nll_of(["sĠ", "b"], scores)] * 3)
    assert set(rows["tokens_new"].to_pylist()) == set(rows["tokens_true"].to_pylist()) == {2}
    assert summarise(rows)["ES"] == 100
