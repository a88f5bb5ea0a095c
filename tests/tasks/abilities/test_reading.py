"""Examples of every task: their prompts, what labels mean, where they come from, and which are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factsmith.artifacts.errors import InputError
from factsmith.tasks.abilities.reading import select_examples
from factsmith.tasks.abilities.settings import AbilitySettings
from factsmith.tasks.abilities.task import load_tasks

PAIR = {"sentence1": "It rains.", "sentence2": "It is wet."}
QUESTION = {"question": "2 + 2?", "choices": ["3", "4", "5", "6"], "subject": "sums"}

EXAMPLES = {
    "sst2": ({"sentence": "a fine film ", "label": 1}, "Review :a fine film \nSentiment :", "positive"),
    "mrpc": (
        {**PAIR, "label": 1},
        "Are the sentences paraphrases of each other.\nSentence 1: It rains.\nSentence 2: It is wet.\nAnswer:",
        "Yes",
    ),
    "cola": (
        {"sentence": "Him sings.", "label": 0},
        "Is this sentence linguistically acceptable?\nSentence: Him sings.\nAnswer:",
        "No",
    ),
    "rte": ({**PAIR, "label": 0}, "It rains.\nquestion: It is wet. True or False?\nanswer:", "True"),
    "nli": (
        {**PAIR, "label": "not_entailment"}, "It rains. entails the It is wet. True or False? Answer:", "False",
    ),
    "mmlu": (
        {**QUESTION, "answer": 1}, "Question: 2 + 2?\n(A) 3\n(B) 4\n(C) 5\n(D) 6\nAnswer:", "B",
    ),
}  # fmt: skip
"""A record of each task, its prompt and the word that is correct. RTE's 0 is entailment in GLUE."""


def write(folder, name: str, *records) -> AbilitySettings:
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    return AbilitySettings(tasks=[name], path=folder)


@pytest.mark.parametrize("name", EXAMPLES)
def test_prompts_and_labels(tmp_path, name):
    record, prompt, word = EXAMPLES[name]
    (task,) = load_tasks([name])
    (found,) = select_examples(task, write(tmp_path, name, record))
    assert (found.prompt, task.labels[found.label]) == (prompt, word)


def test_labels_of_nli_may_be_numbers(tmp_path):
    (task,) = load_tasks(["nli"])
    settings = write(tmp_path, "nli", *({**PAIR, "label": one} for one in (0, 1, "entailment")))
    assert sorted(one.label for one in select_examples(task, settings)) == [0, 0, 1]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("sst2", {"label": -1}, "'label' is not a label"), ("sst2", {"label": True}, "got: True"),
        ("sst2", {"sentence": " "}, "'sentence' is empty"), ("rte", {"sentence2": None}, "'sentence2' is missing"),
        ("nli", {"label": "neutral"}, "'entailment' or 'not_entailment'"),
        ("mmlu", {"choices": ["3", "4"]}, "'choices' is not a list of four texts"), ("mmlu", {"answer": 4}, "got: 4"),
    ],
)  # fmt: skip
def test_a_bad_record_names_its_file_and_line(tmp_path, name, change, said):
    good = EXAMPLES[name][0]
    (task,) = load_tasks([name])
    with pytest.raises(InputError, match=rf"Record 1 of .*{name}\.jsonl \(counted from 0; line 2\)") as refusal:
        select_examples(task, write(tmp_path, name, good, {**good, **change}))
    assert said in str(refusal.value)


def test_the_selection_is_drawn_by_a_seed(tmp_path):
    (task,) = load_tasks(["sst2"])
    settings = write(tmp_path, "sst2", *({"sentence": f"number {one}", "label": 0} for one in range(30)))
    drawn = {
        (seed, most): [
            one.prompt for one in select_examples(task, settings.model_copy(update={"seed": seed, "examples": most}))
        ]
        for seed, most in ((0, 10), (0, 20), (1, 10), (0, None))
    }
    assert drawn[0, 10] == drawn[0, 20][:10] != drawn[1, 10]
    assert sorted(map(len, drawn.values())) == [10, 10, 20, 30]


PROGRAM = """
import json
from factsmith.tasks.abilities.reading import select_examples
from factsmith.tasks.abilities.settings import AbilitySettings
from factsmith.tasks.abilities.task import load_tasks

(task,) = load_tasks(["sst2"])
print(json.dumps({one.prompt: one.label for one in select_examples(task, AbilitySettings(tasks=["sst2"]))}))
"""


def test_the_hub_has_them_too(hub, tmp_path):
    """In a process of its own, since addresses are read when libraries are imported."""
    folder = tmp_path / "repository" / "sst2"
    folder.mkdir(parents=True)
    rows = {"sentence": ["so dull", "a fine film"], "label": [0, 1], "idx": [0, 1]}
    pq.write_table(pa.table(rows), folder / "validation-00000-of-00001.parquet")
    pq.write_table(pa.table(rows), folder / "test-00000-of-00001.parquet")
    card = "configs:\n- config_name: sst2\n  data_files:\n"
    card += "".join(f"  - split: {one}\n    path: sst2/{one}-*\n" for one in ("validation", "test"))
    (folder.parent / "README.md").write_text(f"---\n{card}---\n")
    hub.publish("datasets/nyu-mll/glue", folder.parent)
    given = {
        "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **given}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "Review :so dull\nSentiment :": 0, "Review :a fine film\nSentiment :": 1,
    }  # fmt: skip
    assert {name for name in hub.fetched() if name.endswith("parquet")} == {"validation-00000-of-00001.parquet"}


def test_a_hub_that_is_not_there_is_told_with_the_remedy(hub):
    (task,) = load_tasks(["sst2"])
    with pytest.raises(InputError, match=r"set abilities\.path to a folder with sst2\.jsonl"):
        select_examples(task, AbilitySettings(tasks=["sst2"]))


def test_real_examples_are_read(shared):
    settings = AbilitySettings(tasks=list(EXAMPLES), path=shared / "data" / "glue", examples=None)
    counts = {task.name: len(select_examples(task, settings)) for task in load_tasks(list(EXAMPLES))}
    assert counts == {"sst2": 856, "mrpc": 258, "rte": 262, "cola": 644, "nli": 2489, "mmlu": 1516}
