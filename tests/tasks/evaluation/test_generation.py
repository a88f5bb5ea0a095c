"""Texts are those of transformers in any batch, and entropies are those computed by hand."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest
import torch

from factsmith.tasks.decoder.generation import TopK, continuations, end_tokens
from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.evaluation.metrics.generation import FAMILY, entropy, words
from factsmith.tasks.evaluation.summary import RecordValues
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from tests.conftest import load_plain

TEXTS = [
    "Mara Flousano speaks",
    "A",
    "The home town of Ilo Benat, who was born in Rome and speaks Greek, is",
    "Pisel was born in",
    "Pisel works",
    "The instrument of Mara Flousano is the",
]
DRAWN = TopK(5, seed=3)


def encoded(decoder, texts=TEXTS) -> list[list[int]]:
    return [list(encode_prompt(decoder.tokenizer, text).tokens) for text in texts]


def passes_of(decoder) -> list[tuple[int, int]]:
    """Rows and positions of each pass through block 0, from now on."""
    seen: list[tuple[int, int]] = []
    decoder.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[:2])))
    return seen


@pytest.fixture
def plain(model_folder):
    return load_plain(model_folder)


def greedy_of_transformers(plain, prompt: list[int], limit: int, **given) -> list[int]:
    tokens = torch.tensor([prompt])
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        out = plain.generate(tokens, attention_mask=mask, do_sample=False, max_length=limit, pad_token_id=0, **given)
    return out[0, len(prompt) :].tolist()


def test_first_choices_are_those_of_transformers(decoder, plain):
    prompts = encoded(decoder)
    limits = [40, 7, 70, 500, 30, 500]
    found = continuations(decoder, prompts, limits, most_tokens=10_000)
    longest = decoder.context_length
    for prompt, limit, said in zip(prompts, limits, found, strict=True):
        expected = greedy_of_transformers(plain, prompt, min(limit, longest), eos_token_id=None)
        assert said == expected
        assert len(prompt) + len(said) == min(limit, longest)


def test_a_text_ends_where_that_of_transformers_ends(decoder, plain):
    prompts = encoded(decoder)
    ends = {said[place] for place, said in enumerate(continuations(decoder, prompts, [60] * 6, most_tokens=10_000))}
    found = continuations(decoder, prompts, [60] * 6, most_tokens=10_000, ends=ends)
    for prompt, said in zip(prompts, found, strict=True):
        assert said == greedy_of_transformers(plain, prompt, 60, eos_token_id=sorted(ends))
        assert said[-1] in ends
    assert len({len(said) for said in found}) > 1


@pytest.mark.one_family
@pytest.mark.parametrize("top_k", [None, DRAWN])
def test_a_prompt_is_continued_alike_in_every_batch_and_order(decoder, top_k):
    prompts = encoded(decoder)
    expected = continuations(decoder, prompts, [25] * 6, most_tokens=10_000, top_k=top_k)
    for most_tokens in (1, 120):
        assert continuations(decoder, prompts, [25] * 6, most_tokens=most_tokens, top_k=top_k) == expected
    backwards = continuations(decoder, prompts[::-1], [25] * 6, most_tokens=10_000, top_k=top_k)
    assert backwards[::-1] == expected


@pytest.mark.one_family
def test_draws_follow_the_seed_and_nothing_else(decoder):
    prompts = encoded(decoder)

    def drawn(seed: int) -> list[list[int]]:
        return continuations(decoder, prompts, [40] * 6, most_tokens=10_000, top_k=TopK(5, seed))

    torch.manual_seed(0)
    first, state = drawn(3), torch.get_rng_state()
    torch.manual_seed(1)
    assert drawn(3) == first
    assert all(one != other for one, other in zip(drawn(4), first, strict=True))
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_prompts_are_not_drawn_alike():
    assert not torch.equal(DRAWN.draws([5, 7], 9), DRAWN.draws([7, 5], 9))


def test_one_of_the_likeliest_is_drawn_by_its_share():
    scores = torch.tensor([0.1, 0.5, 0.05, 0.3, 0.05]).log()
    draws = torch.tensor([0.0, 0.62, 0.63, 0.99], dtype=torch.float64)  # 0.5 of 0.8 is 0.625
    assert TopK(2, 0).choose(scores.expand(4, -1), draws).tolist() == [1, 1, 3, 3]
    assert TopK(9, 0).choose(scores.expand(4, -1), draws).tolist()[:3] == [1, 3, 3]
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = TopK(3, 0).choose(scores.expand(1000, -1), grid)
    assert torch.bincount(drawn, minlength=5).tolist() == [111, 556, 0, 333, 0]


@pytest.mark.one_family
@torch.no_grad()
def test_no_token_is_drawn_outside_of_the_likeliest(decoder, plain):
    prompts = encoded(decoder)
    ranks = set()
    for prompt, said in zip(
        prompts, continuations(decoder, prompts, [60] * 6, most_tokens=10_000, top_k=TopK(3, 0)), strict=True
    ):
        scores = plain(input_ids=torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
        picked = scores.gather(1, torch.tensor(said)[:, None])
        assert (picked >= scores.topk(3).values[:, -1:] - 1e-4).all()
        ranks |= set((scores > picked + 1e-4).sum(1).tolist())
    assert ranks == {0, 1, 2}


@pytest.mark.one_family
def test_a_prompt_without_room_is_continued_with_nothing(decoder):
    full = [5] * decoder.context_length
    prompts = [full, full[:-1], [], [7, 8, 9], [7, 8, 9]]
    done: list[int] = []
    found = continuations(decoder, prompts, [500, 500, 9, 3, 4], most_tokens=1000, advance=done.append)
    assert [len(said) for said in found] == [0, 1, 0, 0, 1]
    assert sum(done) == 5


def test_no_position_runs_twice_and_what_has_ended_runs_no_more(decoder):
    prompts = encoded(decoder)
    seen = passes_of(decoder)
    found = continuations(decoder, prompts, [20, 60, 60, 30, 60, 45], most_tokens=10_000)
    (prefill, *steps) = seen
    assert prefill == (6, max(map(len, prompts)))
    assert {length for _, length in steps} == {1}
    assert sum(rows for rows, _ in steps) == sum(len(said) - 1 for said in found if said)


@pytest.mark.one_family
def test_a_batch_keeps_to_the_positions_it_may_hold(decoder):
    seen = passes_of(decoder)
    continuations(decoder, encoded(decoder), [50] * 6, most_tokens=149)
    assert max(rows for rows, _ in seen) == 2


@pytest.mark.one_family
def test_end_tokens_are_those_that_generate_stops_at(decoder):
    ends = decoder.model.generation_config.eos_token_id
    assert end_tokens(decoder) == {ends}
    decoder.model.generation_config.eos_token_id = [7, 9]
    assert end_tokens(decoder) == {7, 9}
    decoder.model.generation_config.eos_token_id = None
    assert end_tokens(decoder) == {decoder.tokenizer.eos_token_id}


# ------------------------------------------------------------------------ GE


def test_entropies_by_hand():
    parts = ["a", "b", "a", "b"]
    assert entropy(parts, 2) == pytest.approx(2 / 3 * math.log2(3 / 2) + 1 / 3 * math.log2(3))  # ab twice, ba once
    assert entropy(parts, 3) == pytest.approx(1.0)  # aba, bab
    assert entropy(["a"] * 5, 2) == 0.0
    assert entropy(list("abcde"), 2) == pytest.approx(2.0)


@pytest.mark.parametrize("text", ["", "one", "one two"])
def test_a_text_too_short_for_an_n_gram_has_no_entropy(text):
    assert entropy(words(text), 3) == 0.0


def test_words_and_marks():
    assert words("Don't stop, well-known Zoë’s 3.14!\n") == [
        "Don't", "stop", ",", "well", "-", "known", "Zoë’s", "3", ".", "14", "!",
    ]  # fmt: skip
    assert words("Zoe\u0308") == words("Zoë") == ["Zoë"]


def ge(rows: pa.Table) -> float | None:
    return RecordValues.of(FAMILY.by_record(rows), [FAMILY]).summary()["GE"]


def row(record: str, bits_2: float | None, bits_3: float | None) -> dict:
    return {
        "record": record, "case_id": 1, "kind": "generation", "index": 0, "prompt": "p",
        "text": None if bits_2 is None else "t", "bits_2": bits_2, "bits_3": bits_3,
    }  # fmt: skip


def test_ge_by_hand():
    rows = [row("a", 3.0, 6.0), row("a", 6.0, 6.0), row("b", 0.0, 0.0), row("b", None, None)]
    table = pa.Table.from_pylist(rows, schema=FAMILY.schema)
    # (2/3 * 3 + 4/3 * 6) / 2 = 5 and 6: 5.5 within a; over records (5.5 + 0) / 2.
    assert ge(table) == pytest.approx(275.0)
    assert FAMILY.skipped(table) == 1
    assert ge(table.slice(3)) is None


def record(*prompts: str) -> Record:
    request = EditRequest(7, "Mara Flousano", "{} speaks", "Danish", "Greek")
    return Record(request, {"rewrite": (request.prompt,), "generation": prompts}, 0)


@pytest.mark.one_family
def test_scores_have_a_text_a_prompt_and_a_repeated_prompt_runs_once(decoder):
    seen = passes_of(decoder)
    done: list[int] = []
    one, other = record("Mara speaks", "Mara is", "Mara speaks"), record("Mara is")
    rows = FAMILY.score(decoder, [one, other], most_tokens=1000, advance=done.append)
    assert rows.schema == FAMILY.schema
    assert sum(done) == 4
    prompts, texts = rows["prompt"].to_pylist(), rows["text"].to_pylist()
    assert prompts == ["Mara speaks", "Mara is", "Mara speaks", "Mara is"]
    assert all(text.startswith(prompt) for text, prompt in zip(texts, prompts, strict=True))
    assert texts[0] == texts[2]
    assert texts[1] == texts[3]
    assert max(rows for rows, _ in seen) == 2
    for text, bits in zip(texts, rows["bits_3"].to_pylist(), strict=True):
        assert bits == entropy(words(text), 3)
    alone = FAMILY.score(decoder, [other], most_tokens=1)
    assert alone["text"].to_pylist() == texts[3:]


@pytest.mark.one_family
def test_prompts_that_leave_nothing_to_say_are_skipped(decoder):
    long = " A" * decoder.context_length
    rows = FAMILY.score(decoder, [record("Mara speaks", long)], most_tokens=1000)
    assert FAMILY.skipped(rows) == 1
    assert ge(rows) == ge(FAMILY.score(decoder, [record("Mara speaks")], most_tokens=1000))
    assert len(FAMILY.score(decoder, [record()], most_tokens=1000)) == 0


@pytest.mark.one_family
def test_no_more_is_run_than_was_planned(decoder):
    asked = record(*TEXTS, TEXTS[0], " A" * 120)
    seen = passes_of(decoder)
    FAMILY.score(decoder, [asked], most_tokens=1)  # no padding
    told = FAMILY.passes(decoder.tokenizer, asked)
    assert len(told) == len(TEXTS)
    assert all(0 < read <= positions == 99 for positions, read in told)
    run = sum(rows * length for rows, length in seen)
    assert run == len(told) * (min(100, decoder.context_length) - 1)
