"""Corpora from a folder in the layout of a hub dataset, through the pipeline."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_table
from factsmith.flows.configuration.choices import choices
from factsmith.flows.configuration.composition import compose
from factsmith.flows.precompute import precompute
from factsmith.tasks.corpus import stage as tokens_stage
from factsmith.tasks.corpus.sources.embedded import EmbeddedCorpus
from factsmith.tasks.corpus.sources.local import TextCorpus
from tests.runs import artifacts, contents, states


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "dataset"
    path.mkdir()
    texts = [EmbeddedCorpus(0).document(place)[1] for place in range(300)]
    for number in range(3):
        part = ["", *texts[number * 100 : number * 100 + 100]]
        pq.write_table(pa.table({"text": part}), path / f"train-0000{number}-of-00003.parquet", row_group_size=10)
    return path


def words_of(store) -> list[list[int]]:
    shards = sorted(artifacts(store, "tokens"), key=lambda one: one.key["shard"])
    return [block for one in shards for block in load_table(one.path / "blocks.parquet")["tokens"].to_pylist()]


@pytest.mark.parametrize("sampling", ["first", pytest.param("shuffled", marks=pytest.mark.slow), "stratified"])
def test_a_folder_becomes_keys_in_any_order(plain_flows, home, store, arguments, folder, sampling, monkeypatch):
    monkeypatch.setattr(tokens_stage, "SHARD_TOKENS", 500)  # every shard asks again for what the last one read ahead
    given = arguments(
        "corpus=hub", f"corpus.repository={folder}", f"corpus.sampling={sampling}", "corpus.pool=40",
        *(["corpus.topics=4"] if sampling == "stratified" else []),
        "corpus.dynamic_multiplier=50", "method.layers=[0]",
    )  # fmt: skip
    report = precompute(compose(given))
    assert states(report)["keys"] == "built"
    assert len(artifacts(store, "tokens")) > 2
    blocks = words_of(store)
    assert len({tuple(block) for block in blocks}) == len(blocks)
    before = contents(store)
    assert set(states(precompute(compose(given))).values()) == {"cached"}
    assert contents(store) == before


def test_a_dataset_that_is_too_small_is_named(plain_flows, home, arguments, folder):
    given = arguments("corpus=hub", f"corpus.repository={folder}", "corpus.dynamic_multiplier=100000")
    with pytest.raises(InputError, match="dataset is too small"):
        precompute(compose(given))


def test_nothing_is_left_behind_by_a_dataset_that_is_not_there(plain_flows, home, arguments, tmp_path):
    with pytest.raises(InputError, match="There is no dataset"):
        precompute(compose(arguments("corpus=hub", f"corpus.repository={tmp_path / 'nowhere'}")))
    assert not home.exists() or not list(home.rglob("manifest.json"))


def test_choices_of_the_hub():
    assert {"hub", "wikipedia", "wikitext"} <= set(choices("corpus"))
    assert compose(["corpus=wikipedia"]).corpus.subset == "20231101.en"
    assert compose(["corpus=wikitext"]).corpus.repository == "Salesforce/wikitext"
    with pytest.raises(InputError, match=r"corpus\.repository must be given"):
        compose(["corpus=hub"])


def test_a_corpus_that_is_written_to_while_it_is_read_is_refused(pipeline, store, tmp_path, monkeypatch):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(f"The sport of number {number} is chess." for number in range(500)))
    read = TextCorpus.text

    def changed_meanwhile(corpus, index):
        path.write_text(path.read_text().replace("chess", "rugby"))
        return read(corpus, index)

    monkeypatch.setattr(TextCorpus, "text", changed_meanwhile)
    with pytest.raises(InputError, match="corpus=local was written to while it was read"):
        pipeline("corpus=local", f"corpus.path={path}")
    assert not artifacts(store, "tokens")
