"""A run that needs more than the machine has says so, leaves nothing half written, and can be continued."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.edit import edit
from factsmith.tasks.model import loading
from factsmith.tasks.values import stage as values
from tests.runs import artifacts, states


def test_a_full_disk_ends_a_stage_and_a_rerun_continues_there(pipeline, small_disk, tmp_path, monkeypatch):
    disk, resize = small_disk
    monkeypatch.setenv("FACTSMITH_HOME", str(disk))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    store = Store(disk)
    resize(300)
    with pytest.raises(InputError, match="Stage keys found the disk full") as caught:
        pipeline("corpus.dynamic_multiplier=100")
    assert str(disk) in caught.value.details["got"]
    assert not list((disk / "staging").iterdir())
    assert artifacts(store, "tokens")
    assert all(not store.verify(path) for path in store.all_paths())
    resize(50_000)
    report = pipeline("corpus.dynamic_multiplier=100")
    assert states(report)["tokens"] == "cached"
    assert states(report)["keys"] == "built"


def test_a_log_on_a_full_disk_does_not_hide_what_went_wrong(pipeline, small_disk, monkeypatch):
    disk, resize = small_disk
    resize(20_000)
    monkeypatch.setenv("FACTSMITH_HOME", str(disk))
    pipeline("dataset.limit=3", "dataset.batches=1")
    free = shutil.disk_usage(disk).free
    (disk / "ballast").write_bytes(b"0" * (free - 2**12))
    with pytest.raises(InputError, match="found the disk full"):
        pipeline("corpus.dynamic_multiplier=100")
    assert not list((disk / "staging").iterdir())


def test_a_full_disk_leaves_no_half_of_an_edited_model(plain_flows, home, arguments, small_disk):
    disk, resize = small_disk
    resize(40)
    settings = compose(arguments("dataset.batches=1"))
    with pytest.raises(InputError, match="Stage export found the disk full") as caught:
        edit(settings, disk / "edited")
    assert str(disk) in caught.value.details["got"]
    assert not list(disk.iterdir())
    resize(50_000)
    edit(settings, disk / "edited")
    assert (disk / "edited" / "model.safetensors").is_file()


def test_a_gpu_that_is_full_is_the_run_s_end_and_not_a_traceback(stages_in_mlflow, pipeline, store, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(values, "optimise_values", full)
    with pytest.raises(InputError, match="Stage values ran out of GPU memory") as caught:
        pipeline()
    assert "runtime.memory_mb" in caught.value.details["remedy"]
    assert not list(Path(store.root / "staging").iterdir())
    client = MlflowClient(tracking_uri=f"sqlite:///{store.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("factsmith").experiment_id
    runs = client.search_runs([experiment])
    assert {run.info.status for run in runs if run.data.tags.get("stage") == "values"} == {"FAILED"}
    assert [run.info.status for run in runs if "mlflow.parentRunId" not in run.data.tags] == ["FAILED"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_a_model_that_memory_is_too_small_for_is_no_broken_model(pipeline, monkeypatch, error):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)  # checks the tensors
    monkeypatch.setattr(loading._FileTensor, "__getitem__", load)
    with pytest.raises(InputError, match="Stage keys ran out of .*memory") as caught:
        pipeline()
    assert "runtime.device_map=auto" in caught.value.details["remedy"]
