"""TF32 for value vectors: only if asked for, only where there is some, and seen in the recipe."""

from __future__ import annotations

import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.composition import compose
from factsmith.flows.sweeps.cells import open_sweep
from factsmith.tasks.decoder.precision import tensor_float_32
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.planning.preflight import check_input
from factsmith.tasks.planning.run import Run
from factsmith.tasks.values.settings import ValueSettings
from tests.tasks.values.test_optimiser import SETTINGS, close, facts, optimise


def precision() -> str:
    return str(torch.backends.cuda.matmul.fp32_precision)


def test_it_holds_until_the_last_is_done():
    before = precision()
    with tensor_float_32(False):
        assert precision() == before
    with tensor_float_32(True):
        assert precision() == "tf32"
        with pytest.raises(ZeroDivisionError), tensor_float_32(True):
            _ = 1 / 0
        assert precision() == "tf32"
    assert precision() == before


def test_only_vectors_that_are_made_with_it_have_another_name():
    assert "tf32" not in ValueSettings().recipe
    assert ValueSettings(tf32=True).recipe == {**ValueSettings().recipe, "tf32": True}


@pytest.mark.parametrize("more", [[], ["model.dtype=bfloat16"]])
def test_it_is_refused_where_there_is_none(arguments, store, monkeypatch, more):
    if more:
        monkeypatch.setattr(Workspace, "devices", [torch.device("cuda")])
    run = Run(compose(arguments("method.value.tf32=true", "runtime.memory_mb=64", *more)), store)
    with pytest.raises(InputError, match="there are none here") as caught:
        check_input(run, dataset=True)
    assert caught.value.details["remedy"] == "leave out method.value.tf32"


def test_on_a_gpu_it_is_taken(arguments, store, monkeypatch):
    monkeypatch.setattr(Workspace, "devices", [torch.device("cuda")])
    check_input(Run(compose(arguments("method.value.tf32=true", "runtime.memory_mb=64")), store), dataset=True)


def test_cells_with_and_without_it_may_run_at_once(arguments, home, monkeypatch):
    """Each has a process of its own."""
    monkeypatch.setattr(Workspace, "devices", [torch.device("cuda")])
    assert open_sweep(arguments("method.value.tf32=true,false", "runtime.memory_mb=64"), jobs=2).jobs == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_vectors_are_nearly_the_same(decoder):
    decoder.model.to("cuda")
    exact = optimise(decoder, facts())
    for one, other in zip(optimise(decoder, facts(), SETTINGS.model_copy(update={"tf32": True})), exact, strict=True):
        assert close(one.value, other.value, 2e-2)
