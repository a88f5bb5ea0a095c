from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from factsmith.artifacts.artifact import Draft
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Store

MODEL = Series("model", 1, {"files": {}}).member()
TOKENS = Series("tokens", 1, {"corpus": "c"}).member(shard=0)
KEYS = Series("keys", 1, {}, {"model": MODEL.digest})
COVARIANCE = Series("covariance", 1, {"tokens": 2}, {"keys": KEYS.digest})
FACTOR = Series("factor", 1, {}, {"covariance": COVARIANCE.digest})


def fill(store: Store) -> None:
    """C0 and factors of two layers, with what they were made from. A covariance has a file in a folder."""

    def build(text: str, *sources):
        def write(draft: Draft) -> None:
            (draft.path / "deep").mkdir()
            (draft.path / "deep" / "a.bin").write_bytes(text.encode() * 1000)
            (draft.path / "b.txt").write_text(text)
            draft.read_from(*sources)

        return write

    store.get_or_build(MODEL, build("model"))
    tokens, _ = store.get_or_build(TOKENS, build("tokens"))
    for layer in (0, 1):
        keys, _ = store.get_or_build(KEYS.member(layer=layer), build(f"keys {layer}", tokens))
        c0, _ = store.get_or_build(COVARIANCE.member(layer=layer), build(f"covariance {layer}", keys))
        store.get_or_build(FACTOR.member(layer=layer), build(f"factor {layer}", c0))


@pytest.fixture
def store(home: Path) -> Store:
    """A store with statistics of two layers."""
    store = Store(home)
    fill(store)
    return store


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """A store on another machine, empty."""
    return Store(tmp_path / "other")


@pytest.fixture
def cli(monkeypatch, capsys, home) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line on a store."""
    from factsmith.flows.cli.main import main

    def call(store: Store, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setenv("FACTSMITH_HOME", str(store.root))
        monkeypatch.setattr(sys, "argv", ["factsmith", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as leave:
            code = int(leave.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


@pytest.fixture
def moved(cli) -> Callable[..., dict]:
    """Runs a push or a pull, which must succeed. Returns what ``--json`` says."""

    def call(store: Store, *arguments: object) -> dict:
        code, out, err = cli(store, "store", *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call
