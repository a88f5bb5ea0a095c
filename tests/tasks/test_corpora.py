"""Corpora: order, blocks, and files that cannot be read."""

from __future__ import annotations

import json
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factsmith.artifacts.checksums import Checksums
from factsmith.artifacts.errors import InputError
from factsmith.tasks.corpora.blocks import document_blocks, opening_tokens
from factsmith.tasks.corpora.embedded import EmbeddedCorpus
from factsmith.tasks.corpora.local import open_local
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
        ("a.jsonl", '{"text": "x"}\n{"text": ', "text", "Line 1 of"),
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
    later = list(document_blocks(corpus, tokenizer, first=17, length=12, per_document=None, documents_at_once=3))
    assert later == [block for block in blocks if block.place >= 17]
    assert len(list(islice(later, 3))) == 3
