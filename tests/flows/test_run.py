"""The whole pipeline: built once, then cached, and extended when more is needed."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from transformers import AutoTokenizer

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_table, load_tensors
from factsmith.artifacts.keys import read_keys
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.edit import edit
from factsmith.flows.evaluate import evaluate
from factsmith.flows.precompute import precompute
from factsmith.flows.run import run
from factsmith.tasks.covariance.stage import load_moments
from factsmith.tasks.edit.batch import merge
from factsmith.tasks.edit.stage import read_deltas
from factsmith.tasks.keys import reader
from factsmith.tasks.keys import stage as keys_stage
from factsmith.tasks.model.checkpoint import Checkpoint
from tests.conftest import load, load_plain
from tests.runs import KINDS, artifacts, contents, count_positions, states

STAGES = ["model", "tokens", "keys", "covariance", "factor", "contexts", "values", "edit", "evaluation", "drift"]
METRICS = {"ES", "PS", "NS", "S", "EM", "PM", "NM", "Eff*", "Gen*", "Spe*"}


@pytest.fixture
def no_model(monkeypatch):
    """Whoever loads a model fails."""

    def forbidden():
        monkeypatch.setattr(Checkpoint, "load", lambda *_, **__: pytest.fail("a model was loaded"))

    return forbidden


def stages_in_prefect(run_id: str) -> list[tuple[str, str]]:
    """Names and states of the stages of a run."""
    with get_client(sync_client=True) as client:
        parts = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [run_id]}})
        ids = [str(part.id) for part in client.read_flow_runs(flow_run_filter=parts)]
        of_them = FlowRunFilter.model_validate({"id": {"any_": ids}})
        runs = client.read_task_runs(flow_run_filter=of_them)
    return [(one.name.partition("-")[0], one.state.name) for one in runs if one.state and one.state.is_final()]


def test_a_second_run_is_cached_to_the_last_stage(prefect_server, home, arguments, store, no_model):
    first = run(compose(arguments()))
    before = contents(store)
    no_model()
    second = run(compose(arguments()))
    assert [stage.name for stage in first.stages] == STAGES
    assert set(states(first).values()) == {"built"}
    assert set(states(second).values()) == {"cached"}
    assert [stage.artifact for stage in first.stages] == [stage.artifact for stage in second.stages]
    assert first.metrics == second.metrics
    assert set(first.metrics) == {"before", "after"}
    assert set(first.metrics["after"]) == METRICS
    assert contents(store) == before
    assert first.run_id != second.run_id
    assert all(store.resolve(stage.artifact) for stage in first.stages)
    deadline = time.monotonic() + 30
    while len(shown := stages_in_prefect(second.run_id)) < len(STAGES):  # Prefect records them a little later
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert sorted(shown) == sorted((name, "Cached") for name in STAGES)


def test_two_homes_hold_the_same_bytes(ran, pipeline, store, tmp_path, monkeypatch):
    here = contents(store)
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    pipeline()
    assert contents(Store(tmp_path / "there")) == here


def test_a_larger_multiplier_appends_and_a_smaller_one_reuses(pipeline, store, arguments, monkeypatch, no_model):
    monkeypatch.setattr(keys_stage, "_SHARD_ROWS", 400)
    precompute(compose(arguments("corpus.dynamic_multiplier=20")))
    small = {one.address: one.manifest.content for one in artifacts(store, "keys")}
    seen = count_positions(monkeypatch)
    report = precompute(compose(arguments("corpus.dynamic_multiplier=45")))
    assert states(report)["keys"] == "built"
    assert sum(seen) < 1.4 * (45 - 20) * 40 + 2 * 256  # what is new, and the units that straddle shards
    large = {one.address: one.manifest.content for one in artifacts(store, "keys")}
    assert small.items() <= large.items()  # the first keys are those of the smaller multiplier, to the bit

    no_model()
    report = precompute(compose(arguments("corpus.dynamic_multiplier=30")))
    assert states(report) == {
        "model": "cached", "tokens": "cached", "keys": "cached", "covariance": "built", "factor": "built",
    }  # fmt: skip


def test_shards_do_not_depend_on_when_they_were_collected(pipeline, store, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(keys_stage, "_SHARD_ROWS", 400)
    for multiplier in (12, 31, 45):
        precompute(compose(arguments(f"corpus.dynamic_multiplier={multiplier}")))
    grown = contents(store)
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    precompute(compose(arguments("corpus.dynamic_multiplier=45")))
    assert contents(Store(tmp_path / "there")).items() <= grown.items()


def test_a_further_layer_reuses_the_layers_that_are_there(pipeline, store, arguments, monkeypatch):
    precompute(compose(arguments("method.layers=[1]")))
    before = {one.address: one.manifest.content for one in artifacts(store, "keys")}
    asked = []
    block_keys = reader.block_keys
    monkeypatch.setattr(
        reader, "block_keys", lambda *given, **more: asked.append(given[2]) or block_keys(*given, **more)
    )
    precompute(compose(arguments("method.layers=[0,1,2]")))
    assert {tuple(layers) for layers in asked} == {(0, 2)}
    assert before.items() <= {one.address: one.manifest.content for one in artifacts(store, "keys")}.items()


def test_c0_is_the_mean_over_exactly_the_first_keys(pipeline, store):
    pipeline("corpus.dynamic_multiplier=12.3", "method.layers=[1]")
    count = int(np.ceil(12.3 * 40))
    (moments,) = artifacts(store, "covariance")
    shards = sorted(artifacts(store, "keys"), key=lambda one: one.key["start"])
    keys = np.concatenate([read_keys(shard) for shard in shards])[:count].astype(np.float64)
    assert moments.summary["tokens"] == count
    assert np.allclose(load_moments(moments, torch.device("cpu"))["covariance"], keys.T @ keys / count)


def test_the_factor_is_that_of_the_preservation_weight_times_c0(pipeline, store):
    pipeline("method.layers=[1]", "method.preservation_weight=7", "method.ridge=0.25")
    (moments,), (factor,) = artifacts(store, "covariance"), artifacts(store, "factor")
    c0 = load_moments(moments, torch.device("cpu"))["covariance"]
    lower = load_tensors(factor.path / "factor.safetensors")["cholesky"]
    expected = 7 * c0 + 0.25 * torch.eye(40, dtype=torch.float64)
    assert torch.equal(lower, lower.tril())
    assert (lower @ lower.T - expected).norm() < 1e-13 * expected.norm()


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_models_in_half_precision(pipeline, store, dtype):
    report = pipeline(f"model.dtype={dtype}")
    assert all(np.isfinite(value) for value in report.metrics["after"].values())
    (shard, *_) = artifacts(store, "keys")
    assert read_keys(shard).dtype == np.float32


def test_half_precision_keys_are_what_c0_is_made_of(pipeline, store):
    pipeline("corpus.key_dtype=float16", "method.layers=[1]")
    (moments,) = artifacts(store, "covariance")
    (shard,) = artifacts(store, "keys")
    keys = read_keys(shard)[:800]
    assert keys.dtype == np.float16
    exact = keys.astype(np.float64)
    assert np.allclose(load_moments(moments, torch.device("cpu"))["covariance"], exact.T @ exact / 800)


def test_methods_share_everything_before_the_edit(ran, pipeline):
    report = pipeline("method=emmet")
    assert {name for name, state in states(report).items() if state == "built"} == {"edit", "evaluation", "drift"}


def test_emmet_is_memit_at_another_weight(pipeline, store):
    pipeline("method.preservation_weight=2", "dataset.batches=1")
    (memit,) = artifacts(store, "edit")
    pipeline("method=emmet", "method.slack=0.5", "method.preservation_weight=4", "dataset.batches=1")
    (emmet,) = (one for one in artifacts(store, "edit") if one.digest != memit.digest)
    for layer, delta in read_deltas(memit).items():
        other = read_deltas(emmet)[layer].dense()
        assert (delta.dense() - other).norm() < 1e-5 * other.norm()


def test_one_fact_alone_is_met_exactly_by_emmet(precomputed, pipeline, store):
    pipeline("method=emmet", "method.batch_size=1", "dataset.batches=1")
    (one,) = artifacts(store, "edit")
    assert one.manifest.recipe["series"]["parameters"]["slack"] == 0.0


def test_the_order_of_facts_does_not_make_another_edit(precomputed, pipeline, store):
    pipeline("dataset.cases=[1,3,5]", "dataset.seed=0", "dataset.batches=1")
    report = pipeline("dataset.cases=[5,1,3]", "dataset.seed=1", "dataset.batches=1")
    assert states(report)["edit"] == "cached"
    assert len(artifacts(store, "edit")) == 1


def test_only_facts_that_are_new_are_optimised_and_scored(precomputed, pipeline, store):
    pipeline("method.batch_size=2", "dataset.batches=2")
    pipeline("method.batch_size=2", "dataset.batches=3")
    facts = [one.summary["facts"] for one in artifacts(store, "values")]
    assert sorted(facts) == [2, 4]
    before = [one for one in artifacts(store, "scores") if "edit" not in one.manifest.recipe["series"]["inputs"]]
    assert sorted(one.summary["records"] for one in before) == [2, 4]


def test_the_table_has_a_row_a_prompt_and_the_summary_comes_from_it(ran, store):
    from factsmith.tasks.evaluation.metrics.counterfact import FAMILY
    from factsmith.tasks.evaluation.summary import RecordValues

    report = ran
    (evaluation,) = artifacts(store, "evaluation")
    table = load_table(evaluation.path / "counterfact.parquet")
    rows = table.to_pylist()
    assert len({(row["phase"], row["batch"], row["record"], row["kind"], row["index"]) for row in rows}) == len(rows)
    assert {row["phase"] for row in rows} == {"before", "after"}
    assert {row["batch"] for row in rows if row["phase"] == "after"} == {0, 1}
    for phase in ("before", "after"):
        of_phase = table.take([place for place, row in enumerate(rows) if row["phase"] == phase])
        assert RecordValues.of(FAMILY.by_record(of_phase), [FAMILY]).summary() == report.metrics[phase]
    by_record = load_table(evaluation.path / "records.parquet").to_pylist()
    assert len({(row["phase"], row["record"], row["metric"]) for row in by_record}) == len(by_record)
    assert len({row["record"] for row in by_record}) == evaluation.summary["records"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damages", [[KINDS], pytest.param([[kind] for kind in KINDS], marks=pytest.mark.slow)], ids=["at once", "in turn"]
)
def test_whatever_is_damaged_is_built_again_to_the_same_bytes(ran, pipeline, store, caplog, damages):
    first = ran
    before = contents(store)
    for kinds in damages:
        for kind in kinds:
            victim = artifacts(store, kind)[0]
            name = max(victim.manifest.files, key=lambda one: victim.manifest.files[one].bytes)
            flip(victim.path / name)
        caplog.clear()
        again = pipeline()
        for kind in kinds:
            assert f"{kind}/" in caplog.text, f"nothing was said of a damaged {kind}"
        assert contents(store) == before
        assert again.metrics == first.metrics


def test_each_flow_runs_alone(plain_flows, home, arguments):
    settings = compose(arguments("dataset.batches=1"))
    assert list(states(precompute(settings))) == STAGES[:5]
    report = edit(settings)
    assert list(states(report)) == [*STAGES[:8], "answers"]
    assert report.metrics == {}
    report = evaluate(settings)
    assert {name for name, state in states(report).items() if state == "built"} == {"evaluation", "drift"}
    assert set(report.metrics["after"]) == METRICS


@pytest.mark.parametrize("family", [pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
def test_an_edited_model_is_handed_over(plain_flows, store, arguments, tmp_path, request, family):
    folder = request.getfixturevalue(f"{family}_folder")
    settings = compose(arguments(f"model.path={folder}", "dataset.batches=1"))
    out = tmp_path / "deep" / "edited"
    edit(settings, out)
    expected = load(folder)
    (artifact,) = artifacts(store, "edit")
    merge(expected, read_deltas(artifact))
    found = load_plain(out)
    tokens = torch.tensor([[5, 80, 17, 300, 33]])
    with torch.no_grad():
        assert torch.equal(found(input_ids=tokens).logits, expected.model(input_ids=tokens).logits)
        assert not torch.equal(found(input_ids=tokens).logits, load(folder).model(input_ids=tokens).logits)
    assert {path.name for path in out.iterdir()} >= {"config.json", "tokenizer.json", "factsmith.json"}
    assert [path.name for path in out.parent.iterdir()] == ["edited"]
    with pytest.raises(InputError, match="exists already"):
        edit(settings, out)


def test_an_edited_model_has_its_base_models_tokenizer(plain_flows, arguments, gpt2_folder, tmp_path):
    folder = Path(shutil.copytree(gpt2_folder, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<rowless>"]})  # Texts are then read another way.
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": "left"}))
    edit(compose(arguments(f"model.path={folder}", "dataset.batches=1")), tmp_path / "edited")
    files = sorted(path.name for path in folder.iterdir() if "token" in path.name or "chat" in path.name)
    assert "chat_template.jinja" in files
    for name in files:
        assert (tmp_path / "edited" / name).read_bytes() == (folder / name).read_bytes()
    found = AutoTokenizer.from_pretrained(tmp_path / "edited")
    assert (found.padding_side, found.split_special_tokens) == ("left", False)


def test_a_link_to_an_empty_folder_may_be_named(plain_flows, arguments, tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there", "not_yet"):
        link = tmp_path / f"link to {name}"
        link.symlink_to(tmp_path / name)
        edit(compose(arguments("dataset.batches=1")), link)
        assert (tmp_path / name / "model.safetensors").is_file()
        assert link.is_symlink()


def test_what_a_killed_export_has_left_is_removed(plain_flows, arguments, tmp_path, monkeypatch):
    given, out = compose(arguments("dataset.batches=1")), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "copy_tokenizer", lambda *_: pytest.fail("stopped"))
        patch.setattr("factsmith.tasks.export.stage.shutil.rmtree", lambda *_, **__: None)  # as if it were killed
        with pytest.raises(pytest.fail.Exception):
            edit(given, out)
    (left,) = (path for path in tmp_path.iterdir() if path.name.startswith(".factsmith-"))
    assert not out.exists()
    edit(given, out)
    assert (out / "model.safetensors").is_file()
    assert not left.exists()


def test_an_edited_model_is_not_put_among_the_artifacts(plain_flows, arguments, store):
    with pytest.raises(InputError, match="is in the folder of the artifacts"):
        edit(compose(arguments("dataset.batches=1")), store.root / "staging" / "edited")


def test_of_two_models_for_one_folder_the_second_is_refused(plain_flows, arguments, tmp_path, monkeypatch):
    out = tmp_path / "out"

    copy = Checkpoint.copy_tokenizer

    def slower(checkpoint, folder):
        copy(checkpoint, folder)
        out.mkdir()
        (out / "config.json").write_text("of another command")

    monkeypatch.setattr(Checkpoint, "copy_tokenizer", slower)
    with pytest.raises(InputError, match="exists already"):
        edit(compose(arguments("dataset.batches=1")), out)
    assert (out / "config.json").read_text() == "of another command"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_runs_are_logged_with_the_same_names(stages_in_mlflow, pipeline, home):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    reports = [pipeline(), pipeline("method=emmet")]
    logged = [client.get_run(report.mlflow_run_id) for report in reports]
    assert logged[0].data.metrics.keys() == logged[1].data.metrics.keys()
    assert logged[0].data.params.keys() == logged[1].data.params.keys()
    for report, one in zip(reports, logged, strict=True):
        assert one.info.status == "FINISHED"
        assert one.data.params["method.value.steps"] == "4"
        assert one.data.params["method.name"] in {"memit", "emmet"}
        # People read these numbers in MLflow, which shows every digit.
        assert one.data.metrics["after/ES"] == round(report.metrics["after"]["ES"], 2)
        assert one.data.metrics["after/Eff_star"] == round(report.metrics["after"]["Eff*"], 2)
        method = one.data.params["method.name"]
        assert one.info.run_name.startswith(f"{method} · local · 6 facts in batches of 3 · ")
        assert one.data.tags["d_m"] == "20"
        note = one.data.tags["mlflow.note.content"]
        assert f"by **{method}**" in note
        assert "`corpus.dynamic_multiplier=20`" in note
        (es,) = re.findall(r"\| ES \| .* \| (.*) \| efficacy", note)
        assert es == f"{report.metrics['after']['ES']:.1f}"
        assert all(stage.artifact in note for stage in report.stages)
        (read,) = one.inputs.dataset_inputs
        assert (read.dataset.name, json.loads(read.dataset.profile)) == ("embedded", {"num_rows": 6})
        assert {file.path for file in client.list_artifacts(one.info.run_id)} == {
            "config.json", "edits.json", "ledgers.json", "counterfact.parquet", "records.parquet", "before_after.png",
            "report.html",
        }  # fmt: skip
        children = client.search_runs(
            [one.info.experiment_id], f"tags.mlflow.parentRunId = '{one.info.run_id}'", max_results=50
        )
        assert {child.info.run_name for child in children} == set(STAGES)
        for child in children:
            (stage,) = (stage for stage in report.stages if stage.name == child.info.run_name)
            assert child.data.tags["artifact"] == stage.artifact
            assert child.data.tags["state"] == stage.state
            assert child.data.metrics["seconds"] == pytest.approx(stage.seconds, abs=1e-2)
    assert (home / "mlruns").is_dir()


def test_threads_are_those_that_were_asked_for_whatever_is_cached(plain_flows, arguments, store):
    before = torch.get_num_threads()
    try:
        precompute(compose(arguments("runtime.threads=1")))
        precompute(compose(arguments("runtime.threads=2", "method.preservation_weight=7")))  # needs no model
    finally:
        torch.set_num_threads(before)
    found = {one.manifest.made["threads"] for one in artifacts(store, "keys")}
    assert found == {1}
    assert sorted(one.manifest.made["threads"] for one in artifacts(store, "factor")) == [1, 1, 2, 2]
