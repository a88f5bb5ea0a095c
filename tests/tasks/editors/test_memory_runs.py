"""Runs of editors with a memory: sequences that are interrupted, exports, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.edit import edit
from factsmith.tasks.decoder.generation import continuations
from factsmith.tasks.editors.load import load_edited
from factsmith.tasks.editors.methods.grace import Grace
from factsmith.tasks.editors.methods.wise import Wise
from factsmith.tasks.editors.stage import read_edit
from factsmith.tasks.planning.plan import plan
from factsmith.tasks.planning.run import Run
from tests.conftest import load
from tests.runs import artifacts, states
from tests.tasks.editors.test_memory import prompts_of

EDITORS = {"grace": Grace, "wise": Wise}
QUICK = {
    "grace": ["method=grace", "method.training.steps=3"],
    "wise": ["method=wise", "method.training.steps=3", "method.wise.shard=2", "method.wise.texts=2"],
}


def words(name: str, *more: str) -> list[str]:
    return [*QUICK[name], "method.layers=[1]", "method.batch_size=1", "dataset.batches=3", *more]


@pytest.mark.parametrize("name", ["wise", pytest.param("grace", marks=pytest.mark.slow)])
def test_an_interrupted_sequence_ends_in_the_same_bits(pipeline, home, name, monkeypatch):
    given = words(name, "method.sequence.history=none", "method.sequence.evaluate_at=[3]", "drift.edits=0")
    written, write = [], EDITORS[name].write

    def interrupted(self, decoder, before, task):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(task)
        return write(self, decoder, before, task)

    monkeypatch.setattr(EDITORS[name], "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline(*given)
    written.clear()
    pipeline(*given)
    assert len(written) == 1
    resumed = {one.address: one.manifest.content for one in artifacts(Store(home), "edit")}
    monkeypatch.setattr(EDITORS[name], "write", write)
    monkeypatch.setenv("FACTSMITH_HOME", str(home / "again"))
    report = pipeline(*given)
    straight = {one.address: one.manifest.content for one in artifacts(Store(home / "again"), "edit")}
    assert straight.items() <= resumed.items()
    assert states(report)["inference"] == "built"
    assert report.inference.parameters > 0
    assert report.inference.flop > 0
    assert report.inference.time > 0
    logged = MlflowClient(f"sqlite:///{home / 'again' / 'mlflow.db'}").get_run(report.mlflow_run_id).data.metrics
    assert logged["inference/parameters"] == report.inference.parameters
    assert logged["inference/time"] == report.inference.time


def test_an_export_has_the_unedited_model_and_the_memory(plain_flows, arguments, home, gpt2_folder, tmp_path):
    out, given = tmp_path / "edited", words("grace", "dataset.batches=1", "method.batch_size=4")
    edit(compose(arguments(*given)), out)
    about = json.loads((out / "factsmith.json").read_text())
    assert "load_edited" in about["load"]
    assert len(about["facts"]) == 4
    assert not (out / "config.json").exists()  # transformers cannot take the unedited model for the edited one
    assert not [file for file in out.rglob("*") if file.suffix in (".bin", ".pt", ".pkl")]
    decoder = load(gpt2_folder)
    assert all(
        torch.equal(one, other)
        for one, other in zip(load(out / "base").model.parameters(), decoder.model.parameters(), strict=True)
    )
    (artifact,) = artifacts(Store(home), "edit")
    prompts = prompts_of(decoder, [fact["template"].replace("{}", fact["subject"]) for fact in about["facts"]])
    with read_edit(artifact).applied(decoder):
        wanted = continuations(decoder, prompts, [len(prompt) + 3 for prompt in prompts], most_tokens=4096)
    model = load_edited(out)
    model.generation_config.eos_token_id = None
    found = [
        model.generate(torch.tensor([prompt]), max_new_tokens=3, do_sample=False, pad_token_id=0)[0, -3:].tolist()
        for prompt in prompts
    ]
    assert found == wanted


def test_what_a_memory_cannot_do_is_refused_before_a_run(refused, arguments):
    several = refused("run", *arguments(*words("grace", "method.layers=[0,1]")))
    assert "one layer" in several
    blocks = refused("run", *arguments("method=serac", "method.layers=[1]", "method.serac.blocks=5"))
    assert "at most 4" in blocks
    history = refused("run", *arguments(*words("wise", "method.sequence.history=full")))
    assert "keeps no history" in history
    harness = refused("run", *arguments(*words("grace", "abilities.lm_eval.tasks=[arc_easy]")))
    assert "abilities.tasks" in harness
    contexts = refused("run", *arguments(*words("grace", "method.context_seed=3")))
    assert "method.context_seed" in contexts


def test_a_plan_names_the_stages_of_the_run(pipeline, arguments, home: Path):
    given = words("grace", "dataset.batches=1")
    with_plan = [stage.name for stage in plan(Run(compose(arguments(*given)), Store(home)))]
    assert with_plan == list(states(pipeline(*given)))
