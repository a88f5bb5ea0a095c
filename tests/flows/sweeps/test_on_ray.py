"""Cells of a sweep as actors of Ray, on this machine."""

from __future__ import annotations

import importlib.util
import time
from contextlib import suppress
from threading import Thread

import psutil
import pytest

from factsmith.artifacts.errors import InputError
from factsmith.flows.reporting.sweeps.results import failures
from factsmith.flows.sweeps.cells import open_sweep
from factsmith.flows.sweeps.sweep import run_sweep
from factsmith.tasks.engine.cluster import connected
from factsmith.tasks.pipeline.settings import RaySettings

RAY = ("runtime.engine=ray", "runtime.ray.workers=2", "runtime.ray.memory_mb=100", "dataset.batches=1")

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'factsmith[ray]'"
)


@pytest.fixture(scope="module")
def ray():
    """Ray on this machine, which takes seconds to start."""
    with connected(RaySettings(workers=2)):
        yield


def test_what_does_not_go_together_is_refused(arguments, home):
    grid = arguments("method=memit,emmet", *RAY)
    with pytest.raises(InputError, match="--memory-mb is the memory of this machine"):
        open_sweep(grid, jobs=2, memory_mb=1000)
    with pytest.raises(InputError, match="share one engine"):
        open_sweep(arguments("runtime.engine=ray,local", "dataset.batches=1"), jobs=2)
    opened = open_sweep(grid, jobs=3)
    assert (opened.on_ray, opened.jobs) == (True, 2)
    assert opened.memory > 2**20
    assert not open_sweep(grid).on_ray, "one cell at a time shares its stages among workers"


@needs_ray
@pytest.mark.slow
def test_cells_on_ray_have_the_same_scores(ray, plain_flows, home, arguments, monkeypatch, tmp_path):
    grid = ("corpus.dynamic_multiplier=20,45", "method=memit,emmet", "runtime.threads=1")
    report = run_sweep(open_sweep(arguments(*grid, *RAY), jobs=2))
    assert not failures(report)
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "other"))
    alone = run_sweep(open_sweep(arguments(*grid, "dataset.batches=1")))
    for one, other in zip(report.cells, alone.cells, strict=True):
        assert one.metrics["after"] == pytest.approx(other.metrics["after"], abs=1e-2)


@needs_ray
@pytest.mark.slow
def test_an_actor_that_is_killed_is_a_cell_that_failed(ray, plain_flows, home, arguments):
    killed = []

    def kill_the_first():
        while not killed:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):  # It may have ended meanwhile.
                    if "_CellActor" in " ".join(process.cmdline()):
                        process.kill()
                        killed.append(process.pid)
                        return
            time.sleep(0.05)

    Thread(target=kill_the_first, daemon=True).start()
    report = run_sweep(open_sweep(arguments("method=memit,emmet,pmet", *RAY), jobs=2))
    assert killed
    (failed,) = [cell for cell in report.cells if cell.error]
    assert "The process of this cell ended" in failed.error
