"""Corpora from the hub: how much is read, what identifies the data, and what cannot be read."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import snapshot_download

from factsmith.artifacts.checksums import Checksums
from factsmith.artifacts.errors import InputError
from factsmith.tasks.corpus.hub_dataset import Dataset
from factsmith.tasks.corpus.sources import hub as corpora_hub
from factsmith.tasks.corpus.sources.hub import open_hub
from factsmith.tasks.model.hub import retry, snapshot
from factsmith.tasks.model.hub.repository import Repository
from tests.fake_hub import TOKEN

TEXTS = ["  \n" if number % 10 == 3 else f"Document {number} says Zürich." for number in range(120)]
KEPT = [(index, text) for index, text in enumerate(TEXTS) if text.strip()]


def write(folder: Path, kind: str = "parquet", texts: list[str] = TEXTS, **more) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    half = len(texts) // 2
    for number, part in enumerate([texts[:half], texts[half:]]):
        path = folder / f"train-{number:05}-of-00002.{kind}"
        if kind == "parquet":
            table = pa.table(
                {"title": [f"{text} title" * 5 for text in part], "text": part, "number": range(len(part))}
            )
            pq.write_table(table, path, row_group_size=more.get("rows", 7))
        else:
            path.write_text("\n".join(json.dumps({"text": text, "number": 1}) for text in part))
    return folder


def read(folder: Path | str, **more):
    given = {
        "revision": None, "subset": None, "split": "train", "field": "text", "seed": None, "pool": 30,
        "checksum": Checksums.read,
    }  # fmt: skip
    return open_hub(str(folder), **{**given, **more})


def everything(corpus) -> list[tuple[int, str]]:
    found = []
    while (document := corpus.document(len(found))) is not None:
        found.append(document)
    return found


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_rows_come_once_and_in_order_without_the_blank_ones(tmp_path, kind):
    assert everything(read(write(tmp_path, kind))) == KEPT


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_seed_shuffles_and_repeats(tmp_path, kind):
    folder = write(tmp_path, kind)
    found = everything(read(folder, seed=1))
    assert sorted(text for _, text in found) == sorted(text for _, text in KEPT)
    assert found == everything(read(folder, seed=1))
    assert [text for _, text in found] != [text for _, text in KEPT]
    assert [text for _, text in found] != [text for _, text in everything(read(folder, seed=2))]


@pytest.mark.parametrize("seed", [None, 3])
def test_a_document_is_the_same_whatever_was_asked_before(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(corpora_hub, "_RECENT", 8)
    folder = write(tmp_path)
    expected = everything(read(folder, seed=seed))
    corpus = read(folder, seed=seed)
    for place in [5, 0, 107, 101, 2, 60, 59, 50, 107]:
        assert corpus.document(place) == expected[place]
    assert corpus.document(len(expected)) is None
    assert corpus.document(0) == expected[0]


def test_going_back_a_little_reads_nothing_again(tmp_path, monkeypatch):
    corpus = read(write(tmp_path))
    corpus.document(100)
    monkeypatch.setattr(type(corpus), "_documents", lambda _: pytest.fail("the stream was started again"))
    assert corpus.document(3) == KEPT[3]


def test_the_recipe_follows_content_and_order_and_not_place(tmp_path):
    here, there = write(tmp_path / "here"), write(tmp_path / "there")
    assert read(here).recipe() == read(there).recipe()
    assert str(tmp_path) not in json.dumps(read(here).recipe())
    # A pool changes nothing that stays in order.
    assert read(here, pool=9).recipe() == read(here).recipe()
    recipes = [
        read(here), read(here, seed=0), read(here, seed=1), read(here, seed=1, pool=9), read(here, field="title"),
        read(write(tmp_path / "other", texts=TEXTS[::-1])),
    ]  # fmt: skip
    assert len({json.dumps(one.recipe(), sort_keys=True) for one in recipes}) == len(recipes)


def test_subsets_and_splits(tmp_path):
    write(tmp_path / "one")
    pq.write_table(pa.table({"text": ["only"]}), tmp_path / "two.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files:\n  - split: train\n    path: one/train-00000*\n"
        "  - split: test\n    path: one/train-00001*\n- config_name: two\n  data_files: two.parquet\n---\n"
    )
    assert everything(read(tmp_path, subset="two")) == [(0, "only")]
    both = everything(read(tmp_path, subset="one", split="train+test"))
    assert [text for _, text in both] == [text for _, text in KEPT]
    assert len(everything(read(tmp_path, subset="one"))) == len(KEPT) / 2
    with pytest.raises(InputError, match="several subsets") as caught:
        read(tmp_path)
    assert caught.value.details["expected"] == "one, two"
    with pytest.raises(InputError, match="no subset 'tow'") as caught:
        read(tmp_path, subset="tow")
    assert "'two'" in caught.value.details["remedy"]
    with pytest.raises(InputError, match="no split 'tset'") as caught:
        read(tmp_path, subset="one", split="tset")
    assert "'test'" in caught.value.details["remedy"]


@pytest.mark.parametrize(
    ("files", "more", "message"),
    [
        ({}, {}, "holds no data"),
        ({"a.parquet": "garbage"}, {}, "cannot be read"),
        ({"a.jsonl": '{"text": "x"}\n{"text": '}, {}, "cannot be read"),
        ({"a.jsonl": '{"text": "x"}'}, {"field": "txt"}, "no field 'txt'"),
        ({"a.jsonl": '{"text": 5}'}, {}, "holds no text"),
        ({"{name}.py": "raise SystemExit"}, {}, "is a script"),
        ({"a.jsonl": '{"text": "x"}'}, {"revision": "main"}, "has no revisions"),
        ({"a.jsonl": '{"text": "x"}'}, {"subset": "other"}, "no subset 'other'"),
    ],
)
def test_folders_that_cannot_be_read(tmp_path, files, more, message):
    for name, content in files.items():
        (tmp_path / name.format(name=tmp_path.name)).write_text(content)
    with pytest.raises(InputError, match=message):
        everything(read(tmp_path, **more))


def test_a_column_that_is_nearly_right_is_named_at_once(tmp_path):
    with pytest.raises(InputError, match="no field 'txt'") as caught:
        read(write(tmp_path), field="txt")
    assert "did you mean 'text'" in caught.value.details["remedy"]


@pytest.mark.parametrize("name", ["json", "no/such/folder", "/nowhere", "a b/c", "~/nowhere"])
def test_names_that_are_neither_folder_nor_dataset(name):
    with pytest.raises(InputError, match="There is no dataset"):
        read(name)


def test_a_file_belongs_to_another_choice(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(InputError, match="is a file") as caught:
        read(tmp_path / "a.jsonl")
    assert "corpus=local" in caught.value.details["remedy"]


def test_a_hub_that_does_not_answer_is_asked_again_and_later_each_time(monkeypatch):
    waited, asked = [], []
    monkeypatch.setattr(retry.time, "sleep", waited.append)

    def silent(*_, **__):
        asked.append(1)
        raise ConnectionError("no route")

    monkeypatch.setattr(snapshot.HfApi, "repo_info", silent)
    with pytest.raises(InputError, match="does not answer") as caught:
        read("someone/some-text")
    assert waited == [1, 2, 4, 8]
    assert len(asked) == 5
    assert "set corpus.repository=DIR" in caught.value.details["remedy"]


# ---------------------------------------------------------------------------------------- a hub of our own

NAME = "datasets/someone/some-text"

PROGRAM = """
import json, sys
from pathlib import Path
from factsmith.artifacts.checksums import Checksums
from factsmith.artifacts.errors import InputError
from factsmith.tasks.corpus.sources.hub import open_hub
from factsmith.tasks.model.hub import retry

retry.WAITS = (0.01, 0.01)
for words in json.load(sys.stdin):
    count, name = words.pop("count", 3), words.pop("name", "someone/some-text")
    given = dict(revision=None, subset=None, split="train", field="text", seed=None, pool=60, checksum=Checksums.read)
    try:
        corpus = open_hub(name, **given | words)
        recipe = corpus.recipe()
        answer = {"recipe": recipe, "documents": [corpus.document(place) for place in range(count)]}
    except InputError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def ask(tmp_path, hub):
    """Read from the hub in a process of its own, since addresses are read when libraries are imported."""

    def run(*words, **environment):
        given = {
            "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], input=json.dumps(words), env={**os.environ, **given, **environment},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr  # a reader that fetches ahead crashes when its process leaves
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_a_few_documents_of_a_gated_dataset_cost_a_few_row_groups(tmp_path, hub, ask):
    draw = random.Random(0)
    texts = [f"Document {number} {draw.randbytes(4000).hex()}" for number in range(3000)]
    folder = write(tmp_path / "data", texts=texts, rows=50)
    whole = sum(path.stat().st_size for path in folder.iterdir())
    commit = hub.publish(NAME, folder)
    hub.gated.add(NAME)
    (few,) = ask({"count": 60}, HF_TOKEN=TOKEN)
    assert [text for _, text in few["documents"]] == texts[:60]
    assert few["recipe"]["commit"] == commit
    assert 60 * 4000 < hub.sent < 0.2 * whole, (hub.sent, whole)


def test_commits_errors_and_what_is_left_offline(tmp_path, hub, ask):
    for name in ("then", "now"):
        (write(tmp_path / name) / "README.md").write_text(f"# Some text, {name}")
    then, now = hub.publish(NAME, tmp_path / "then", "old"), hub.publish(NAME, tmp_path / "now")
    hub.busy = 1  # the first answer is "come back later"
    first, old, missing, other, subset, shuffled = ask(
        {}, {"revision": "old"}, {"revision": "lost"}, {"name": "someone/other"}, {"subset": "lost"},
        {"seed": 5, "count": 100},
    )  # fmt: skip
    assert first["recipe"]["commit"] == now
    assert first["documents"] == [list(one) for one in KEPT[:3]]
    assert old["recipe"] == {**first["recipe"], "commit": then}
    assert "no such revision" in missing["error"]
    assert "There is no dataset someone/other" in other["error"]
    assert "no subset 'lost'" in subset["error"]

    asked = hub.asked.total()
    nothing, known = ask({}, {"count": 0}, HF_HUB_OFFLINE="1")
    assert "without its data" in nothing["error"]
    assert known == {"recipe": first["recipe"], "documents": []}  # enough to find what has been tokenized
    assert hub.asked.total() == asked

    def download(files: str) -> None:
        cache = tmp_path / "cache" / "hub"
        snapshot_download("someone/some-text", repo_type="dataset", allow_patterns=files, cache_dir=cache)

    download("train-00000*")
    (partial,) = ask({}, HF_HUB_OFFLINE="1")
    assert "without 1 of its files such as train-00001-of-00002.parquet" in partial["error"]
    download("train-*")
    asked = hub.asked.total()
    assert ask({}, {"seed": 5, "count": 100}, HF_HUB_OFFLINE="1") == [first, shuffled]
    assert hub.asked.total() == asked


def test_datasets_of_the_hub_that_cannot_be_read(tmp_path, hub, ask):
    for name, suffix, content in [("empty", "md", "#"), ("script", "py", "exit()"), ("garbled", "parquet", "x" * 99)]:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.{suffix}").write_text(content)
        hub.publish(f"datasets/someone/{name}", tmp_path / name)
    (write(tmp_path / "gated") / "README.md").write_text("# Some text")
    hub.publish("datasets/someone/gated", tmp_path / "gated")
    hub.gated.add("datasets/someone/gated")
    names = ("empty", "script", "garbled", "gated")
    empty, script, garbled, gated = ask(*({"name": f"someone/{name}"} for name in names))
    assert "holds no data" in empty["error"]
    assert "is a script" in script["error"]
    assert "cannot be read" in garbled["error"]
    assert "hf auth login" in gated["error"]


def test_what_the_network_does_while_text_streams_is_explained():
    repository = Repository("dataset", "someone/some-text", None, "corpus.repository")
    remote = Dataset(repository.identifier, snapshot.Snapshot(repository, "a" * 40), None)
    with pytest.raises(InputError, match="does not answer"), remote.errors_explained():
        raise OSError("read failed") from ConnectionError("no route")
    with pytest.raises(ZeroDivisionError), remote.errors_explained():
        1 // 0  # noqa: B018
