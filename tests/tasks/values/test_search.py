"""Steps as a GPU takes them: recorded once and replayed, with constant shapes and nothing read in between."""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.values import optimiser, replay
from factsmith.tasks.values.replay import Replayed
from factsmith.tasks.values.search import Search
from tests.conftest import DEVICES
from tests.tasks.values.test_optimiser import SETTINGS, close, facts, optimise

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2"}
"""Operations whose result, or its shape, the CPU has to know."""


class NothingIsRead(TorchDispatchMode):
    """Refuses what would stop the recording of a CUDA graph."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in WAITS, f"{name} waits for the GPU"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            assert not any(index is not None and index.dtype == torch.bool for index in args[1]), f"{name} by a mask"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", DEVICES)
def test_replayed_steps_find_the_same_vectors(decoder, monkeypatch, device):
    found = optimise(decoder, facts())
    decoder.model.to(device)
    monkeypatch.setattr(optimiser, "Search", partial(Search, replayed=True))
    for one, other in zip(optimise(decoder, facts()), found, strict=True):
        assert one.steps == other.steps
        assert one.loss == pytest.approx(other.loss, rel=1e-3)
        assert close(one.value, other.value)
        assert one.start.device.type == "cpu"


@pytest.mark.parametrize("device", DEVICES)
def test_passes_of_any_size_find_the_same_vectors(decoder, monkeypatch, device):
    """With padding as with exact lengths, prompt by prompt as all together."""
    decoder.model.to(device)
    passes: dict[int, int] = {}
    found = {}
    for cost in (0, 32, 10_000):
        monkeypatch.setattr(Decoder, "pass_cost", cost)
        handle = decoder.blocks[-1].register_forward_hook(
            lambda *_, cost=cost: passes.__setitem__(cost, passes.get(cost, 0) + 1)
        )
        found[cost] = optimise(decoder, facts())
        handle.remove()
    assert passes[0] > passes[32] > passes[10_000]
    for cost in (32, 10_000):
        for one, other in zip(found[cost], found[0], strict=True):
            assert one.steps == other.steps
            assert close(one.value, other.value)


@pytest.mark.parametrize("attention", [{}, {"site": "mlp", "attention": True}], ids=["memit", "pmet"])
def test_a_step_reads_nothing(decoder, monkeypatch, attention):
    taken = 0

    def step(replayed: Replayed) -> None:
        nonlocal taken
        # The first calls compute what later ones find, such as masks. The third would be recorded.
        with NothingIsRead() if replayed._calls >= 2 else nullcontext():
            replayed._compute()
        taken += replayed._calls >= 2
        replayed._calls += 1

    monkeypatch.setattr(Replayed, "__call__", step)
    # On a CPU, Adam reads its count of steps. On a GPU, it is asked not to (capturable).
    monkeypatch.setattr(torch.optim.Adam, "step", lambda _: None)
    monkeypatch.setattr(optimiser, "Search", partial(Search, replayed=True))
    optimise(decoder, facts(), SETTINGS.model_copy(update={"stop_loss": 0.0, **attention}))
    assert taken == SETTINGS.steps - 3  # without the first two, and without the last, which only evaluates


def test_facts_that_are_finished_are_left_out(decoder, monkeypatch):
    """On a CPU at once, because each of their positions costs time; of replayed steps, when they are half."""
    ran: dict[bool, list[int]] = {}
    for replayed in (False, True):
        rows: list[int] = []
        monkeypatch.setattr(optimiser, "Search", partial(Search, replayed=replayed))
        handle = decoder.blocks[-1].register_forward_hook(lambda _m, given, _o, rows=rows: rows.append(len(given[0])))
        found = optimise(decoder, facts())
        handle.remove()
        ran[replayed] = rows
    assert len({vector.steps for vector in found}) > 1, "the facts stop at the same step"
    assert sum(ran[False]) < sum(ran[True])
    assert ran[True][-1] < max(ran[True])


@pytest.mark.parametrize("replayed", [False, True])
def test_what_a_search_holds_is_freed_when_it_ends(decoder, monkeypatch, replayed):
    """A graph keeps the memory of a whole step. A sequence records one for each batch, or more."""
    held: list[weakref.ref] = []

    class Watched(Search):
        def __init__(self, *given, **named) -> None:
            super().__init__(*given, replayed=replayed)
            held.extend([weakref.ref(self), weakref.ref(self._moving)])

    monkeypatch.setattr(optimiser, "Search", Watched)
    gc.collect()
    gc.disable()
    try:
        optimise(decoder, facts())
        assert [one() for one in held] == [None, None]
    finally:
        gc.enable()


def test_after_a_recording_that_failed_the_stream_is_as_before_and_nothing_is_recorded(monkeypatch):
    """As PyTorch behaves: its context of a recording is not left if the recording failed."""
    streams, recordings = ["default"], []

    @contextmanager
    def stream(name):
        streams.append(name)
        yield
        streams[:] = streams[: streams.index(name)]

    class Graph:
        def __init__(self, *_, **__) -> None:
            recordings.append(self)

        def __enter__(self) -> None:
            streams.append("recorded")

        def __exit__(self, *_) -> None:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(replay, "_failed", [])
    for name, fake in {"stream": stream, "graph": Graph, "CUDAGraph": object}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for _ in range(2):
        assert Replayed(lambda: None, torch.device("cpu"))._recorded("side") is None
    assert streams == ["default"]
    assert len(recordings) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_recorded_computation_does_what_it_did():
    total = torch.zeros(3, device="cuda")
    step = torch.ones(3, device="cuda")

    def compute() -> None:
        total.add_(step)

    add = Replayed(compute, total.device)
    for _ in range(5):
        add()
    assert add._graph is not None
    step.fill_(10)
    add()
    assert total.tolist() == [15.0, 15.0, 15.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_cannot_be_recorded_is_computed():
    total = torch.zeros(1, device="cuda")

    def compute() -> None:
        total.add_(1 + 0 * total.item())

    add = Replayed(compute, total.device)
    for _ in range(5):
        add()
    assert add._graph is None
    assert total.item() == 5
    assert torch.cuda.current_stream() == torch.cuda.default_stream(), "later work would run beside what it reads"
