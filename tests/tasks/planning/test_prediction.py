"""Predictions of time and money: rates, shares of nodes, and what is known of a GPU, by hand."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.composition import compose
from factsmith.flows.measure import measure
from factsmith.flows.sweeps.plans import Wanted, plan_run, plan_sweep
from factsmith.tasks.pipeline.environment import home as home_folder
from factsmith.tasks.planning.precompute_plan import StagePlan
from factsmith.tasks.planning.prediction.gpus import find_gpu
from factsmith.tasks.planning.prediction.predict import Fleet, predict
from factsmith.tasks.planning.prediction.rates import LOAD, Rate, Rates, fit, load_rates, save_rates
from factsmith.tasks.planning.run import Run

STAGES = [
    StagePlan("model", 1, 1, "checkpoint"),
    StagePlan("tokens", 1000, 1000, "tokens"),
    StagePlan("covariance", 5, 5, "layers", flop=9e15, algebra=1e15, memory=int(150e9), makes="c0"),
    StagePlan("factor", 5, 5, "layers", flop=3e13, algebra=3e13, makes="l"),
    StagePlan("edit", 0, 8, "facts"),
]


def by_name(prediction):
    return {one.name: one for one in prediction.stages}


def test_a_rate_is_a_line_through_two_sizes():
    assert fit([(10, 3.0), (30, 5.0)]) == Rate(2.0, 0.1)
    assert fit([(30, 5.0), (10, 3.0)]).seconds(100) == pytest.approx(12.0)
    assert fit([(10, 1.0), (20, 3.0)]) == Rate(0.0, 4 / 30), "no stage has a negative fixed part"
    assert fit([(10, 3.0), (20, 3.0)]) == Rate(0.0, 6 / 30)
    assert fit([(0, 1.0), (4, 2.0)]) == Rate(0.0, 0.5)


def test_what_was_measured_is_divided_among_nodes():
    stages = {"covariance": Rate(10.0, 1e-14), "factor": Rate(1.0, 1e-13), "tokens": Rate(0.0, 0.01)}
    rates = Rates("a CPU", "m", "bfloat16", 1, "2026-01-02", {**stages, "model": Rate(0, 1e-9), LOAD: Rate(0, 2e-9)})
    given = {"weights": 140e9, "dtype": "bfloat16", "sums": 4e9}
    one = predict(STAGES, Fleet(1, None, rates), **given)
    assert {name: stage.seconds for name, stage in by_name(one).items()} == pytest.approx(
        {"start": 280.0, "model": 140.0, "tokens": 10.0, "covariance": 100.0, "factor": 4.0}
    )
    four = predict(STAGES, Fleet(4, None, rates, price=2.0), **given)
    found = by_name(four)
    assert (found["covariance"].seconds, found["covariance"].divided) == (pytest.approx(25.0), True)
    assert (found["factor"].seconds, found["factor"].divided) == (pytest.approx(4.0), False)
    assert found["reduction"].seconds == pytest.approx(16.0), "4 nodes with sums of 4 GB, at 1 GB/s"
    assert four.seconds == pytest.approx(280 + 140 + 10 + 25 + 16 + 4)
    assert four.price == pytest.approx(2.0 * four.hours) == pytest.approx(2.0 * 4 * four.seconds / 3600)


def test_a_gpu_that_nobody_measured_has_its_published_rates():
    found = predict(STAGES, Fleet(2, find_gpu("H100"), price=3.0), weights=140e9, dtype="bfloat16", sums=0.0)
    assert found.gpus == 3, "150 GB at 72 GB each"
    seconds = by_name(found)
    assert seconds["covariance"].seconds == pytest.approx((8e15 / (0.4 * 989e12) + 1e15 / (0.3 * 67e12)) / 2)
    assert seconds["factor"].seconds == pytest.approx(3e13 / (0.3 * 34e12))
    assert {one.rate for one in found.stages} == {"published", "assumed"}
    assert found.price == pytest.approx(3.0 * found.seconds / 3600 * 2 * 3)
    with pytest.raises(InputError, match="There is no GPU 'h1000'"):
        find_gpu("h1000")
    with pytest.raises(InputError, match="Nothing is known of this machine"):
        predict(STAGES, Fleet(2), weights=1.0, dtype="float32", sums=0.0)


def test_rates_are_kept_by_device(tmp_path):
    rates = Rates("a CPU", "m", "float32", 1, "2026-01-02", {"keys": Rate(1.0, 2.0)})
    save_rates(tmp_path, rates)
    save_rates(tmp_path, Rates("NVIDIA H100", "m", "float32", 1, "2026-01-02", {}))
    assert load_rates(tmp_path)["a CPU"] == rates
    assert len(load_rates(tmp_path)) == 2
    (tmp_path / "rates.json").write_text('{"a CPU": 3}')
    with pytest.raises(InputError, match="cannot be read"):
        load_rates(tmp_path)


def test_a_plan_of_a_sweep_counts_what_cells_share_once(home, arguments):
    grid = arguments("corpus.dynamic_multiplier=2,5", "method=memit,emmet", "dataset.batches=1")
    swept = {stage.name: stage for stage in plan_sweep(grid, Wanted(2, "h100"), dataset=True).stages}
    alone = Run(compose(arguments("corpus.dynamic_multiplier=5", "method=memit", "dataset.batches=1")), store_at(home))
    one = {stage.name: stage for stage in plan_run(alone, Wanted(), dataset=True).stages}
    assert swept["keys"] == one["keys"], "those of the larger d_m include the others"
    assert (swept["values"].missing, swept["values"].flop) == (3, one["values"].flop)
    assert swept["covariance"].missing == 2 * one["covariance"].missing
    assert swept["edit"].missing == 4 * one["edit"].missing


def store_at(home):
    from factsmith.artifacts.store import Store

    return Store(home)


def test_the_command(factsmith, refused, arguments, home):
    told = factsmith("plan", *arguments(), "--nodes", "4", "--gpu", "a100", "--price", "2", "--json")
    found = json.loads(told.out)["prediction"]
    assert (found["nodes"], found["gpus"], found["device"]) == (4, 1, "a100, published rates")
    assert found["price"] == pytest.approx(2 * found["hours"])
    shown = factsmith("plan", *arguments("method=memit,emmet"), "--gpu", "a100").out
    assert "A sweep of 2 cells" in shown
    assert "GPU hours" in shown
    plain = factsmith("plan", *arguments("runtime.devices=cpu,cpu")).out
    assert "A run of" in plain, "a value with commas that a run can have"
    assert "time" not in plain
    assert "--measure" in refused("plan", *arguments(), "--nodes", "2")
    assert "There is no GPU" in refused("plan", *arguments(), "--gpu", "abacus")
    assert "without --gpu" in refused("plan", *arguments(), "--gpu", "h100", "--measure")
    assert not (home / "rates.json").exists()


@pytest.mark.parametrize("size", [(20, 2), pytest.param((60, 6), marks=pytest.mark.slow)])
def test_predictions_of_this_machine_hold(size, plain_flows, home, arguments, monkeypatch, pipeline):
    """In CPU seconds, because a machine that does other things too makes every wall clock wrong."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    multiplier, batches = size
    given = (f"corpus.dynamic_multiplier={multiplier}", f"dataset.batches={batches}", "method.batch_size=8")
    settings = compose(arguments(*given))
    rates, path = measure(settings, dataset=True)
    assert path == home_folder() / "rates.json"
    assert {one.name for one in home.iterdir()} >= {"rates.json"}
    assert not list(home.glob(".measured-*"))
    planned = plan_run(Run(settings, store_at(home)), Wanted(), dataset=True)
    predicted = {one.name: one.seconds for one in planned.prediction.stages}
    assert all(one.rate == "measured" for one in planned.prediction.stages)
    report = pipeline(*given)
    took = {stage.name: stage.seconds for stage in report.stages}
    assert set(took) == set(predicted) - {"start"}
    assert sum(took.values()) == pytest.approx(sum(predicted.values()) - predicted["start"], rel=0.5)
    assert set(rates.stages) == {*took, LOAD}


def test_70_billion_parameters_and_44_million_tokens(hub, factsmith, llama_folder, tmp_path):
    """From the config alone: the weights, 141 GB, stay on the hub."""
    folder = tmp_path / "llama-70b"
    shutil.copytree(llama_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    sizes |= {"num_key_value_heads": 8, "vocab_size": 128256, "head_dim": 128, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps({**config, **sizes, "dtype": "bfloat16"}))
    hub.publish("meta/llama-70b", folder)
    given = ["model=local", "model.path=meta/llama-70b", "corpus=embedded", "corpus.block_length=32"]
    given += ["corpus.tokens=44000000", "corpus.keep_keys=false", "method.layers=[4,5,6,7,8]"]
    given += ["method.preservation_weight=15000", "model.dtype=bfloat16"]
    told = factsmith("plan", "--precompute", *given, "--nodes", "8", "--gpu", "h100", "--price", "3", "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out)["prediction"]
    seconds = {one["name"]: one["seconds"] for one in found["stages"]}
    block = 8192 * (2 * 8192 + 2 * 1024) + 3 * 8192 * 28672
    passes = 44e6 * (9 * (2 * block + 4 * 16 * 8192) - 2 * 8192 * 28672)
    algebra = 44e6 * 5 * 28672**2
    assert seconds["covariance"] == pytest.approx((passes / (0.4 * 989e12) + algebra / (0.3 * 67e12)) / 8, rel=0.02)
    sums = 5 * 8 * 28672**2
    assert seconds["reduction"] == pytest.approx(8 * sums / 1e9)
    assert seconds["factor"] == pytest.approx(5 * (28672**3 / 3) / (0.3 * 34e12) + sums / 1e9, rel=0.02)
    assert found["gpus"] == 4, "141 GB of weights, 72 GB of sums, and what a pass needs, at 72 GB each"
    assert found["price"] == pytest.approx(3 * 32 * found["seconds"] / 3600)
    assert hub.sent < 10**6
