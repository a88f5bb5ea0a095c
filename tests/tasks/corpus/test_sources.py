"""Corpora: order, blocks, and files that cannot be read."""

from __future__ import annotations

import json
from itertools import islice, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factsmith.artifacts.checksums import Checksums
from factsmith.artifacts.errors import InputError
from factsmith.tasks.corpus.blocks import document_blocks, opening_tokens
from factsmith.tasks.corpus.corpus import open_corpus
from factsmith.tasks.corpus.settings import CorpusSettings
from factsmith.tasks.corpus.sources.embedded import EmbeddedCorpus
from factsmith.tasks.corpus.sources.local import open_local
from factsmith.tasks.corpus.stratified import StratifiedCorpus, count_words, take_turns, topics_of
from factsmith.tasks.pipeline.progress import progress
from tests.conftest import load

TEXTS = [f"Document {number} says Zürich {'so ' * (number % 7 * 5)}." for number in range(40)]


def write(tmp_path, suffix: str):
    path = tmp_path / f"corpus{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"title": "t", "text": text}) for text in TEXTS) + "\n\n")
    elif suffix == ".txt":
        path.write_text("\n\n".join(text.replace("says", "says\n") for text in TEXTS))
    else:
        pq.write_table(pa.table({"text": TEXTS, "number": range(40)}), path, row_group_size=7)
    return path


def read(path, field="text", seed=0):
    return open_local(path, field=field, seed=seed, checksum=Checksums.read)


def everything(corpus) -> list[tuple[int, str]]:
    found = []
    while (document := corpus.document(len(found))) is not None:
        found.append(document)
    return found


@pytest.mark.parametrize("suffix", [".jsonl", ".txt", ".parquet"])
def test_each_document_comes_once_in_seeded_order(tmp_path, suffix):
    path = write(tmp_path, suffix)
    found = everything(read(path, seed=1))
    assert sorted(index for index, _ in found) == list(range(40))
    assert all(text.replace("says\n", "says").strip() == TEXTS[index] for index, text in found)
    assert found == everything(read(path, seed=1))
    assert [index for index, _ in found] != [index for index, _ in everything(read(path, seed=2))]
    assert [index for index, _ in found] != list(range(40))


def test_the_recipe_follows_content_and_not_place(tmp_path):
    path = write(tmp_path, ".jsonl")
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(path.read_bytes())
    assert read(path).recipe() == read(moved).recipe()
    moved.write_bytes(path.read_bytes() + b'{"text": "more"}\n')
    assert read(path).recipe() != read(moved).recipe()
    assert read(path).recipe() != read(path, seed=5).recipe()


def test_the_embedded_corpus_repeats_and_does_not_end():
    assert EmbeddedCorpus(3).document(10**6) == EmbeddedCorpus(3).document(10**6)
    assert EmbeddedCorpus(3).document(5) != EmbeddedCorpus(4).document(5)


@pytest.mark.parametrize(
    ("name", "content", "field", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": ', "text", "Line 2 of"),
        ("a.jsonl", '{"txt": "x"}', "text", "no text in field 'text'"),
        ("a.jsonl", "[1]", "text", "no text in field"),
        ("a.jsonl", '{"text": 5}', "text", "no text in field"),
        ("a.csv", "x", "text", "cannot be read"),
        ("a.parquet", "not parquet", "text", "not Parquet"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, field, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        everything(read(path, field=field))


def test_a_field_that_is_nearly_right_is_named(tmp_path):
    with pytest.raises(InputError) as caught:
        read(write(tmp_path, ".parquet"), field="txt").document(0)
    assert "did you mean 'text'" in caught.value.details["remedy"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl does not exist"):
        read(tmp_path / "nowhere.jsonl")


@pytest.fixture(params=["gpt2", "llama"])
def tokenizer(request):
    return load(request.getfixturevalue(f"{request.param}_folder")).tokenizer


@pytest.mark.parametrize("per_document", [None, 1])
def test_blocks_never_cross_a_document_and_start_as_a_text_starts(tmp_path, tokenizer, per_document):
    corpus = read(write(tmp_path, ".jsonl"), seed=1)
    length = 12
    opening = opening_tokens(tokenizer)
    assert opening == tokenizer("")["input_ids"]
    blocks = list(document_blocks(corpus, tokenizer, first=0, length=length, per_document=per_document))
    for place, (index, text) in enumerate(everything(corpus)):
        mine = [block for block in blocks if block.place == place]
        assert all(block.document == index for block in mine)
        assert all(block.tokens[: len(opening)] == opening and len(block.tokens) <= length for block in mine)
        own = [token for block in mine for token in block.tokens[len(opening) :]]
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert own == (whole if per_document is None else whole[: length - len(opening)])
        assert [block.offset for block in mine] == [at * (length - len(opening)) for at in range(len(mine))]


def test_blocks_may_begin_at_any_document(tmp_path, tokenizer):
    corpus = read(write(tmp_path, ".jsonl"))
    blocks = list(document_blocks(corpus, tokenizer, first=0, length=12, per_document=None))
    later = list(document_blocks(corpus, tokenizer, first=17, length=12, per_document=None, documents_per_call=3))
    assert later == [block for block in blocks if block.place >= 17]
    assert len(list(islice(later, 3))) == 3


# -------------------------------------------------------------------------------------------------- sampling

TOPICS = {"sea": "ship wave harbour sail anchor", "wood": "oak moss fern branch fox", "sky": "cloud wind rain sun star"}


@pytest.fixture
def topical(tmp_path):
    """Nine documents about the sea for every one about the wood, and one about the sky."""
    names = [("sea",) * 9 + ("wood",), ("sea",) * 9 + ("sky",)]
    lines = []
    for number in range(60):
        for at, name in enumerate(names[number % 2]):
            words = TOPICS[name].split()
            lines.append(f"{name}: " + " ".join(words[(at + number + step) % 5] for step in range(12)))
    path = tmp_path / "topical.jsonl"
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return path


def opened(path, **more):
    settings = CorpusSettings(name="local", source="local", path=path, topics=3, **more)
    return open_corpus(settings, checksum=Checksums.read, progress=progress).source


def test_first_is_the_order_of_the_file(tmp_path):
    path = write(tmp_path, ".jsonl")
    assert [index for index, _ in everything(opened(path, sampling="first"))] == list(range(40))
    assert opened(path, sampling="first", seed=1).recipe() == opened(path, sampling="first", seed=2).recipe()
    assert everything(opened(path)) == everything(read(path))


def test_topics_take_turns_and_nothing_is_lost(topical):
    drawn = everything(opened(topical))
    found = everything(opened(topical, sampling="stratified"))
    assert sorted(found) == sorted(drawn)
    assert found == everything(opened(topical, sampling="stratified"))
    assert [name for name, _, _ in (text.partition(":") for _, text in found[:90])].count("sea") == 30
    for name in TOPICS:  # within a topic, the order is that in which documents were drawn
        assert [one for one in found if one[1].startswith(name)] == [one for one in drawn if one[1].startswith(name)]


def test_behind_the_pool_documents_come_as_they_are_drawn(topical):
    drawn = everything(opened(topical))
    found = everything(opened(topical, sampling="stratified", pool=300))
    assert sorted(found[:300]) == sorted(drawn[:300]) != drawn[:300]
    assert found[300:] == drawn[300:]


def test_topics_do_not_depend_on_threads(topical):
    from threadpoolctl import threadpool_limits

    words = count_words([text for _, text in everything(opened(topical))])
    with threadpool_limits(1):
        alone = topics_of(words, topics=8, seed=0)
    with threadpool_limits(4):
        assert np.array_equal(topics_of(words, topics=8, seed=0), alone)


def test_few_or_empty_documents_can_be_clustered(tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ["", "."]))
    assert len(everything(opened(path, sampling="stratified"))) == 2
    path.write_text("")
    assert everything(opened(path, sampling="stratified")) == []


def test_turns_are_fair():
    labels = np.random.default_rng(0).choice(4, size=200, p=[0.7, 0.2, 0.07, 0.03])
    order = take_turns(labels)
    assert sorted(order) == list(range(200))
    seen = np.cumsum(labels[order][:, None] == np.arange(4), axis=0)
    left = seen[-1] - seen
    for counts, rest in zip(seen, left, strict=True):  # who has some left is never a whole round behind
        assert all(counts[label] >= counts.max() - 1 for label in range(4) if rest[label])
    for label in range(4):
        assert all(one < other for one, other in pairwise(place for place in order if labels[place] == label))


def test_everything_that_changes_the_order_is_in_the_recipe(topical):
    recipes = [
        opened(topical, **more).recipe()
        for more in [
            {}, {"sampling": "first"}, {"seed": 1}, {"sampling": "stratified"}, {"sampling": "stratified", "seed": 1},
            {"sampling": "stratified", "pool": 50},
        ]
    ]  # fmt: skip
    assert len({json.dumps(recipe, sort_keys=True) for recipe in recipes}) == len(recipes)
    assert opened(topical, pool=50).recipe() == opened(topical).recipe()  # a file is shuffled whole


def test_the_embedded_corpus_can_be_stratified_and_does_not_end():
    corpus = StratifiedCorpus(EmbeddedCorpus(0), pool=20, topics=4, seed=0, progress=progress)
    head = [corpus.document(place) for place in range(20)]
    assert sorted(head) == [EmbeddedCorpus(0).document(place) for place in range(20)]
    assert corpus.document(1000) == EmbeddedCorpus(0).document(1000)


@pytest.mark.parametrize(("source", "remedy"), [("local", "corpus.path"), ("hub", "corpus.repository")])
def test_a_source_that_is_not_named_is_asked_for(source, remedy):
    with pytest.raises(InputError) as caught:
        open_corpus(CorpusSettings(name="mine", source=source), checksum=Checksums.read, progress=progress)
    assert remedy in caught.value.details["remedy"]
