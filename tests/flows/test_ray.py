"""Ray itself: a cluster of several nodes on this machine, whose workers and nodes are killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.precompute import precompute
from factsmith.flows.run import run
from factsmith.tasks.corpus import stage as tokens_stage
from factsmith.tasks.covariance import moments
from factsmith.tasks.engine import cluster as engine
from factsmith.tasks.engine.pool import Pool
from factsmith.tasks.engine.workers_stage import _need
from factsmith.tasks.keys import stage as keys_stage
from factsmith.tasks.pipeline.settings import RaySettings, RuntimeSettings
from tests.runs import artifacts, contents, tiny_arguments

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'factsmith[ray]'"
)

UNKEPT = ["corpus.dynamic_multiplier=45", "corpus.keep_keys=false", "runtime.threads=1"]


@pytest.fixture
def small(plain_flows, home, monkeypatch) -> None:
    """Shards and sections of a few hundred keys. The driver tells workers where they begin and end."""
    monkeypatch.setattr(keys_stage, "_SHARD_ROWS", 400)
    monkeypatch.setattr(keys_stage, "_PASSES_OF_A_SHARE", 1)
    monkeypatch.setattr(tokens_stage, "SHARD_TOKENS", 300)
    monkeypatch.setattr(moments, "_LEAST_SECTION", 5)


class Nodes:
    """A head without CPUs, and nodes to be killed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._given = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args={**self._given, "num_cpus": 0})
        self.address = self._cluster.address
        self.nodes = [self.add() for _ in range(2)]

    def add(self):
        given = {name: value for name, value in self._given.items() if name != "include_dashboard"}
        return self._cluster.add_node(num_cpus=1, **given)

    def kill_node(self) -> None:
        self._cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    @staticmethod
    def workers() -> list[psutil.Process]:
        """The processes of workers, the oldest first."""
        found = []
        for one in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # It may have ended meanwhile.
                if "ray::Actor" in " ".join(one.cmdline()):
                    found.append(one)
        return sorted(found, key=lambda one: one.create_time())

    def stop(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        found = Nodes()
        yield found
        found.stop()


@pytest.fixture
def on_ray(arguments, nodes) -> Callable[..., list[str]]:
    """Arguments of a run on the cluster."""

    def call(*more: str, workers: int = 2) -> list[str]:
        ray = ["runtime.engine=ray", f"runtime.ray.address={nodes.address}", f"runtime.ray.workers={workers}"]
        return arguments(*ray, "runtime.ray.cpus=0.5", "runtime.ray.memory_mb=100", *more)

    return call


@pytest.fixture
def when_published(home, monkeypatch) -> Callable[[str, int, Callable[[], None]], list[str]]:
    """Acts once, when workers have published some artifacts of a kind. The list that it gives then has the kind."""

    def call(kind: str, number: int, act: Callable[[], None]) -> list[str]:
        acted: list[str] = []
        look = Pool._look

        def looked(self, shares):
            if not acted and len(list(home.glob(f"artifacts/{kind}/*/*"))) >= number:
                acted.append(kind)
                act()
            look(self, shares)

        monkeypatch.setattr(Pool, "_look", looked)
        return acted

    return call


def of_one_process(arguments, monkeypatch, home, *more: str) -> tuple[dict[str, str], dict]:
    """The contents of all artifacts of a run in this process, in a home of its own, and its scores."""
    with monkeypatch.context() as patch:
        patch.setenv("FACTSMITH_HOME", str(home.parent / "alone"))
        report = run(compose(arguments(*more)))
        return contents(Store(home.parent / "alone")), report.metrics


@needs_ray
def test_c0_and_scores_are_those_of_one_process_although_a_worker_is_killed(
    small, arguments, on_ray, nodes, store, home, monkeypatch, when_published
):
    expected, scores = of_one_process(arguments, monkeypatch, home, *UNKEPT)
    killed = when_published("section", 2, lambda: os.kill(nodes.workers()[0].pid, signal.SIGKILL))
    report = run(compose(on_ray(*UNKEPT)))
    assert killed
    assert report.metrics == scores
    assert contents(store) == expected  # and no section is left
    made = {str(one.manifest.made["device"]) for one in artifacts(store, "covariance")}
    assert made == {"cpu"}
    assert not psutil.wait_procs(nodes.workers(), timeout=30)[1]
    assert not [*home.glob("staging/*"), *home.glob("locks/*.json")]


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_four_workers_on_two_nodes_of_which_one_is_killed(
    small, arguments, on_ray, nodes, store, home, monkeypatch, when_published, keep
):
    given = [UNKEPT[0], f"corpus.keep_keys={keep}", UNKEPT[2]]
    expected, scores = of_one_process(arguments, monkeypatch, home, *given)
    killed = when_published("keys" if keep else "section", 2, nodes.kill_node)
    report = run(compose(on_ray(*given, workers=4)))
    nodes.nodes.append(nodes.add())
    assert killed
    assert report.metrics == scores
    assert contents(store) == expected


@needs_ray
@pytest.mark.slow
def test_small_tasks_are_shared_and_scores_stay(small, arguments, on_ray, store, home, monkeypatch):
    _, scores = of_one_process(arguments, monkeypatch, home, *UNKEPT)
    report = run(compose(on_ray(*UNKEPT, "runtime.ray.task_size=1")))
    assert len(artifacts(store, "values")) == 6
    for phase, metrics in scores.items():
        assert report.metrics[phase] == pytest.approx(metrics, abs=1e-3)


class Killed(BaseException):
    """Nothing in the pipeline may catch it."""


@needs_ray
@pytest.mark.slow
def test_a_driver_that_comes_back_goes_on_from_what_was_published(
    small, arguments, on_ray, store, home, monkeypatch, when_published
):
    def die() -> None:
        raise Killed

    expected, _ = of_one_process(arguments, monkeypatch, home, *UNKEPT)
    when_published("section", 4, die)
    with pytest.raises(Killed):
        precompute(compose(on_ray(*UNKEPT)))
    before = {one.digest: one.path.stat().st_ctime_ns for one in artifacts(store, "section")}
    assert len(before) >= 4

    look, after = Pool._look, {}

    def looked(self, shares):
        after.update({path.name: path.stat().st_ctime_ns for path in home.glob("artifacts/section/*/*")})
        look(self, shares)

    monkeypatch.setattr(Pool, "_look", looked)
    precompute(compose(on_ray(*UNKEPT)))
    assert before.items() <= after.items()  # They were not made again.
    assert contents(store).items() <= expected.items()


@needs_ray
@pytest.mark.slow
def test_a_full_object_store_stops_nothing_and_a_connection_of_the_caller_stays(
    small, arguments, on_ray, nodes, store, home, monkeypatch
):
    import ray

    expected, _ = of_one_process(arguments, monkeypatch, home, *UNKEPT)
    ray.init(nodes.address, log_to_driver=False)
    try:
        held = [ray.put(np.ones(10 * 2**20, np.uint8)) for _ in range(12)]
        precompute(compose(on_ray(*UNKEPT)))
        assert ray.is_initialized()
        assert ray.get(held[0]).sum() == 10 * 2**20
    finally:
        ray.shutdown()
    assert contents(store).items() <= expected.items()


@needs_ray
@pytest.mark.slow
def test_ray_of_our_own_listens_on_this_machine_only_and_ends_with_the_command(arguments, home):
    given = arguments("corpus.tokens=140000", "corpus.keep_keys=false", "runtime.engine=ray", "runtime.ray.workers=2")
    command = [str(Path(sys.executable).with_name("factsmith")), "precompute", *given, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(home.glob("artifacts/section/*/*")):
            assert process.poll() is None
            time.sleep(0.1)
        started = psutil.Process(process.pid).children(recursive=True)
        listening = {
            each.laddr.ip
            for one in started
            for each in one.net_connections("inet")
            if each.status == psutil.CONN_LISTEN
        }
        process.terminate()
        out, err = process.communicate(timeout=100)
    assert listening
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert (process.returncode, out) == (130, "")
    assert "run the same command to continue" in err
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["runtime.ray.workers=2"], "set runtime.engine=ray"),
        (["runtime.engine=ray", "runtime.devices=cpu,cpu"], "set runtime.engine=local"),
        (["runtime.engine=ray", "runtime.ray.gpus=2"], "set runtime.device_map=auto"),
        (["runtime.engine=ray", "runtime.ray.gpus=1", "runtime.device=cpu"], "leave out one of them"),
        (["runtime.engine=ray", "runtime.ray.cpus=1.5"], "a whole number"),
        (["runtime.engine=ray", "runtime.ray.address=nowhere"], "runtime.ray.address"),
    ],
)
def test_what_does_not_go_together_is_refused(refused, arguments, given, expected):
    assert expected in refused("precompute", *arguments(*given))


def test_without_ray_it_says_what_to_install(refused, arguments, monkeypatch):
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'factsmith[ray]'" in refused("precompute", *arguments("runtime.engine=ray"))


@needs_ray
def test_a_cluster_that_does_not_answer_is_refused_before_anything_is_done(refused, arguments):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"ray://127.0.0.1:{unused.getsockname()[1]}"
        message = refused("precompute", *arguments("runtime.engine=ray", f"runtime.ray.address={address}"))
    assert "Ray cannot be reached" in message
    assert address in message


def test_workers_of_a_cluster_do_not_see_the_copies_of_a_machine(refused, arguments, tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("FACTSMITH_HOME", f"file://{tmp_path / 'shared'}")
    monkeypatch.setenv("FACTSMITH_CACHE", str(tmp_path / "copies"))
    message = refused("precompute", *arguments("runtime.engine=ray", "runtime.ray.address=127.0.0.1:6379"))
    assert "share a folder" in message


@needs_ray
@pytest.mark.slow
def test_workers_of_this_machine_publish_at_the_url_of_the_store(small, arguments, tmp_path, home, monkeypatch):
    expected, _ = of_one_process(arguments, monkeypatch, home, *UNKEPT)
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("FACTSMITH_HOME", f"file://{tmp_path / 'shared'}")
    monkeypatch.setenv("FACTSMITH_CACHE", str(tmp_path / "copies"))
    run(compose(arguments("runtime.engine=ray", "runtime.ray.workers=2", "runtime.ray.memory_mb=100", *UNKEPT)))
    assert contents(Store(tmp_path / "copies")) == expected
    published = {"/".join(path.parts[-4:-1]) for path in (tmp_path / "shared").glob("artifacts/*/*/*/manifest.json")}
    assert {place.split("/")[0] for place in published} == {address.split("/")[0] for address in expected}
    assert len(published) == len(expected)


class Resources:
    """What a connected Ray says about its cluster."""

    def __init__(self, **resources: float) -> None:
        self.cluster_resources = lambda: resources


@pytest.mark.parametrize(
    ("cluster", "runtime", "expected"),
    [
        ({"CPU": 8.0}, {}, {"CPU": 1, "GPU": 0}),
        ({"CPU": 8.0, "GPU": 8.0}, {}, {"CPU": 1, "GPU": 1}),
        ({"CPU": 8.0, "GPU": 8.0}, {"device": "cpu"}, {"CPU": 1, "GPU": 0}),
        ({"GPU": 8.0}, {"device_map": "auto", "ray": RaySettings(gpus=4, cpus=2)}, {"CPU": 2, "GPU": 4}),
        ({"GPU": 8.0}, {"ray": RaySettings(gpus=0.5, memory_mb=100)}, {"CPU": 1, "GPU": 0.5, "memory": 100 * 2**20}),
    ],
)
def test_a_worker_asks_for_what_it_needs(gpt2_folder, cluster, runtime, expected):
    from factsmith.tasks.planning.run import Run

    model = Run(compose(tiny_arguments(gpt2_folder)), Store(gpt2_folder)).model
    found = _need(Resources(**cluster), RuntimeSettings(engine="ray", **runtime), model)
    assert expected.items() <= found.items()
    assert found["memory"] > 0
