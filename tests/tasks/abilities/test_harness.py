"""Tasks of lm-eval on a model in memory, compared with plain transformers and with lm-eval's own command line."""

from __future__ import annotations

import json
import random
import sys

import numpy as np
import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.composition import compose, compose_again
from factsmith.flows.edit import edit
from factsmith.flows.evaluate import evaluate
from factsmith.tasks.abilities import harness
from factsmith.tasks.abilities.settings import LmEvalSettings
from factsmith.tasks.tracking.runs import find_run
from tests.conftest import load, load_plain
from tests.runs import states

YAML = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Review: {{{{text}}}}\\nSentiment:"
doc_to_choice: [bad, good]
doc_to_target: label
metric_list:
  - metric: acc
metadata: {{version: {version}}}
"""
ROWS = [{"text": f"{'dull' if one % 3 else 'fine'} film {one}", "label": int(one % 2)} for one in range(10)]


def write(folder, *, name: str = "reviews", version: float = 1.0, rows=ROWS):
    """A folder with a task of the user's."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    (folder / f"{name}.yaml").write_text(YAML.format(name=name, data=data, version=version))
    return folder


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """lm-eval, with a cache of its own and without a hub."""
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@torch.no_grad()
def accuracy(folder) -> float:
    """The share of reviews whose label has the higher log-likelihood, by plain transformers."""
    from transformers import AutoTokenizer

    model, tokenizer, right = load_plain(folder), AutoTokenizer.from_pretrained(folder), 0
    for row in ROWS:
        prompt = f"Review: {row['text']}\nSentiment:"
        start, likelihoods = len(tokenizer(prompt)["input_ids"]), []
        for word in ("bad", "good"):
            tokens = tokenizer(f"{prompt} {word}", return_tensors="pt")["input_ids"]
            scores = model(tokens).logits[0, start - 1 : -1].log_softmax(-1)
            likelihoods.append(float(scores.gather(1, tokens[0, start:, None]).sum()))
        right += likelihoods.index(max(likelihoods)) == row["label"]
    return right / len(ROWS)


def test_an_edited_model_in_memory_is_the_exported_one(
    installed, pipeline, home, arguments, gpt2_folder, tmp_path, store
):
    more = ["dataset.batches=1", "method.preservation_weight=0.01", "method.value.steps=8"]
    first = pipeline(*more)
    folder = write(tmp_path / "tasks")
    past = find_run(home, first.mlflow_run_id)
    given = ["abilities.lm_eval.tasks=[reviews]", f"abilities.lm_eval.include={folder}"]

    def again(*settings):
        return evaluate(compose_again(past.content, [*given, *settings]), past.id)

    report = again()
    edit(compose(arguments(*more)), tmp_path / "edited")
    (found,) = report.lm_eval
    assert (found.name, found.examples, found.edits) == ("reviews acc", 10, 1)
    assert (found.before, found.after) == (accuracy(gpt2_folder), accuracy(tmp_path / "edited"))
    assert find_run(home, report.mlflow_run_id).metrics["after/lm-eval reviews acc"] == found.after

    assert states(again())["lm-eval"] == "cached"
    assert again().lm_eval == report.lm_eval
    (fewer,) = again("abilities.lm_eval.limit=4").lm_eval
    assert fewer.examples == 4
    write(tmp_path / "tasks", version=2.0)
    assert states(again())["lm-eval"] == "built"
    write(tmp_path / "tasks", version=2.0, rows=[{**row, "label": 1 - row["label"]} for row in ROWS])
    (other,) = again().lm_eval
    assert (other.before, other.after) == pytest.approx((1 - found.before, 1 - found.after))


def test_seeds_and_tokenizer_are_left_as_they_were(installed, gpt2_folder, tmp_path):
    decoder, settings = load(gpt2_folder), LmEvalSettings(tasks=["reviews"], include=write(tmp_path / "tasks"))
    decoder.tokenizer.pad_token = None
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    (row,) = harness.run_harness(decoder, "reviews", settings, most_tokens=200)  # two texts in a pass
    assert (row["task"], row["metric"], row["value"]) == ("reviews", "acc", accuracy(gpt2_folder))
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert decoder.tokenizer.pad_token is None


@pytest.mark.slow
def test_its_own_command_line_agrees(installed, pipeline, home, arguments, tmp_path, monkeypatch):
    """lm-eval on the exported model: the same numbers. It reads the index of all its tasks, which takes long."""
    folder, more = write(tmp_path / "tasks"), ["dataset.batches=1"]
    given = ["abilities.lm_eval.tasks=[reviews]", f"abilities.lm_eval.include={folder}"]
    (found,) = pipeline(*more, *given).lm_eval
    edit(compose(arguments(*more)), tmp_path / "edited")
    from lm_eval.__main__ import cli_evaluate

    words = [
        "lm-eval", "run", "--model", "hf", "--model_args", f"pretrained={tmp_path / 'edited'},dtype=float32",
        "--tasks", "reviews", "--include_path", str(folder), "--output_path", str(tmp_path / "out"), "--device", "cpu",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    cli_evaluate()
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())["results"]["reviews"]
    assert found.after == results["acc,none"]
    assert found.stderr_after == pytest.approx(results["acc_stderr,none"])


def test_what_is_refused(installed, tmp_path):
    folder = write(tmp_path / "tasks")
    (folder / "broken.yaml").write_text(YAML.format(name="broken", data=tmp_path / "gone.jsonl", version=1))
    with pytest.raises(InputError, match="broken of lm-eval cannot be loaded") as refusal:
        harness.load_harness(LmEvalSettings(tasks=["broken"], include=folder))
    assert "hub" in refusal.value.details["remedy"]
    with pytest.raises(InputError, match="is not a folder"):
        harness.load_harness(LmEvalSettings(tasks=["reviews"], include=tmp_path / "nowhere"))


def test_an_unknown_task_is_refused(installed, tmp_path, monkeypatch):
    own = harness._index(write(tmp_path / "tasks"), include_defaults=False)
    monkeypatch.setattr(harness, "_index", lambda include, *, include_defaults: own)  # all tasks take long to read
    with pytest.raises(InputError, match="has no task 'review'") as refusal:
        harness.load_harness(LmEvalSettings(tasks=["review"]))
    assert "did you mean 'reviews'" in refusal.value.details["remedy"]


def test_without_lm_eval(refused, arguments, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    message = refused("run", *arguments("abilities.lm_eval.tasks=[arc_easy]"))
    assert "lm-eval is not installed" in message
    assert "pip install 'factsmith[lm-eval]'" in message
