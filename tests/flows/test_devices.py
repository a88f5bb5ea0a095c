"""Several devices share the work of one. Here they are the CPU, named several times, with a replica each."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.precompute import precompute
from factsmith.flows.run import run
from factsmith.tasks.corpus import stage as tokens_stage
from factsmith.tasks.corpus.stage import SHARD_TOKENS
from factsmith.tasks.covariance import moments
from factsmith.tasks.covariance.accumulation import stage as accumulation_stage
from factsmith.tasks.covariance.moments import Moments
from factsmith.tasks.covariance.stage import load_moments
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.edit.stage import read_deltas
from factsmith.tasks.keys import reader as key_reader
from factsmith.tasks.keys import stage as keys_stage
from factsmith.tasks.planning.run import Run
from tests.runs import artifacts, contents, count_scoring

UNKEPT = ["corpus.dynamic_multiplier=45", "corpus.keep_keys=false"]
DEVICES = ["runtime.devices=cpu,cpu", "runtime.devices=cpu,cpu,cpu"]


def threads_of_ours() -> int:
    """The threads that are running, without those of Zarr, which stay for the next array."""
    return sum(not one.name.startswith("asyncio_") for one in threading.enumerate())


class Killed(BaseException):
    """Nothing in the pipeline may catch it."""


@pytest.fixture(autouse=True)
def _small_shards(plain_flows, monkeypatch):
    monkeypatch.setattr(keys_stage, "_SHARD_ROWS", 400)
    monkeypatch.setattr(tokens_stage, "SHARD_TOKENS", 300)  # sections end where shards of tokens do
    monkeypatch.setattr(moments, "_LEAST_SECTION", 5)


@pytest.fixture
def covariances(arguments, tmp_path, monkeypatch):
    """C0 and mean of each layer, from a precompute in a home of its own, or in one that is named."""

    def call(*more: str, home: str | None = None) -> dict[int, dict[str, torch.Tensor]]:
        where = tmp_path / (home or f"home-{time.monotonic_ns()}")
        monkeypatch.setenv("FACTSMITH_HOME", str(where))
        precompute(compose(arguments(*more)))
        found = artifacts(Store(where), "covariance")
        return {one.key["layer"]: load_moments(one, torch.device("cpu")) for one in found}

    return call


def same(found, expected) -> bool:
    return all(torch.equal(tensor, expected[layer][name]) for layer in found for name, tensor in found[layer].items())


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("products", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_c0_is_that_of_one_device(covariances, devices, products):
    given = [*UNKEPT, f"runtime.products={products}"]
    assert same(covariances(*given, devices), covariances(*given))


def test_c0_does_not_depend_on_which_device_is_quicker(covariances, monkeypatch):
    expected = covariances(*UNKEPT, DEVICES[1])
    compute, decoders = key_reader.block_keys, []

    def slow(decoder, *args, **kwargs):
        if decoder not in decoders:
            decoders.append(decoder)
        time.sleep(0.02 * decoders.index(decoder))
        return compute(decoder, *args, **kwargs)

    monkeypatch.setattr(key_reader, "block_keys", slow)
    found = covariances(*UNKEPT, DEVICES[1], "runtime.checkpoint_seconds=0")
    assert len(decoders) == 3
    assert same(found, expected)


@pytest.mark.parametrize("devices", DEVICES)
def test_kept_keys_have_the_same_bytes(arguments, home, tmp_path, monkeypatch, devices):
    precompute(compose(arguments()))
    expected = contents(Store(home))
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    computed, compute = [], key_reader.block_keys
    monkeypatch.setattr(
        key_reader, "block_keys", lambda one, *args, **more: computed.append(one) or compute(one, *args, **more)
    )
    precompute(compose(arguments(devices)))
    assert contents(Store(tmp_path / "there")) == expected
    assert len(set(computed)) == devices.count("cpu")
    made = [one.manifest.made["device"] for one in artifacts(Store(tmp_path / "there"), "keys")]
    assert set(made) == {devices.partition("=")[2]}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (DEVICES[:1], DEVICES[1:]),
        pytest.param(DEVICES[1:], [], marks=pytest.mark.slow),
        pytest.param([], DEVICES[:1], marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_continues_on_another_number_of_devices(covariances, tmp_path, monkeypatch, first, then):
    given = [*UNKEPT, "runtime.checkpoint_seconds=0"]
    rows: list[int] = []
    update = Moments.update

    def dies(self, keys):
        if sum(rows) >= 2 * 1200:  # of two layers
            raise Killed
        rows.append(len(keys))
        update(self, keys)

    with monkeypatch.context() as patch:
        patch.setattr(Moments, "update", dies)
        with pytest.raises(Killed):
            covariances(*given, *first, home="one")
    (checkpoint,) = artifacts(Store(tmp_path / "one"), "accumulation")
    done = checkpoint.summary["tokens"]
    assert 0 < done <= 1200

    rows.clear()
    monkeypatch.setattr(Moments, "update", lambda self, keys: rows.append(len(keys)) or update(self, keys))
    found = covariances(*given, *then, home="one")
    assert sum(rows) == 2 * (45 * 40 - done)
    assert same(found, covariances(*given))


def test_scores_are_those_of_one_device(pipeline, monkeypatch, tmp_path):
    monkeypatch.setattr(tokens_stage, "SHARD_TOKENS", SHARD_TOKENS)  # Drift would read very many small ones.
    expected = pipeline()
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    shares, threads = count_scoring(monkeypatch), set()
    run_blocks = Decoder.run

    def watched(self, *args, **given):
        threads.add(threading.current_thread())
        return run_blocks(self, *args, **given)

    monkeypatch.setattr(Decoder, "run", watched)
    before = threads_of_ours()
    found = pipeline(DEVICES[0])
    assert len(threads) > 2
    assert threads_of_ours() == before
    assert sorted(shares) == sorted([3, 3, 1, 2, 1, 2])  # six records before, and the three of each batch after
    for phase, metrics in expected.metrics.items():
        assert found.metrics[phase] == pytest.approx(metrics, abs=1e-3)


def test_a_device_whose_memory_is_full_ends_the_run_as_it_does_alone(arguments, home, monkeypatch):
    compute, threads = key_reader.block_keys, threads_of_ours()

    def full(decoder, *args, **given):
        calls.append(decoder)
        if len(set(calls)) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return compute(decoder, *args, **given)

    calls: list[Decoder] = []
    monkeypatch.setattr(key_reader, "block_keys", full)
    with pytest.raises(InputError, match="Stage covariance ran out of GPU memory"):
        precompute(compose(arguments(*UNKEPT, DEVICES[0])))
    assert threads_of_ours() == threads


def test_ctrl_c_ends_every_thread(arguments, home, store, monkeypatch):
    threads = threads_of_ours()

    @contextmanager
    def stopped(name, total):
        done = []

        def advance(more: int) -> None:
            done.append(more)
            if len(done) == 3:
                raise KeyboardInterrupt

        yield advance

    monkeypatch.setattr(accumulation_stage, "progress", stopped)
    with pytest.raises(KeyboardInterrupt):
        precompute(compose(arguments(*UNKEPT, DEVICES[0])))
    assert threads_of_ours() == threads
    assert not artifacts(store, "covariance")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["runtime.devices=all", "runtime.device_map=auto"], "set runtime.device_map=null"),
        (["runtime.devices=cpu,cpu", "runtime.device=cpu"], "set runtime.devices=null"),
        (["runtime.devices=cpu,nowhere"], "There is no device 'nowhere' here"),
        (["runtime.devices=cpu,"], "There is no device '' here"),
    ],
)
def test_what_does_not_go_together_is_refused(refused, arguments, given, expected):
    assert expected in refused("precompute", *arguments(*given), clean=False)


def test_all_is_every_gpu_or_the_cpu(arguments, home):
    settings = compose(arguments("runtime.devices=all"))
    count = torch.cuda.device_count()
    expected = [torch.device("cuda", place) for place in range(count)] or [torch.device("cpu")]
    assert Run(settings, Store(home)).workspace.devices == expected


METHODS = {
    "memit": [],
    "memit-f": ["method=memit-f", "method.low_rank.n_samples=800", "method.low_rank.rank=12"],
    "memit-f of few": ["method=memit-f", "method.low_rank.n_samples=25", "method.low_rank.rank=12"],
    "alphaedit": ["method=alphaedit", "method.null_space.threshold=0.1"],
    "in sequence": ["method.sequence.history=full", "method.batch_size=1", "dataset.batches=4"],
}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_gives_the_c0_edits_and_scores_of_a_cpu(arguments, tmp_path, monkeypatch, method):
    def edited(device: str) -> tuple[Store, dict[str, dict[str, float | None]]]:
        monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / device))
        report = run(compose(arguments(*METHODS[method], f"runtime.device={device}")))
        return Store(tmp_path / device), report.metrics

    (here, scores), (there, theirs) = edited("cpu"), edited("cuda")
    assert theirs == scores
    for kind in ("covariance", "edit"):
        ours, others = ({one.digest: one for one in artifacts(store, kind)} for store in (here, there))
        assert ours.keys() == others.keys()
        for digest, one in ours.items():
            if kind == "covariance":
                pairs = [(load_moments(each, torch.device("cpu"))["covariance"] for each in (one, others[digest]))]
            else:
                deltas = [read_deltas(each) for each in (one, others[digest])]
                pairs = [(deltas[0][layer].dense(), deltas[1][layer].dense()) for layer in deltas[0]]
            for first, second in pairs:
                assert (first - second).norm() <= 1e-5 * first.norm()
