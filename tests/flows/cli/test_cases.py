"""Inputs from public bug reports of editing tools that once gave a wrong model with exit code 0."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

FACT = {"subject": "Mara Flousano", "prompt": "{} speaks", "target_new": "Spanish"}


@pytest.fixture
def edit(factsmith, plain_flows, arguments, tmp_path):
    """Writes facts into the tiny model. Returns the result, and what was written if there is a model."""

    def call(facts, *more):
        given = [word for word in arguments(*more) if not word.startswith(("dataset", "method.batch_size"))]
        path = facts
        if not hasattr(facts, "suffix"):
            path = tmp_path / "facts.json"
            path.write_text(json.dumps(facts))
        out = tmp_path / "edited"
        result = factsmith("edit", path, *given, "--out", out)
        written = json.loads((out / "factsmith.json").read_text())["facts"] if out.exists() else []
        assert bool(written) == (result.code == 0)
        return result, written

    return call


@pytest.fixture
def checkpoint(gpt2_folder, tmp_path):
    """Makes a copy of the tiny model with other tensors, and gives the argument that names it."""

    def make(change):
        folder = shutil.copytree(gpt2_folder, tmp_path / "model")
        tensors = change(load_file(folder / "model.safetensors"))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return f"model.path={folder}"

    return make


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_a_checkpoint_in_a_wrapper(edit, checkpoint, prefix):
    where = checkpoint(lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    result, _ = edit([FACT], where)
    assert result.code == 2
    assert f"unexpected: {prefix}transformer.h.0" in result.err


def test_a_checkpoint_without_a_block(edit, checkpoint):
    where = checkpoint(lambda tensors: {name: one for name, one in tensors.items() if ".h.2." not in name})
    result, _ = edit([FACT], where)
    assert result.code == 2
    assert "12 missing: transformer.h.2." in result.err


def test_a_bfloat16_checkpoint_comes_back_as_it_was(edit, checkpoint, tmp_path):
    result, _ = edit([FACT], checkpoint(lambda tensors: {name: one.bfloat16() for name, one in tensors.items()}))
    assert result.code == 0, result
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "edited"))
    assert {name: one.dtype for name, one in after.items()} == dict.fromkeys(before, torch.bfloat16)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {f"transformer.h.{layer}.mlp.c_proj.weight" for layer in (0, 1)}


def test_others_can_read_the_edited_model(edit, tmp_path):
    edit([FACT])
    probe = tmp_path / "probe"
    probe.touch()
    modes = {file.stat().st_mode for file in (tmp_path / "edited").iterdir()}
    assert modes == {probe.stat().st_mode}


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows(edit, gpt2_folder, tmp_path, home):
    from transformers import AutoTokenizer

    folder = shutil.copytree(gpt2_folder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["Cavel"])
    tokenizer.save_pretrained(folder)
    result, _ = edit([{**FACT, "subject": "Cavel"}], f"model.path={folder}")
    assert result.code == 2
    assert "no embedding" in result.err
    assert not list(home.glob("artifacts/*/*/*"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("null_lists.json", ("{} speaks", "Spanish")),
        ("same_fact_other_blank.json", ("{} speaks", "Spanish")),
        ("subject_in_longer_word.json", ("In {}, where Russian courts sit, the law declares the language", "Welsh")),
        ("target_trailing_blank.json", ("{} speaks", "Spanish")),
        ("easyedit_layout.json", ("{} speaks", "Spanish")),
    ],
)
def test_a_shared_case_is_written_as_it_reads(precomputed, edit, shared, name, expected):
    result, (written,) = edit(shared / "cases" / name)
    assert result.code == 0
    assert (written["template"], written["target_new"]) == expected


def test_a_shared_case_that_is_ambiguous_is_refused(edit, shared):
    result, _ = edit(shared / "cases" / "subject_and_braces.json")
    assert result.code == 2
    assert "has {} and the subject as well" in result.err


def test_easyedits_fields_are_scored(factsmith, plain_flows, arguments, shared):
    given = [word for word in arguments() if not word.startswith(("dataset", "method.batch_size"))]
    path = shared / "cases" / "easyedit_layout.json"
    result = factsmith("run", *given, "dataset=easyedit", f"dataset.path={path}", "method.batch_size=1", "--json")
    assert result.code == 0, result
    scores = json.loads(result.out)["metrics"]["after"]
    assert all(scores[name] is not None for name in ("Eff", "Gen", "Spe"))
