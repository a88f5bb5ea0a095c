"""``factsmith export`` and ``edit --to``: what they write, of which edit, and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from factsmith.flows.cli.exports import show_export
from factsmith.flows.reporting.reports import ExportReport
from factsmith.tasks.edit.stage import read_deltas
from factsmith.tasks.export.adapter import WEIGHTS
from tests.conftest import load_plain
from tests.runs import artifacts
from tests.writable_hub import writable_hub

TOKENS = torch.tensor([[5, 80, 17, 300, 33, 8, 121]])


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def adapted(folder, adapter):
    from peft import PeftModel

    return PeftModel.from_pretrained(load_plain(folder), adapter)


def about(folder):
    return json.loads((folder / "factsmith.json").read_text())


def changes(folder):
    """B A of each adapted module, in the order of their names."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(name.removesuffix(".lora_A.weight") for name in tensors if name.endswith("lora_A.weight"))
    return [tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"] for name in names]


def test_an_edit_of_one_of_several_batches(factsmith, refused, plain_flows, ran, gpt2_folder, store, tmp_path):
    report = ran
    message = refused("export", "latest", "--out", tmp_path / "none", clean=False)
    assert "2 edits, because its batches are independent" in message
    assert "1 (3 facts), 2 (3 facts)" in message
    assert "no edit of batch 3" in refused("export", "latest", "--batch", 3, "--out", tmp_path / "none", clean=False)
    assert not list(tmp_path.glob("*none*"))
    given = ["--batch", "2", "--json"]
    one = json.loads(factsmith("export", "latest", "--to", "adapter", *given, "--out", tmp_path / "adapter").out)
    assert one["run"] == report.mlflow_run_id
    assert (one["form"], one["rank"]) == ("adapter", 3)
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "factsmith.json", "ledger.json", "README.md",
    }  # fmt: skip
    # The run is still the one that is meant by `latest`, and an address finds it too.
    again = json.loads(factsmith("export", one["edit"], "--out", tmp_path / "whole", "--json").out)
    assert (again["run"], again["edit"]) == (one["run"], one["edit"])
    base, whole = logits(load_plain(gpt2_folder)), logits(load_plain(tmp_path / "whole"))
    beside = adapted(gpt2_folder, tmp_path / "adapter")
    for found in (logits(beside), logits(beside.merge_and_unload())):
        assert (found - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert (base - whole).abs().max() > 1e-2 * whole.abs().max()
    # Nor is an export meant that was killed before it said of what run it is one.
    last = max((tmp_path / "home").rglob("exported.json"), key=lambda file: file.stat().st_mtime_ns)
    last.write_text('{"ru')
    # Its scores are those of its own batch, and both batches together give those of the run.
    factsmith("export", "latest", "--to", "adapter", "--batch", "1", "--out", tmp_path / "first")
    for name, overall in report.metrics["after"].items():
        parts = [about(tmp_path / place)["scores"] for place in ("first", "adapter")]
        assert [part["facts"] for part in parts] == [3, 3]
        if name == "ES":
            assert np.mean([part["metrics"][name]["after"] for part in parts]) == pytest.approx(overall)
    assert "| ES |" in (tmp_path / "whole" / "README.md").read_text()


def test_a_sequence_and_its_truncation(factsmith, refused, precomputed, pipeline, store, tmp_path):
    sequence = ["method.batch_size=1", "dataset.batches=3", "method.sequence.history=full"]
    report = pipeline(*sequence, "method.sequence.evaluate_at=[2]")
    whole = json.loads(factsmith("export", "latest", "--to", "adapter", "--out", tmp_path / "all", "--json").out)
    assert whole["rank"] == 3
    assert about(tmp_path / "all")["scores"]["metrics"]["ES"]["after"] == pytest.approx(report.metrics["after"]["ES"])
    assert "batches after which the sequence was scored: 2 (2 facts), 3 (3 facts)" in refused(
        "export", "latest", "--batch", 1, "--out", tmp_path / "none", clean=False
    )
    two = factsmith("export", "latest", "--to", "adapter", "--batch", 2, "--out", tmp_path / "two")
    assert "rank 2" in two.out
    assert about(tmp_path / "two")["scores"] == {}
    assert "not scored" in (tmp_path / "two" / "README.md").read_text()
    cut = factsmith("export", "latest", "--to", "adapter", "--rank", 1, "--out", tmp_path / "cut", "--json")
    cut = json.loads(cut.out)
    exact = next(one for one in artifacts(store, "edit") if one.address == whole["edit"])
    for layer, (delta, found, told) in enumerate(
        zip(read_deltas(exact).values(), changes(tmp_path / "cut"), cut["truncated"], strict=True)
    ):
        left, values, right = np.linalg.svd(delta.dense().numpy())
        best = values[0] * np.outer(left[:, 0], right[0])
        np.testing.assert_allclose(found.numpy(), best, atol=1e-6 * values[0])
        assert told == {
            "place": f"layer {layer}", "rank": 1, "of": 3,
            "error": pytest.approx(np.sqrt((values[1:] ** 2).sum() / (values**2).sum()), rel=1e-6),
        }  # fmt: skip
    said = about(tmp_path / "cut")
    assert said["truncation"]["exact"] == whole["edit"]
    assert cut["scores"]["ES"]["exact"] == pytest.approx(report.metrics["after"]["ES"])
    assert cut["scores"]["ES"]["truncated"] == said["scores"]["metrics"]["ES"]["after"]
    table = factsmith("export", "latest", "--to", "adapter", "--rank", 1, "--out", tmp_path / "shown").out
    assert "truncated" in table
    assert "1 │  3 │" in table


@pytest.mark.slow
def test_a_dense_change_is_truncated_or_refused(factsmith, refused, plain_flows, arguments, tmp_path):
    given = arguments("method=rect", "dataset.batches=1")
    message = refused("edit", *given, "--to", "adapter", "--out", tmp_path / "out")
    assert "method=rect, which is dense" in message
    assert "--rank R" in message
    result = factsmith("edit", *given, "--to", "adapter", "--rank", 5, "--out", tmp_path / "out", "--json")
    report = json.loads(result.out)["export"]
    assert report["rank"] == 5
    assert all(0 < one["error"] < 1 and one["of"] > 5 for one in report["truncated"])
    assert report["scores"]["facts_held"]["truncated"] == about(tmp_path / "out")["scores"]["facts_held"]
    assert "layer 0, which is dense" in refused(
        "export", "latest", "--to", "adapter", "--out", tmp_path / "no", clean=False
    )


def test_a_memory_is_no_adapter(refused, arguments, tmp_path):
    given = arguments("method=grace", "dataset.batches=1", "method.layers=[1]")
    assert "cannot hold a memory" in refused("edit", *given, "--to", "adapter", "--out", tmp_path / "out")
    assert "A memory has no rank" in refused("edit", *given, "--rank", "2", "--out", tmp_path / "out")


def test_an_edit_is_pushed(factsmith, refused, plain_flows, arguments, tmp_path, monkeypatch):
    given = ["edit", *arguments("dataset.batches=1"), "--to", "adapter", "--out", tmp_path / "out", "--push", "me/it"]
    with writable_hub(tmp_path, monkeypatch) as hub:
        hub.role = "read"
        assert "may not write" in refused(*given)
        hub.role = "write"
        report = json.loads(factsmith(*given, "--json").out)["export"]
        folder = hub.folders["me/it", hub.branches["me/it", "main"]]
        pushed = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert pushed == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert report["pushed"].endswith(hub.branches["me/it", "main"])
    assert hub.private == {"me/it"}


def test_scores_that_a_phase_lacks_are_left_out(capsys, tmp_path):
    scores = {"ES": {"before": None, "exact": 99.96, "truncated": 50.0}}
    show_export(ExportReport(run="a", edit="edit/b", form="delta", out=tmp_path, bytes=1, scores=scores))
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "ES" in line]
    assert row.split("│")[1:5] == [" ES ", "        ", " 100.0 ", "      50.0 "]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["export", "latest"], "needs a folder"),
        (["export", "latest", "--out", "x"], "no runs"),
        (["export", "latest", "--out", "x", "--public"], "--push OWNER/NAME"),
        (["export", "latest", "--out", "x", "method.ridge=1"], "does not belong to an export"),
        (["export", "latest", "--out", "x", "dataset.path=y"], "does not belong to an export"),
        (["edit", "--to", "adapter"], "needs a folder"),
        (["edit", "--rank", "3"], "--rank 3"),
    ],
)
def test_what_cannot_be_exported_is_refused(refused, given, expected):
    assert expected in refused(*given)


def test_what_is_not_there_is_refused(factsmith, refused, plain_flows, arguments, tmp_path):
    factsmith("edit", *arguments("dataset.batches=1"))
    out = ["--out", tmp_path / "out"]
    for given, expected in (
        (["latest", "--to", "adaptr"], "did you mean 'adapter'"),
        (["0000aaaa"], "No runs match"),
        (["edit/0000"], "No artifacts or series match"),
        (["latest", f"model.path={tmp_path}"], "no config.json"),
        (["latest", "--batch", "2"], "no edit of batch 2"),
    ):
        assert expected in refused("export", *given, *out, clean=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert "exists already" in refused("export", "latest", *out, clean=False)
    about = {"form": "delta", "edit": "edit/0123456789abcdef0123456789abcdef"}
    (tmp_path / "out" / "factsmith.json").write_text(json.dumps(about))
    assert "got: an export: the delta of edit/0123456789ab\n" in refused("export", "latest", *out, clean=False)
    assert {file.name for file in tmp_path.iterdir()} == {"home", "out"}
