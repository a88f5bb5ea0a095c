"""Runs on datasets in other formats: zsRE, and portability questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from factsmith.artifacts.formats import load_table
from factsmith.tasks.model.embedded.world import World
from tests.conftest import load
from tests.runs import artifacts, states

SCORES = {"Eff", "Gen", "Spe", "H"}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Facts of the embedded world, in zsRE's schema."""
    records = []
    for fields in World(people_count=60).records()[:4]:
        rewrite = fields["requested_rewrite"]
        records.append(
            {
                "subject": rewrite["subject"],
                "src": rewrite["prompt"].format(rewrite["subject"]),
                "rephrase": fields["paraphrase_prompts"][0],
                "answers": [rewrite["target_true"]["str"]],
                "alt": rewrite["target_new"]["str"],
                "loc": "nq question: " + fields["neighborhood_prompts"][0],
                "loc_ans": "New York",
                "portability": {"New Question": fields["paraphrase_prompts"][1], "New Answer": "Danish"},
            }
        )
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(records))
    return path


@torch.no_grad()
def accuracy(decoder, prompt: str, answer: str) -> float:
    """Percent of the answer's tokens that plain transformers puts first."""
    start = len(decoder.tokenizer(prompt)["input_ids"])
    tokens = decoder.tokenizer(f"{prompt} {answer}")["input_ids"]
    said = decoder.model(input_ids=torch.tensor([tokens])).logits[0, start - 1 : -1].argmax(-1)
    return 100 * float((said == torch.tensor(tokens[start:])).double().mean())


def test_zsre_and_its_portability_are_run_apart(precomputed, pipeline, store, questions, gpt2_folder):
    given = (f"dataset.path={questions}", "method.batch_size=2")
    report = pipeline("dataset=zsre", *given)
    records = json.loads(questions.read_text())
    decoder = load(gpt2_folder)
    assert set(report.metrics["before"]) == set(report.metrics["after"]) == SCORES
    expected = {
        "Eff": [accuracy(decoder, one["src"], one["answers"][0]) for one in records],
        "Gen": [accuracy(decoder, one["rephrase"], one["answers"][0]) for one in records],
        "Spe": [accuracy(decoder, one["loc"] + "?", one["loc_ans"]) for one in records],
    }
    for name, values in expected.items():
        assert report.metrics["before"][name] == pytest.approx(sum(values) / 4), name
    (scored,) = artifacts(store, "evaluation")
    rows = load_table(scored.path / "zsre.parquet")
    assert len(rows) == 2 * 4 * 3
    after = [row for row in rows.to_pylist() if (row["phase"], row["kind"]) == ("after", "rewrite")]
    before = [row for row in rows.to_pylist() if (row["phase"], row["kind"]) == ("before", "rewrite")]
    assert sum(row["nll"] for row in after) < sum(row["nll"] for row in before)
    assert states(pipeline("dataset=zsre", *given))["evaluation"] == "cached"

    other = pipeline("dataset=zsre-portability", *given)
    assert states(other)["factor"] == "cached"
    assert states(other)["values"] == "built"
    assert set(other.metrics["after"]) == {*SCORES, "Por"}
    asked = [(one["portability"]["New Question"], one["portability"]["New Answer"]) for one in records]
    found = [accuracy(decoder, *one) for one in asked]
    assert other.metrics["before"]["Por"] == pytest.approx(sum(found) / 4)


def test_counterfact_with_portability_of_some(precomputed, pipeline, store, tmp_path):
    records = World(people_count=60).records()[:6]
    records[4]["portability"] = {"New Question": "The friends of her speak", "New Answer": "Danish"}
    path = tmp_path / "cf.json"
    path.write_text(json.dumps(records))
    given = ("dataset=counterfact", f"dataset.path={path}", "dataset.seed=null")
    assert pipeline(*given, "dataset.metrics=[counterfact,portability]").metrics["after"]["Por"] is not None
    (scored,) = artifacts(store, "evaluation")
    assert load_table(scored.path / "portability.parquet")["case_id"].to_pylist() == [4, 4]
    nothing = pipeline(*given, "dataset.limit=3", "dataset.batches=1", "dataset.metrics=[portability]")
    assert nothing.metrics["after"] == {"Por": None}


def test_a_misspelt_metric_and_a_bad_question_are_said(refused, questions, arguments):
    zsre = arguments("dataset=zsre", f"dataset.path={questions}", "dataset.batches=1")
    assert "did you mean 'zsre'" in refused("run", *zsre, "dataset.metrics=[zrse]")
    assert "dataset.path" in refused("run", *arguments("dataset=zsre"))
    records = json.loads(questions.read_text())
    del records[2]["rephrase"]
    questions.write_text(json.dumps(records))
    assert "Record 2 of" in (said := refused("run", *zsre))
    assert "field 'rephrase' is missing" in said
