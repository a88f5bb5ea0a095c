"""A run on a tiny model, small enough to be repeated many times."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from factsmith.artifacts.store import Artifact, Store
from factsmith.flows.cli import main as cli
from factsmith.flows.configuration.composition import compose
from factsmith.flows.reporting.reports import Report
from factsmith.flows.run import run


def tiny_words(folder: Path, *words: str) -> list[str]:
    given = [
        "model=local", f"model.path={folder}", "corpus=embedded", "dataset=embedded", "corpus.block_length=32",
        "corpus.dynamic_multiplier=20", "method.layers=[0,1]", "method.preservation_weight=1",
        "method.value.steps=4", "method.value.learning_rate=0.2", "method.batch_size=3", "dataset.batches=2",
        "runtime.tokens_per_pass=256",
    ]  # fmt: skip
    names = {word.partition("=")[0] for word in words}
    return [*(word for word in given if word.partition("=")[0] not in names), *words]


@pytest.fixture(scope="session", autouse=True)
def _tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow's migrations, a second for every new database, run once: the others are copies."""
    from mlflow.store.db import utils

    template = tmp_path_factory.mktemp("mlflow") / "empty.db"
    initialise = utils._initialize_tables

    def copy(engine: Any) -> None:
        if not template.exists():
            initialise(engine)
            shutil.copyfile(engine.url.database, template)
        else:
            engine.dispose()
            shutil.copyfile(template, engine.url.database)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", copy)
        yield


@pytest.fixture
def words(gpt2_folder: Path) -> Callable[..., list[str]]:
    return lambda *more: tiny_words(gpt2_folder, *more)


@pytest.fixture
def pipeline(prefect_server: None, home: Path, words: Callable[..., list[str]]) -> Callable[..., Report]:
    """Run the pipeline on the tiny model, with some more words."""
    return lambda *more: run(compose(words(*more)))


@pytest.fixture
def store(home: Path) -> Store:
    return Store(home)


def artifacts(store: Store, kind: str) -> list[Artifact]:
    """The artifacts of a kind."""
    return [store._open(path) for path in store.all_paths() if path.parent.parent.name == kind]


def contents(store: Store) -> dict[str, str]:
    """Content checksum of every artifact."""
    return {one.address: one.manifest.content for path in store.all_paths() for one in [store._open(path)]}


def states(report: Report) -> dict[str, str]:
    return {stage.name: stage.state for stage in report.stages}


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def factsmith(monkeypatch, capsys, home) -> Callable[..., Result]:
    """Run the command line in this process, in a home of its own."""

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["factsmith", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 1 if leave.code else 0
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def refused(factsmith, home) -> Callable[..., str]:
    """A call that must end with exit code 2, one clear message and nothing left behind; gives the message."""

    def call(*arguments: str, clean: bool = True) -> str:
        result = factsmith(*arguments)
        assert result.code == 2, result
        assert result.out == ""
        assert "Traceback" not in result.err
        if clean:
            assert not list(home.glob("artifacts/*/*/*"))
            assert not (home / "mlflow.db").exists()
        assert not list(home.glob("staging/*"))
        return result.err

    return call
