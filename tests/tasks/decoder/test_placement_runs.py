"""A run on a model whose blocks are on another device gives the same bytes."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file

from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.edit import edit
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.model.checkpoint import Checkpoint
from tests.runs import artifacts, contents


@pytest.fixture
def away(monkeypatch):
    """From here on every model that is loaded lies in memory and runs from there, block by block."""
    load = Checkpoint.load

    def offloading(self, tokenizer, **how):
        decoder = load(self, tokenizer, **how)
        model = cpu_offload(decoder.model, execution_device=torch.device("cpu"))
        model.hf_device_map = {"": "cpu"}
        return Decoder(model, tokenizer, decoder.layout)

    return lambda: monkeypatch.setattr(Checkpoint, "load", offloading)


@pytest.mark.parametrize("family", [pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
def test_a_run_leaves_the_same_bytes(request, pipeline, away, tmp_path, monkeypatch, home, family):
    folder = request.getfixturevalue(f"{family}_folder")
    given = (f"model.path={folder}", "runtime.device_map=auto")
    pipeline(f"model.path={folder}")
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "other"))
    away()
    pipeline(*given)
    other = Store(tmp_path / "other")
    assert contents(other) == contents(Store(home))
    for kind in ("keys", "values", "edit", "scores"):
        assert all(one.manifest.made["device_map"] == {"": "cpu"} for one in artifacts(other, kind))


def test_the_edited_model_is_handed_over_whole(plain_flows, home, arguments, away, tmp_path, monkeypatch):
    settings = compose(arguments("dataset.batches=1"))
    edit(settings, tmp_path / "whole")
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "other"))
    away()
    edit(settings, tmp_path / "away")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("away", "whole"))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name])
    facts = [json.loads((tmp_path / name / "factsmith.json").read_text())["facts"] for name in ("away", "whole")]
    assert facts[0] == facts[1]
