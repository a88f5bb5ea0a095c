"""Deltas and the ledger as a user has them: export, apply, undo, log, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import load_plain
from tests.runs import tiny_arguments

ADA = {"subject": "Mara Flousano", "prompt": "{} speaks", "target_new": "Danish"}
FACTS = [
    ADA,
    {"subject": "Iric Vezer", "prompt": "The sport that {} practises is", "target_new": "tennis"},
    {"subject": "Pisel Skapek", "prompt": "{} lives in", "target_new": "Oslo"},
]
QUICK = "method.preservation=identity"
"""Needs no corpus."""

LATER = [{**ADA, "target_new": "Arabic"}]


@pytest.fixture
def write(factsmith, plain_flows, gpt2_folder, tmp_path) -> Callable[..., str]:
    """Writes facts into the tiny GPT-2, or into another folder. Returns the id of the run."""

    def call(name: str, facts: list, *more: str, model: Path | None = None) -> str:
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(facts))
        given = [one for one in tiny_arguments(model or gpt2_folder, *more) if not one.startswith("dataset")]
        if not any(one.startswith("method.batch_size=") for one in more):
            given = [one for one in given if not one.startswith("method.batch_size=")]
        result = factsmith("edit", file, *given, "--json")
        assert result.code == 0, result
        return json.loads(result.out)["mlflow_run_id"]

    return call


@pytest.fixture
def ok(factsmith) -> Callable[..., str]:
    """Runs a command that must succeed. Returns what it prints."""

    def call(*arguments: object) -> str:
        result = factsmith(*arguments)
        assert result.code == 0, result
        return result.out

    return call


@pytest.fixture
def no(factsmith) -> Callable[..., str]:
    """Runs a command that must exit with code 2. Returns its message."""

    def call(*arguments: object) -> str:
        result = factsmith(*arguments)
        assert result.code == 2, result
        assert result.out == ""
        assert "Traceback" not in result.err
        return result.err

    return call


def tensors(folder: Path) -> dict[str, bytes]:
    stored = load_file(folder / "model.safetensors")
    return {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in stored.items()}


def test_deltas_are_stacked_listed_and_undone(write, ok, no, gpt2_folder, tmp_path):
    one, edited, two, both = (tmp_path / name for name in ("one", "edited", "two", "both"))
    base = {name: one.numpy().tobytes() for name, one in load_plain(gpt2_folder).state_dict().items()}
    first = write("first", FACTS, QUICK)
    assert "delta of edit/" in ok("export", first, "--to", "delta", "--out", one)
    said = ok("apply", one, "--model", gpt2_folder, "--out", edited)
    assert "1 delta applied: the weights are those of the edit, bit for bit." in said
    ok("export", first, "--out", tmp_path / "checkpoint")
    assert tensors(edited) == tensors(tmp_path / "checkpoint")
    assert (edited / "ledger.json").read_bytes() == (tmp_path / "checkpoint" / "ledger.json").read_bytes()

    # The edited model is edited again. The ledger goes on, and a later fact overwrites an earlier one.
    second = write("second", LATER, QUICK, model=edited)
    ok("export", second, "--to", "delta", "--out", two)
    ok("export", second, "--out", tmp_path / "checkpoint2")
    report = json.loads(ok("apply", one, two, "--model", gpt2_folder, "--out", both, "--json"))
    assert report["exact"]
    assert report["facts"] == 4
    ((old, new),) = report["contradictions"]
    assert (old["target_new"], new["target_new"], new["number"]) == ("Danish", "Arabic", 4)
    assert tensors(both) == tensors(tmp_path / "checkpoint2")
    listed = json.loads(ok("log", both, "--json"))
    assert [one["run"] for one in listed["facts"]] == [first] * 3 + [second]
    assert [one["later"] for one in listed["facts"] if one["overwritten"]] == [4]
    assert {one["holds"] for one in listed["facts"]} <= {True, False}
    assert listed["models"][0]["edits"][0]["scores"]["facts"] == 3
    assert json.loads(ok("log", second, "--json"))["facts"] == listed["facts"]
    assert json.loads(ok("log", gpt2_folder, "--json"))["facts"] == listed["facts"]
    table = ok("log", both)
    assert "overwritten by #4" in table
    assert f"run {second[:8]}" in table

    # Both are undone, or the last one.
    assert "2 deltas undone: the weights are those before, bit for bit." in ok(
        "undo", both, one, two, "--out", tmp_path / "base"
    )
    assert {name: base[name] for name in tensors(tmp_path / "base")} == tensors(tmp_path / "base")
    ok("undo", both, two, "--out", tmp_path / "back")
    assert tensors(tmp_path / "back") == tensors(edited)
    assert len(json.loads(ok("log", tmp_path / "back", "--json"))["facts"]) == 3
    assert "to rounding" in ok("undo", both, one, "--independent", "--out", tmp_path / "rounded")

    # What does not belong together is refused, and leaves nothing.
    out = tmp_path / "out"
    for given, message in [
        (("apply", two, one, "--model", gpt2_folder), "give them in this order"),
        (("apply", one, one, "--model", gpt2_folder), "given twice"),
        (("apply", one, "--model", edited), "has the delta"),
        (("apply", two, "--model", gpt2_folder), "was not made for the weights of"),
        (("apply", one, "--model", gpt2_folder, "model.dtype=bfloat16"), "made for weights in float32"),
        (("apply", one), "There has to be one model"),
        (("apply", "--model", gpt2_folder, "runtime.threads=1"), "There is no delta"),
        (("apply", edited, "--model", gpt2_folder), "no delta.json"),
        (("apply", two, "--model", one), "this is a delta: `factsmith apply`"),
        (("edit", f"model={gpt2_folder}"), f"model=local model.path={gpt2_folder}"),
        (("undo", both, one), "has other edits on top"),
        (("undo", gpt2_folder, one), "does not have the delta"),
    ]:
        assert message in no(*given, "--out", out)
        assert not out.exists()
    assert "needs a folder" in no("apply", one, "--model", gpt2_folder)
    assert "exists already" in no("apply", one, "--model", gpt2_folder, "--out", both)
    assert "keeps nothing of the weights" in no("export", first, "--keep", "tensors", "--out", out)
    hostile = (both / "ledger.json").read_text().replace("Danish", "\\u001b]0;x\\u0007Danish")
    (both / "ledger.json").write_text(hostile.replace(f'"run": "{first}"', '"run": "\\u009b2J"'))
    shown = ok("log", both)
    assert "]0;xDanish" in shown
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)
    (edited / "model.safetensors").write_bytes((both / "model.safetensors").read_bytes())
    assert "is not that of its weights" in no("undo", edited, one, "--out", out)
    (edited / "ledger.json").write_text("{}")
    assert "ledger.json cannot be used" in no("log", edited)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".factsmith")]


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(("method=memit",), id="memit"),
        *(
            pytest.param(given, id=given[0], marks=pytest.mark.slow)
            for given in [
                ("method=lora", "method.training.steps=3"), ("method=emmet",), ("method=rect",),
                ("method=alphaedit", "method.null_space.threshold=1"),
                ("method=prune",), ("method=ft", "method.training.steps=3"), ("method=ultraedit",),
                ("method=memit", "model.dtype=bfloat16"), ("method=rect", "model.dtype=float16"),
            ]
        ),
    ],
)  # fmt: skip
def test_one_fact_is_removed_from_its_batch_to_the_bit(write, ok, no, gpt2_folder, tmp_path, method):
    """The delta gives the weights of a run without the fact, and is undone to those with it."""
    run = write("all", FACTS, *method)
    ok("export", run, "--out", tmp_path / "edited")
    proposal = ok("log", run, "--undo", "Iric Vezer")
    assert "its batch is written again without it (2 facts). --out DIR does it" in proposal
    report = json.loads(ok("log", tmp_path / "edited", "--undo", "#2", "--out", tmp_path / "less", "--json"))
    assert report["fact"]["subject"] == json.loads(ok("log", run, "--json"))["facts"][1]["subject"]
    ok("apply", tmp_path / "less", "--model", tmp_path / "edited", "--out", tmp_path / "without")
    ok("export", run, "--rank", 1, "--to", "delta", "--out", tmp_path / "cut")
    assert "is in a part of the edit" in no("log", tmp_path / "cut", "--undo", "#2", "--out", tmp_path / "less2")
    kept = [one for one in FACTS if one["subject"] != report["fact"]["subject"]]
    ok("export", write("fewer", kept, *method), "--out", tmp_path / "fewer")
    assert tensors(tmp_path / "without") == tensors(tmp_path / "fewer")
    subjects = {one["subject"] for one in json.loads(ok("log", tmp_path / "without", "--json"))["facts"]}
    assert subjects == {one["subject"] for one in kept}
    again = json.loads(ok("log", tmp_path / "without", "--undo", "#1", "--out", tmp_path / "one", "--json"))
    assert (again["left"], again["fact"]["subject"] in subjects) == (1, True)
    ok("export", report["mlflow_run_id"], "--rank", 1, "--to", "delta", "--out", tmp_path / "thin")
    ok("undo", tmp_path / "without", tmp_path / "less", "--out", tmp_path / "again")
    assert tensors(tmp_path / "again") == tensors(tmp_path / "edited")


@pytest.mark.slow
def test_one_fact_is_removed_from_a_sequence_to_the_bit(write, ok, no, gpt2_folder, tmp_path):
    ones = ("method.sequence.history=full", "method.batch_size=1")
    run = write("all", FACTS, *ones)
    ok("export", run, "--out", tmp_path / "edited")
    said = ok("log", run, "--undo", "#2", "--out", tmp_path / "less", "--keep", "nothing")
    assert "the sequence is written again from batch 2 of 3 on (1 fact)" in said
    ok("apply", tmp_path / "less", "--model", tmp_path / "edited", "--out", tmp_path / "without")
    ok("export", write("fewer", [FACTS[0], FACTS[2]], *ones), "--out", tmp_path / "fewer")
    assert tensors(tmp_path / "without") == tensors(tmp_path / "fewer")

    # A fact that is the only one leaves the unedited weights.
    alone = write("alone", LATER, model=tmp_path / "edited")
    ok("export", alone, "--out", tmp_path / "twice")
    ok("log", tmp_path / "twice", "--undo", "#4", "--out", tmp_path / "none")
    ok("apply", tmp_path / "none", "--model", tmp_path / "twice", "--out", tmp_path / "once")
    assert tensors(tmp_path / "once") == tensors(tmp_path / "edited")
    assert len(json.loads(ok("log", tmp_path / "once", "--json"))["facts"]) == 3
    assert "1 later edit was made on top of it" in no("log", tmp_path / "twice", "--undo", "Iric Vezer")
    assert "2 facts match 'Mara Flousano'" in no("log", tmp_path / "twice", "--undo", "Mara Flousano")
    assert "has no effect without --undo" in no("log", run, "--out", tmp_path / "out")
    shutil.rmtree(tmp_path / "edited")
    assert "does not exist" in no("log", alone, "--undo", "#4", "--out", tmp_path / "out")


def test_edits_of_a_model_are_listed_apart_and_once(write, ok, gpt2_folder):
    run = write("independent", FACTS, "method.batch_size=1", "dataset.batches=3", QUICK)
    write("independent", FACTS, "method.batch_size=1", "dataset.batches=3", QUICK)
    listed = json.loads(ok("log", gpt2_folder, "--json"))
    assert [(one["number"], one["model"], one["run"]) for one in listed["facts"]] == [
        (1, 0, run), (2, 1, run), (3, 2, run),
    ]  # fmt: skip
    assert len(json.loads(ok("log", run, "--json"))["models"]) == 3


def test_a_model_that_nobody_edited_has_no_facts(write, ok, no, gpt2_folder, llama_folder, tmp_path):
    assert "There are no runs" in no("log", "latest")
    write("first", FACTS[:1], QUICK)
    assert "Nothing was written into" in ok("log", llama_folder)
    assert "No runs match" in no("log", "0123456789")
    assert "does not exist" in no("log", tmp_path / "none")
